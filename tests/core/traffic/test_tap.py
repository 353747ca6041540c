"""Reading streams while they pass: the client's bytes, the usage, the end, the failures."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.modelroute import Endpoint
from sluice_core.records import Outcome
from sluice_core.tap import StreamTap
from sluice_core.usage import Usage

CHAT = Endpoint.CHAT_COMPLETIONS
HOSTILE = st.sampled_from(
    [
        '"usage":null',
        ',"usage":null}',
        '\\","usage":null,"x":"',
        "[DONE]",
        'data: {"error":{}}',
        "\n\ndata: x\n\n",
        '"finish_reason":"stop"',
        "é😀",
        "}",
    ]
)
TEXTS = st.one_of(HOSTILE, st.text(max_size=8))
CUTS = st.lists(st.integers(0, 1 << 16), max_size=10)
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
FACTS = (
    "usage",
    "served_model",
    "service_tier",
    "finish_reason",
    "finish_reasons",
    "content_seen",
    "terminal_seen",
    "failure",
    "response_id",
    "response_status",
    "last_sequence_number",
)


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:stop] for start, stop in pairwise(places)]


def run(
    endpoint: Endpoint, chunks: list[bytes], *, strip: bool = False, bound: int = 1 << 20
) -> tuple[StreamTap, bytes]:
    tap = StreamTap(endpoint, strip, bound)
    passed = b"".join(tap.feed(chunk) for chunk in chunks)
    return tap, passed + tap.end()


def facts(tap: StreamTap) -> dict[str, Any]:
    return {name: getattr(tap, name) for name in FACTS}


def chat_chunk(text: str | None = None, finish: str | None = None, index: int = 0, **members: Any) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-4.1-mini-2025-04-14"}
    return {**head, "service_tier": "default", "choices": [choice], **members}


@st.composite
def chat_streams(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """One stream as the upstream sends it without include_usage, and the same with it."""
    eol = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    prefix = draw(st.sampled_from([b"data: ", b"data:"]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    ascii_only = draw(st.booleans())
    usage_at = draw(st.sampled_from(["last", "inside", "first"]))
    plain, asked = b"", b""

    def encode(members: dict[str, Any]) -> bytes:
        return prefix + json.dumps(members, separators=separators, ensure_ascii=ascii_only).encode() + eol + eol

    for text in [*draw(st.lists(TEXTS, max_size=6)), None]:
        if draw(st.booleans()):
            comment = b": keep-alive" + eol + eol
            plain, asked = plain + comment, asked + comment
        chunk = chat_chunk(text, "stop" if text is None else None)
        extra = {"obfuscation": draw(TEXTS)} if draw(st.booleans()) else {}
        plain += encode({**chunk, **extra})
        if usage_at == "last":
            asked += encode({**chunk, **extra, "usage": None})
        elif usage_at == "first":
            asked += encode({"usage": None, **chunk, **extra})
        else:
            asked += encode({**chunk, "usage": None, **extra})
    asked += encode({"id": "chatcmpl-1", "choices": [], "usage": USAGE})
    done = prefix + b"[DONE]" + eol + eol
    return plain + done, asked + done


@given(chat_streams(), CUTS)
def test_the_client_sees_the_stream_it_asked_for(streams: tuple[bytes, bytes], cuts: list[int]) -> None:
    """Usage that only Sluice asked for is counted and taken out: the bytes are those of a stream without it (P1)."""
    plain, asked = streams
    tap, passed = run(CHAT, chunked(asked, cuts), strip=True)
    assert passed == plain
    assert tap.usage == Usage(input_tokens=11, output_tokens=7)
    assert tap.terminal_seen
    assert tap.failure is None


@given(chat_streams(), CUTS)
def test_without_stripping_every_byte_passes(streams: tuple[bytes, bytes], cuts: list[int]) -> None:
    """A client that asked for usage itself gets what the upstream sent, and the ledger gets the same usage."""
    for stream in streams:
        tap, passed = run(CHAT, chunked(stream, cuts))
        assert passed == stream
        assert tap.finish_reason == "stop"
        assert (tap.usage is not None) == (stream is streams[1])


@given(chat_streams(), CUTS, st.booleans(), st.sampled_from([64, 400, 1 << 20]))
def test_facts_do_not_depend_on_the_chunking(
    streams: tuple[bytes, bytes], cuts: list[int], strip: bool, bound: int
) -> None:
    """Bytes and facts are the same however the stream is cut, also where events exceed the bound (P17)."""
    for stream in streams:
        tap, passed = run(CHAT, chunked(stream, cuts), strip=strip, bound=bound)
        whole, whole_passed = run(CHAT, [bytes([byte]) for byte in stream], strip=strip, bound=bound)
        assert passed == whole_passed
        assert facts(tap) == facts(whole)


def sse(*events: dict[str, Any] | str, named: bool = False) -> bytes:
    out = b""
    for event in events:
        if named and isinstance(event, dict):
            out += f"event: {event['type']}\n".encode()
        out += b"data: " + (event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))).encode()
        out += b"\n\n"
    return out


def test_usage_is_taken_from_whichever_event_carries_it() -> None:
    """Usage on a chunk with choices counts, and the last report wins; such a chunk is never taken out (P2)."""
    early = chat_chunk("x", usage={"prompt_tokens": 5, "completion_tokens": 1})
    last = chat_chunk(None, "stop", usage={"prompt_tokens": 5, "completion_tokens": 9})
    stream = sse(early, last, "[DONE]")
    tap, passed = run(CHAT, [stream], strip=True)
    assert tap.usage == Usage(input_tokens=5, output_tokens=9)
    assert passed == stream


@pytest.mark.parametrize(
    "chunk",
    [
        chat_chunk("x", note={"usage": None}),  # not the chunk's own usage
        chat_chunk("x", usage=None, note={"id": 1, "usage": None}),
        {"usage": None, "error": None, "choices": [], "prompt_filter_results": []},
        chat_chunk('text with "usage":null in it'),
    ],
)
def test_only_the_events_own_usage_is_taken_out(chunk: dict[str, Any]) -> None:
    """A member of the same name elsewhere, or in the text of the answer, stays."""
    without = {name: value for name, value in chunk.items() if name != "usage"}
    for before in ((), (chat_chunk("content"),)):
        _, passed = run(CHAT, [sse(*before), sse(chunk), sse("[DONE]")], strip=True)
        assert passed == sse(*before, without, "[DONE]")


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.EMBEDDINGS, Endpoint.AUDIO])
def test_other_endpoints_are_never_stripped(endpoint: Endpoint) -> None:
    """Only chat and legacy completions know include_usage; nothing is taken out of any other stream."""
    stream = sse({"choices": [], "usage": USAGE}, "[DONE]")
    assert run(endpoint, [stream], strip=True)[1] == stream


@pytest.mark.parametrize(
    ("chunk", "content"),
    [
        (
            chat_chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]),
            False,
        ),
        (chat_chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": None}}]), False),
        (chat_chunk(choices=[]), False),
        (chat_chunk("hi"), True),
        (chat_chunk(choices=[{"index": 0, "delta": {"refusal": "no"}}]), True),
        (chat_chunk(choices=[{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]), True),
        (chat_chunk(None, "length"), True),
        ({"error": {"message": "x"}}, False),
    ],
)
def test_content_begins_with_the_first_thing_that_a_client_would_notice(chunk: dict[str, Any], content: bool) -> None:
    """A role, an empty text or an error is no content: another upstream may still take over (P16)."""
    tap = StreamTap(CHAT, False)
    tap.feed(sse(chunk))
    assert tap.content_seen is content


def test_every_choice_has_its_own_finish_reason() -> None:
    """With n > 1 each choice ends by itself; the most telling reason stands for the answer."""
    stream = sse(chat_chunk("a"), chat_chunk(None, "stop"), chat_chunk(None, "length", index=1), "[DONE]")
    tap, _ = run(CHAT, [stream])
    assert tap.finish_reasons == {0: "stop", 1: "length"}
    assert tap.finish_reason == "length"


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("endpoint", [CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES])
def test_a_stream_that_breaks_off_is_a_failure(endpoint: Endpoint, strip: bool) -> None:
    """Without its terminal event a stream was cut; nothing is made up and what came has passed on (P16)."""
    stream = sse(chat_chunk("a")) + b'data: {"choices":[{"de'
    tap, passed = run(endpoint, [stream], strip=strip)
    assert passed == stream
    assert tap.failure is not None
    assert tap.failure.outcome is Outcome.TRUNCATED


@pytest.mark.parametrize(
    ("event", "outcome", "code"),
    [
        ({"error": {"message": "m", "type": "server_error", "code": None}}, Outcome.PROVIDER_ERROR, "server_error"),
        ({"error": {"code": "rate_limit_exceeded"}}, Outcome.THROTTLED, "rate_limit_exceeded"),
        ({"error": "boom"}, Outcome.PROVIDER_ERROR, None),
        ({"error": {"code": 500}}, Outcome.PROVIDER_ERROR, "500"),
    ],
)
def test_an_error_inside_a_200_is_a_failure(event: dict[str, Any], outcome: Outcome, code: str | None) -> None:
    """An error object in the stream counts as a failure also after content, with its code (P16)."""
    tap, passed = run(CHAT, [sse(chat_chunk("a"), event)])
    assert tap.failure is not None
    assert (tap.failure.outcome, tap.failure.code) == (outcome, code)
    assert passed.endswith(sse(event))


def response(kind: str, number: int, **members: Any) -> dict[str, Any]:
    return {"type": kind, "sequence_number": number, **members}


RESPONSE_USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 25},
}


@pytest.mark.parametrize("named", [True, False])
def test_a_responses_stream_ends_with_its_terminal_event(named: bool) -> None:
    """Usage, model and tier are those of the terminal response; no `[DONE]` is waited for."""
    created = {"id": "resp_1", "model": "gpt-5", "status": "in_progress", "usage": None}
    final = {"id": "resp_1", "model": "gpt-5", "service_tier": "flex", "status": "completed", "usage": RESPONSE_USAGE}
    stream = sse(
        response("response.created", 0, response=created),
        response("response.output_text.delta", 1, delta="hi"),
        response("response.output_text.delta", 2, delta="ho"),
        response("response.completed", 3, response=final),
        named=named,
    )
    tap, passed = run(Endpoint.RESPONSES, [stream])
    assert passed == stream
    assert tap.usage == Usage(input_tokens=20, output_tokens=30, cached_input_tokens=8, reasoning_tokens=25)
    assert (tap.response_id, tap.response_status, tap.service_tier) == ("resp_1", "completed", "flex")
    assert tap.terminal_seen
    assert tap.failure is None
    assert tap.last_sequence_number == 3


def test_headers_of_a_responses_stream_are_no_content() -> None:
    """The events that announce an answer are no content yet."""
    tap = StreamTap(Endpoint.RESPONSES, False)
    for number, kind in enumerate(("response.created", "response.in_progress", "response.output_item.added")):
        tap.feed(sse(response(kind, number), named=True))
        assert not tap.content_seen
    tap.feed(sse(response("response.output_text.delta", 3, delta="x"), named=True))
    assert tap.content_seen


@pytest.mark.parametrize(
    ("event", "outcome", "terminal"),
    [
        (
            response("response.failed", 1, response={"status": "failed", "error": {"code": "server_error"}}),
            Outcome.PROVIDER_ERROR,
            True,
        ),
        (
            response("response.failed", 1, response={"status": "failed", "error": {"code": "rate_limit_exceeded"}}),
            Outcome.THROTTLED,
            True,
        ),
        (response("error", 1, code="server_error", message="m", param=None), Outcome.PROVIDER_ERROR, False),
        (response("response.incomplete", 1, response={"status": "incomplete"}), None, True),
        (
            response("response.failed", 1, response={"status": "failed", "error": {"code": "invalid_prompt"}}),
            None,  # declined by content policy: an answer
            True,
        ),
    ],
)
def test_failures_of_a_responses_stream(event: dict[str, Any], outcome: Outcome | None, terminal: bool) -> None:
    """A failed response and an error event are failures; an incomplete or declined one is an answer."""
    tap, _ = run(Endpoint.RESPONSES, [sse(event, named=True)])
    assert (tap.failure.outcome if tap.failure else None) == outcome
    assert tap.terminal_seen is terminal


@pytest.mark.parametrize(
    ("endpoint", "event", "usage"),
    [
        (
            Endpoint.AUDIO,
            {"type": "speech.audio.done", "usage": {"input_tokens": 3, "output_tokens": 90}},
            Usage(input_tokens=3, output_tokens=90),
        ),
        (
            Endpoint.AUDIO,
            {
                "type": "transcript.text.done",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 9,
                    "output_tokens": 2,
                    "input_token_details": {"audio_tokens": 7},
                },
            },
            Usage(input_tokens=9, output_tokens=2, audio_input_tokens=7),
        ),
        (
            Endpoint.IMAGES,
            {"type": "image_generation.completed", "usage": {"input_tokens": 5, "output_tokens": 272}},
            Usage(input_tokens=5, output_tokens=272),
        ),
    ],
)
def test_streams_of_audio_and_images_report_usage_at_their_end(
    endpoint: Endpoint, event: dict[str, Any], usage: Usage
) -> None:
    """The closing events of the other streams carry usage and end the stream (P5)."""
    tap, _ = run(endpoint, [sse(event)])
    assert (tap.usage, tap.terminal_seen, tap.failure) == (usage, True, None)


def test_an_event_above_the_bound_passes_unread() -> None:
    """A line of megabytes passes byte for byte, and what follows it is still understood."""
    huge = sse(chat_chunk("x" * 3_000_000))
    stream = huge + sse(chat_chunk(None, "stop"), {"choices": [], "usage": USAGE}, "[DONE]")
    pieces = [stream[start : start + 65_536] for start in range(0, len(stream), 65_536)]
    tap, passed = run(CHAT, pieces)
    assert passed == stream
    assert tap.usage == Usage(input_tokens=11, output_tokens=7)
    assert tap.terminal_seen


@given(st.binary(max_size=200), CUTS, st.sampled_from(list(Endpoint)), st.booleans())
def test_any_bytes_pass(junk: bytes, cuts: list[int], endpoint: Endpoint, strip: bool) -> None:
    """What is no event stream at all passes unharmed."""
    assert run(endpoint, chunked(junk, cuts), strip=strip)[1] == junk


def test_an_empty_line_in_any_form_ends_an_event() -> None:
    """What CRs cut in two is two events, neither of them JSON, also where it would make sense as one."""
    odd = sse(chat_chunk("b", usage=None)).replace(b"{", b"{\r\r", 1)
    for chunks in ([odd], [bytes([byte]) for byte in odd]):
        _, passed = run(CHAT, [sse(chat_chunk("a")), *chunks], strip=True)
        assert passed == sse(chat_chunk("a")) + odd
