"""The page of the faults that can be ordered from the mock. A field that is not described here is a fault."""

from __future__ import annotations

from dataclasses import dataclass

from reference.markdown import code, table
from reference.markdown import page as whole_page
from sluice_cli.mock.faults import Fault


@dataclass(frozen=True)
class _Group:
    title: str
    fields: dict[str, str]


_FAULTS = (
    _Group(
        "Which calls",
        {
            "id": "Name of the order; made up if absent",
            "model": "Models, as a glob",
            "endpoint": "Path below /v1, as a glob, such as `chat/completions`",
            "key": "Name of the key, as a glob",
            "stream": "Only streams, or only calls that are none",
            "percent": "Chance that a matching call is struck",
            "count": "Calls struck at most",
            "after": "Matching calls that pass first",
        },
    ),
    _Group(
        "Refuse",
        {
            "error": "An error by name, see [errors](errors.md)",
            "status": "Status instead of the error's own",
            "error_message": "Message instead of the error's own",
            "error_type": "Type instead of the error's own",
            "retry_after": "The header's text; `date:N` is the HTTP date N seconds ahead",
            "retry_after_ms": "The header `retry-after-ms`",
            "should_retry": "The header `x-should-retry`",
            "response_headers": "Further headers",
        },
    ),
    _Group(
        "Delay, in seconds: a number, `uniform(low,high)` or `lognormal(median,sigma)`",
        {
            "latency_seconds": "Before the headers",
            "gap_seconds": "Between events",
            "stall_seconds": "Once: before the headers, or before the event that stall_at_event names; a number",
            "stall_at_event": "Where it stalls, from 0",
            "background_seconds": "How long a background response takes; a number",
        },
    ),
    _Group(
        "Break off",
        {
            "reset": "By RST instead of an orderly end",
            "cut_at_byte": "At this byte of the body",
            "cut_at_event": "Before this event, from 0",
            "stream_error": "An error event of this code within the stream",
            "response_failed": "Responses: end with `response.failed` and this code",
            "fail_at_event": "Where either happens; default after half of the content",
        },
    ),
    _Group(
        "Form of the answer",
        {
            "chunking": "How the bytes are cut: `bytes`, `random`, `coalesced` or in mid-character `utf8`",
            "crlf": "Line ends CRLF",
            "comments": "Comment lines between events",
            "no_space": "No space after `data:`",
            "line_bytes": "One event whose line is at least this long",
            "html_body": "An HTML page instead of JSON",
            "gzip_body": "Compressed, whether or not asked for",
            "http10": "HTTP/1.0 without a length",
            "usage": "`omit` it, or send it `with_choices`",
            "no_done": "Chat: no `[DONE]`",
        },
    ),
    _Group(
        "Content of the answer",
        {
            "refusal": "The model declines",
            "finish_reason": "Why it ended",
            "service_tier": "Tier that the answer names",
            "served_model": "Model that the answer names",
            "content": "Text",
            "events": "Content events of a stream",
            "output_tokens": "Text tokens of the reply",
            "prompt_tokens": "Input tokens reported",
            "cached_tokens": "Cached input tokens reported",
            "cache_write_tokens": "Tokens written to the prompt cache",
            "reasoning_tokens": "Reasoning tokens reported",
            "audio_input_tokens": "Audio tokens of the input",
            "audio_output_tokens": "Audio tokens of the output",
        },
    ),
)


def page() -> str:
    """Return the page of faults that can be ordered from the mock."""
    described = {name for group in _FAULTS for name in group.fields}
    if described != set(Fault.__struct_fields__):
        raise ValueError(f"describe each fault, and nothing else, in {__name__}")
    return whole_page(
        "Faults of the mock",
        "`sluice mock-openai` and `sluice dev` serve a mock of the API under `/v1`, with its own pages under `/mock`. "
        "A fault is a JSON object; where several strike a call, the later one wins field by field.",
        table(
            ("Request", "Does"),
            (
                ("`GET /mock/faults`", "list the faults in force and how often each has struck"),
                ("`PUT /mock/faults`", "put a list of faults in force instead of all others"),
                ("`POST /mock/faults`", "add one, or replace the one of the same id"),
                ("`DELETE /mock/faults`, `DELETE /mock/faults/ID`", "lift all, or one"),
                ("`GET`, `PUT /mock/limits`", "its rate limits by model"),
                ("`GET /mock/ledger`", "what it served; narrowed by request_id, endpoint, model, key and limit"),
                ("`GET /mock/stats`", "counts since the start or the last reset"),
                ("`POST /mock/reset`", "forget everything"),
                (
                    "header `x-mock-fault`",
                    "a fault for this call alone: the JSON, or `name=value; ...`, or an error's name",
                ),
            ),
        ),
        *(
            part
            for group in _FAULTS
            for part in (
                f"## {group.title}",
                table(("Field", "Meaning"), ((code(name), text) for name, text in group.fields.items())),
            )
        ),
    )
