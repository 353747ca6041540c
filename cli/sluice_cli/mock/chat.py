"""Chat completions: the body, whole or as a stream of chunks."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from sluice_cli.mock.answers import Answer, Frame, JsonAnswer, StreamAnswer
from sluice_cli.mock.content import Prompt, Reply, Tool, digest, grouped, measure, reply_for, sha256_text, usage_for
from sluice_cli.mock.effects import Effect
from sluice_cli.mock.errors import ERRORS, bad_request, error_body, missing
from sluice_cli.mock.ledger import LedgerEntry, Usage
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import SSE_DONE, JsonObject, sse_data

SYSTEM_FINGERPRINT: Final = "fp_5a1c6e0b2d"
_OBFUSCATION: Final = "aZ3kQ9xP7mB1vR5tL8nW2yC6hJ4gD0fS"
_ARGUMENT_DELTA_CHARACTERS: Final = 8


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What every body and chunk of one answer repeats."""

    id: str
    created: int
    model: str
    tier: str


def prompt_of(body: JsonObject) -> Prompt:
    """Read a chat request."""
    messages = body.get("messages")
    model = body.get("model")
    if not isinstance(model, str):
        raise missing("model")
    if not isinstance(messages, list) or not messages:
        raise missing("messages")
    if not all(isinstance(message, dict) for message in messages):
        raise bad_request("Invalid type for 'messages': expected an array of objects.", "messages", "invalid_type")
    characters, image_tokens = measure(messages)
    tools = _tools(body)
    response_format = body.get("response_format") or {}
    schema = (response_format.get("json_schema") or {}).get("schema")
    if response_format.get("type") == "json_object":
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    return Prompt(
        model=model,
        seed=digest(model, messages, body.get("temperature"), body.get("seed")),
        characters=characters,
        messages=len(messages),
        image_tokens=image_tokens,
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        tools=tools,
        tool_calls=_calls_wanted(body, tools, messages),
        schema=schema,
    )


def describe(body: JsonObject, entry: LedgerEntry) -> None:
    """Note in the ledger what tells one arm of a split from another."""
    first = (body.get("messages") or [{}])[0]
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        entry.instructions_sha256 = sha256_text(_text_of(first.get("content")))
    options = body.get("stream_options")
    entry.usage_asked = isinstance(options, dict) and bool(options.get("include_usage"))
    entry.max_tokens = body.get("max_completion_tokens") or body.get("max_tokens")


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part.get("text", "") for part in parts if isinstance(part, dict))


def _tools(body: JsonObject) -> tuple[Tool, ...]:
    functions = [tool.get("function") or {} for tool in body.get("tools") or () if tool.get("type") == "function"]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        wanted = (choice.get("function") or {}).get("name")
        functions = [function for function in functions if function.get("name") == wanted]
        if not functions:
            raise bad_request(f"Tool choice {wanted!r} is not in 'tools'.", "tool_choice")
    return tuple(Tool(name=function["name"], schema=function.get("parameters") or {}) for function in functions)


def _calls_wanted(body: JsonObject, tools: tuple[Tool, ...], messages: list[Any]) -> int:
    """A tool is called unless that is forbidden or its result is already there; two in parallel if asked."""
    if not tools or body.get("tool_choice") == "none" or messages[-1].get("role") == "tool":
        return 0
    return 2 if body.get("parallel_tool_calls") is True else 1


async def create(call: Call) -> Answer:
    """Answer `POST /chat/completions`."""
    return answer(call, prompt_of(call.body))


def answer(call: Call, prompt: Prompt) -> Answer:
    """Generate the choices and bill them."""
    body, effect = call.body, call.effect
    count = body.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= 128:
        raise bad_request("Invalid 'n': must be an integer between 1 and 128.", "n", "integer_out_of_range")
    replies = [reply_for(prompt, effect, index) for index in range(count)]
    usage = usage_for(prompt, sum(reply.tokens for reply in replies), effect)
    head = Head(
        id=call.state.object_id("chatcmpl-", prompt.seed),
        created=call.state.created_at(),
        model=call.model_served,
        tier=call.tier_served,
    )
    call.entry.object_id = head.id
    logprobs = int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
    if body.get("stream"):
        return _stream(call, head, replies, usage, logprobs)
    payload = {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [_choice(head, index, reply, logprobs) for index, reply in enumerate(replies)],
        "service_tier": head.tier,
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }
    if effect.usage != "omit":
        payload["usage"] = usage_body(usage)
    return JsonAnswer(
        payload=payload,
        usage=usage,
        usage_sent=effect.usage != "omit",
        events=max(len(reply.pieces) for reply in replies),
    )


def usage_body(usage: Usage) -> JsonObject:
    """Write usage as chat completions report it."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "audio_tokens": usage.audio_input_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def token_logprobs(pieces: tuple[str, ...] | list[str], top: int) -> list[JsonObject]:
    """Write the log probabilities of some pieces of text, `top` alternatives each."""
    rows: list[JsonObject] = []
    for piece in pieces:
        raw = list(piece.encode())
        row = {"token": piece, "logprob": -0.125, "bytes": raw}
        ranked = [{"token": piece, "logprob": -0.125 * (rank + 1), "bytes": raw} for rank in range(top)]
        rows.append(row | {"top_logprobs": ranked})
    return rows


def tool_call_id(head_id: str, index: int, position: int) -> str:
    """Name one tool call of an answer."""
    return f"call_{head_id[-20:]}{index:02d}{position:02d}"


def _choice(head: Head, index: int, reply: Reply, logprobs: int | None) -> JsonObject:
    refused = reply.refusal
    message: JsonObject = {
        "role": "assistant",
        "content": None if refused or reply.tool_calls else reply.text,
        "refusal": reply.text if refused else None,
        "annotations": [],
    }
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": tool_call_id(head.id, index, position),
                "type": "function",
                "function": {"name": tool.name, "arguments": tool.arguments},
            }
            for position, tool in enumerate(reply.tool_calls)
        ]
    rows = None
    if logprobs is not None and reply.pieces:
        rows = {"content": token_logprobs(reply.pieces, logprobs), "refusal": None}
    return {"index": index, "message": message, "logprobs": rows, "finish_reason": reply.finish_reason}


def _stream(call: Call, head: Head, replies: list[Reply], usage: Usage, logprobs: int | None) -> StreamAnswer:
    effect = call.effect
    asked = call.entry.usage_asked
    chunks = _Chunks(head, effect, call.body, asked)
    frames = chunks.frames(replies, usage, logprobs)
    failure = effect.stream_error
    sent = asked and effect.usage != "omit" and failure is None
    return StreamAnswer(frames=frames, usage=None if failure else usage, usage_sent=sent, failure=failure)


class _Chunks:
    """Writes the chunks of one answer."""

    __slots__ = ("_asked", "_effect", "_head", "_obfuscate", "_sent")

    def __init__(self, head: Head, effect: Effect, body: JsonObject, asked: bool) -> None:
        self._head = head
        self._effect = effect
        self._asked = asked
        options = body.get("stream_options") or {}
        self._obfuscate = options.get("include_obfuscation", True)
        self._sent = 0

    def frames(self, replies: list[Reply], usage: Usage, logprobs: int | None) -> Iterator[Frame]:
        tokens = usage.reasoning_tokens
        for index in range(len(replies)):
            yield Frame(data=self._chunk([_delta(index, {"role": "assistant", "content": "", "refusal": None})]))
        deltas = list(_interleave(self._head, replies, self._effect.events, logprobs))
        fail_at = self._effect.fail_at_event
        if fail_at is None:
            fail_at = len(deltas) // 2
        for number, (choice, generated) in enumerate(deltas):
            if self._effect.stream_error is not None and number >= fail_at:
                break
            tokens += generated
            yield Frame(data=self._chunk([choice]), output_tokens=tokens)
        if self._effect.stream_error is not None:
            yield Frame(data=sse_data(error_body(ERRORS[self._effect.stream_error])), output_tokens=tokens)
            return
        yield from self._ending(replies, usage)

    def _ending(self, replies: list[Reply], usage: Usage) -> Iterator[Frame]:
        total = usage.output_tokens
        joined = self._effect.usage == "with_choices"
        for index, reply in enumerate(replies):
            last = joined and self._asked and index == len(replies) - 1
            ending = _delta(index, {}, finish_reason=reply.finish_reason)
            yield Frame(data=self._chunk([ending], usage if last else None), output_tokens=total)
        if self._asked and not joined and self._effect.usage != "omit":
            yield Frame(data=self._chunk([], usage), output_tokens=total)
        if not self._effect.no_done:
            yield Frame(data=SSE_DONE, output_tokens=total)

    def _chunk(self, choices: list[JsonObject], usage: Usage | None = None) -> bytes:
        head = self._head
        chunk: JsonObject = {
            "id": head.id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
            "service_tier": head.tier,
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "choices": choices,
        }
        if self._asked and self._effect.usage != "omit":
            chunk["usage"] = None if usage is None else usage_body(usage)
        self._sent += 1
        if self._obfuscate:
            chunk["obfuscation"] = _OBFUSCATION[: 3 + (self._sent * 7) % 13]
        if self._effect.line_bytes and self._sent == 2:
            chunk["obfuscation"] = "x" * self._effect.line_bytes
        return sse_data(chunk)


def _delta(
    index: int, delta: JsonObject, logprobs: JsonObject | None = None, finish_reason: str | None = None
) -> JsonObject:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _interleave(
    head: Head, replies: list[Reply], events: int | None, logprobs: int | None
) -> Iterator[tuple[JsonObject, int]]:
    """Yield (choice, tokens it adds), the choices taking turns as a real stream's do."""
    sources = [_deltas(head, index, reply, events, logprobs) for index, reply in enumerate(replies)]
    while sources:
        for source in list(sources):
            item = next(source, None)
            if item is None:
                sources.remove(source)
            else:
                yield item


def _deltas(
    head: Head, index: int, reply: Reply, events: int | None, logprobs: int | None
) -> Iterator[tuple[JsonObject, int]]:
    field = "refusal" if reply.refusal else "content"
    done = 0
    for text, upto in grouped(reply.pieces, events):
        rows = None
        if logprobs is not None:
            rows = {"content": token_logprobs(reply.pieces[done:upto], logprobs), "refusal": None}
        yield _delta(index, {field: text}, rows), upto - done
        done = upto
    for position, tool in enumerate(reply.tool_calls):
        opening = {
            "index": position,
            "id": tool_call_id(head.id, index, position),
            "type": "function",
            "function": {"name": tool.name, "arguments": ""},
        }
        yield _delta(index, {"tool_calls": [opening]}), 8
        # Each delta bills its share, so that the sum is the reply's own count.
        for at in range(0, len(tool.arguments), _ARGUMENT_DELTA_CHARACTERS):
            piece = tool.arguments[at : at + _ARGUMENT_DELTA_CHARACTERS]
            yield (
                _delta(index, {"tool_calls": [{"index": position, "function": {"arguments": piece}}]}),
                -(-len(piece) // 4),
            )
