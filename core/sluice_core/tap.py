"""Reading a stream while it passes: usage, content, end, failure. The bytes that leave are the bytes that came.

The one exception is what Sluice itself asked for: where it set `stream_options.include_usage` and the client did not,
the usage event and the `"usage":null` members are taken out again, so that the client sees the stream it asked for.

Most events of a stream are deltas with nothing to learn from. Decoding the three members that would say otherwise is
cheaper than searching the bytes for them, and cannot be fooled by what the text of an answer contains.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

from sluice_core.answer import AnswerBody, answer_of, most_telling, read_usage
from sluice_core.api.modelroute import Endpoint
from sluice_core.classify import TRUNCATED, Failure, UpstreamError, classify_error
from sluice_core.sse import MAX_EVENT_BYTES, Fragment, SSESplitter, event_fields
from sluice_core.untrusted import UNREADABLE
from sluice_core.usage import Usage

_CHOICE_ENDPOINTS = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS})
_DONE = b"[DONE]"
_LF, _CR = 0x0A, 0x0D  # searching for a number is much faster than for a string of one byte

_TERMINAL_TYPES = frozenset({"response.completed", "response.failed", "response.incomplete", "response.cancelled"})
_TERMINAL_SUFFIXES = ("audio.done", "transcript.text.done", "image_generation.completed", "image_edit.completed")
_PREFACE_TYPES = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.failed",
        "error",
        "",
    }
)
"""Events of the Responses API that come before any content, or instead of it."""

_ABSENT = Raw(b"")
_EMPTY_VALUES = frozenset({b"", b"null", b'""', b"[]", b"{}"})
_FRAMING_MEMBERS = frozenset({"role"})


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None
    delta: dict[str, Raw] | None = None
    text: Raw = _ABSENT


class _Chunk(msgspec.Struct, gc=False):
    """The members of any stream's events that are read."""

    type: str | None = None
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: Raw = _ABSENT
    choices: list[_Choice] | None = None
    error: UpstreamError | str | None = None
    response: AnswerBody | None = None
    code: str | int | None = None
    message: str | None = None
    sequence_number: int = 0


class _Ending(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Delta(msgspec.Struct, gc=False):
    """What makes an event of a choice stream more than content."""

    choices: list[_Ending]
    usage: Raw = _ABSENT
    error: Raw = _ABSENT


class _UsageOnly(msgspec.Struct, gc=False):
    usage: Raw = _ABSENT


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_delta = msgspec.json.Decoder(_Delta).decode
_decode_usage_only = msgspec.json.Decoder(_UsageOnly).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


class StreamTap:
    """Passes a stream on and keeps what it says about itself.

    `feed` returns the bytes for the client, `end` the last of them; after `end`, a stream that broke off before its
    terminal event has `failure` set to a truncation. `content_seen` turns true with the first event that a client would
    notice as an answer: until then another upstream may still take over. `deltas` counts the pieces of content, which
    carry about one token each.
    """

    __slots__ = (
        "_finish_reasons",
        "_last_event",
        "_max_one_line",
        "_splitter",
        "_strip",
        "content_seen",
        "deltas",
        "endpoint",
        "failure",
        "response_id",
        "response_status",
        "served_model",
        "service_tier",
        "terminal_seen",
        "usage",
    )

    def __init__(self, endpoint: Endpoint, strip_usage: bool, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.endpoint = endpoint
        self.usage: Usage | None = None
        self.served_model: str | None = None
        self.service_tier: str | None = None
        self.failure: Failure | None = None
        self.response_id: str | None = None
        self.response_status: str | None = None
        self.content_seen = False
        self.deltas = 0
        self.terminal_seen = False
        self._finish_reasons: dict[int, str] = {}
        self._last_event = b""
        self._splitter = SSESplitter(max_event_bytes)
        self._max_one_line = max_event_bytes - 1
        self._strip = strip_usage and endpoint in _CHOICE_ENDPOINTS

    @property
    def finish_reason(self) -> str | None:
        """Return why the answer ended; of several choices, the most telling reason."""
        return most_telling(self._finish_reasons.values())

    @property
    def finish_reasons(self) -> dict[int, str]:
        """Return why each choice ended, by its index."""
        return dict(self._finish_reasons)

    @property
    def last_sequence_number(self) -> int:
        """Return the number of the last event of a Responses stream, 0 if it had none."""
        try:
            return _decode_chunk(event_fields(self._last_event)[1]).sequence_number
        except UNREADABLE:
            return 0

    def feed(self, chunk: bytes) -> bytes:
        """Return what the client gets of this chunk: the chunk itself, unless usage is to be taken out."""
        splitter = self._splitter
        end = len(chunk) - 2
        if (  # exactly one event of one line, which is how a stream usually comes
            splitter.between_events
            and chunk.find(_LF) == end
            and chunk[-1] == _LF
            and _CR not in chunk
            and 0 < end < self._max_one_line
        ):
            return self._pass(chunk)
        events = splitter.feed(chunk)
        if self._strip:
            return b"".join([self._pass(event) for event in events])
        for event in events:
            self._pass(event)
        return chunk

    def end(self) -> bytes:
        """Return the rest of the stream for the client, once the upstream has closed it."""
        rest = self._splitter.flush()
        if rest:
            passed = self._pass(rest)
            rest = passed if self._strip else b""
        if not self.terminal_seen and self.failure is None and _must_end(self.endpoint):
            self.failure = TRUNCATED
        return rest

    def _pass(self, event: bytes) -> bytes:
        """Read one event and return what the client gets of it."""
        if self.content_seen and event.startswith(b"data: {") and type(event) is bytes:
            try:
                delta = _decode_delta(event[6:])
            except UNREADABLE:
                delta = None  # several lines, or not a choice stream
            if delta is not None and _is_plain(delta):
                self._last_event = event
                self.deltas += 1
                return _without_null(event) if self._strip and len(delta.usage) else event
        self._read(event)
        if self._strip and b'"usage"' in event and type(event) is not Fragment:
            return _without_usage(event)
        return event

    def _read(self, event: bytes) -> None:
        if type(event) is Fragment:
            self.content_seen = True  # so large an event can only be content
            return
        self._last_event = event
        if self.content_seen and event.startswith(b"event: response.") and event.find(b".delta\n", 0, 96) > 0:
            self.deltas += 1
            return
        name, data = event_fields(event)
        if not data:
            return
        if data == _DONE:
            self.terminal_seen = True
            return
        try:
            chunk = _decode_chunk(data)
        except msgspec.ValidationError:
            chunk = _lenient_chunk(data)
        except UNREADABLE:
            return  # not JSON: the client's business
        self._learn(name, chunk)

    def _learn(self, name: bytes, chunk: _Chunk) -> None:
        self.served_model = chunk.model or self.served_model
        self.service_tier = chunk.service_tier or self.service_tier
        self.response_id = self.response_id or (chunk.id if chunk.choices is not None else None)
        if len(chunk.usage):
            self.usage = read_usage(chunk.usage) or self.usage  # the last event that reports usage counts
        if chunk.error or name == b"error" or chunk.type == "error":
            self._fail(chunk)
        elif chunk.choices is not None:
            self._learn_choices(chunk.choices)
        else:
            self._learn_typed(chunk.type or name.decode("utf-8", "replace"), chunk)

    def _fail(self, chunk: _Chunk) -> None:
        error = chunk.error
        if not isinstance(error, UpstreamError):
            error = UpstreamError(code=chunk.code, message=error or chunk.message)
        self.failure = classify_error(error)
        if self.failure is None:  # declined by content policy, in mid-stream: an answer that ends here
            self._finish_reasons[0] = "content_filter"
            self.content_seen = self.terminal_seen = True

    def _learn_choices(self, choices: list[_Choice]) -> None:
        for choice in choices:
            if choice.finish_reason is not None:
                self._finish_reasons[choice.index] = choice.finish_reason
                self.content_seen = True
            elif not self.content_seen and _has_content(choice):
                self.content_seen = True
                self.deltas += 1

    def _learn_typed(self, kind: str, chunk: _Chunk) -> None:
        if chunk.response is not None:
            self._learn_response(chunk.response)
        if kind not in _PREFACE_TYPES:
            self.content_seen = True
            self.deltas += kind.endswith(".delta")
        if kind in _TERMINAL_TYPES or kind.endswith(_TERMINAL_SUFFIXES):
            self.terminal_seen = True

    def _learn_response(self, response: AnswerBody) -> None:
        answer = answer_of(Endpoint.RESPONSES, response)
        self.usage = answer.usage or self.usage
        self.served_model = answer.served_model or self.served_model
        self.service_tier = answer.service_tier or self.service_tier
        self.response_id = answer.response_id or self.response_id
        self.response_status = answer.response_status or self.response_status
        self.failure = answer.failure or self.failure
        if answer.finish_reason is not None:
            self._finish_reasons[0] = answer.finish_reason


def _is_plain(delta: _Delta) -> bool:
    if len(delta.error) or len(delta.usage) > _NULL_LENGTH:
        return False
    choices = delta.choices
    if len(choices) == 1:
        return choices[0].finish_reason is None
    return bool(choices) and all(choice.finish_reason is None for choice in choices)


_NULL_LENGTH = 4  # a usage that is absent or `null` is no longer than this, and an object is never this short
_COMPACT_NULL = b',"usage":null'
_NULL_MEMBER = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


def _without_null(event: bytes) -> bytes:
    """Return the event without its top-level `usage`, which is null."""
    start = event.rfind(_COMPACT_NULL)
    if start >= 0:
        rest = event[start + len(_COMPACT_NULL) :]
        # The one closing brace behind it is the event's own, so that this is a member of the event itself.
        if rest.count(b"}") == 1 and rest.rstrip().endswith(b"}"):
            return event[:start] + rest
    return _without_usage(event)


def _without_usage(event: bytes) -> bytes:
    """Return nothing for a usage event; else the event without a top-level `usage` that is null."""
    data = event_fields(event)[1]
    try:
        members = _decode_object(data)
    except UNREADABLE:
        return event
    if members.get("usage", True) is None:
        del members["usage"]
        for found in _NULL_MEMBER.finditer(event):
            candidate = event[: found.start()] + event[found.end() :]
            if _same(event_fields(candidate)[1], members):
                return candidate
        return event
    return b"" if "usage" in members and members.get("choices") == [] else event


def _same(data: bytes, members: dict[str, Any]) -> bool:
    try:
        return _decode_object(data) == members
    except UNREADABLE:
        return False


def _has_content(choice: _Choice) -> bool:
    if choice.delta:
        return any(
            bytes(value) not in _EMPTY_VALUES for name, value in choice.delta.items() if name not in _FRAMING_MEMBERS
        )
    return len(choice.text) > 0 and bytes(choice.text) not in _EMPTY_VALUES


def _lenient_chunk(data: bytes) -> _Chunk:
    """Read only the usage: some member has an unknown shape, and what is to be paid matters most."""
    try:
        return _Chunk(usage=_decode_usage_only(data).usage)
    except UNREADABLE:
        return _Chunk()


def _must_end(endpoint: Endpoint) -> bool:
    """Tell whether streams of this endpoint have a known terminal event, so that its absence is a truncation."""
    return endpoint in _CHOICE_ENDPOINTS or endpoint is Endpoint.RESPONSES
