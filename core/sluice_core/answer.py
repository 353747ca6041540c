"""What a complete answer says about itself: usage in one shape for every endpoint, model and tier served, failure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw

from sluice_core.api.base import Value
from sluice_core.api.modelroute import Endpoint
from sluice_core.classify import Failure, Scope, UpstreamError, classify_error, classify_response
from sluice_core.records import Outcome
from sluice_core.untrusted import UNREADABLE
from sluice_core.usage import Usage


class Answer(Value, frozen=True, kw_only=True):
    """What was read from one answer. `usage` is None if it reported none; then the ledger has to estimate.

    `failure` is set for a 4xx and 5xx and also for a failure inside a 200. `response_status` is the Responses API's
    (`completed`, `queued`, `in_progress`, `incomplete`, `failed`, `cancelled`), or a batch's.
    """

    usage: Usage | None = None
    served_model: str | None = None
    service_tier: str | None = None
    finish_reason: str | None = None
    failure: Failure | None = None
    response_id: str | None = None
    response_status: str | None = None


class _InputDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """Every name that the endpoints have for the same thing; realtime and transcription say `token`, not `tokens`."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    input_tokens_details: _InputDetails | None = None
    input_token_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    output_token_details: _OutputDetails | None = None
    type: str | None = None
    seconds: float | None = None


_decode_usage = msgspec.json.Decoder(_Usage | None).decode
_NO_INPUT_DETAILS = _InputDetails()
_NO_OUTPUT_DETAILS = _OutputDetails()


def read_usage(raw: bytes | Raw) -> Usage | None:
    """Return the usage that a `usage` member holds, in the shape of any endpoint; None if it reports nothing."""
    try:
        wire = _decode_usage(raw)
    except UNREADABLE:
        return None
    if wire is None:
        return None
    input_tokens = wire.prompt_tokens if wire.prompt_tokens is not None else wire.input_tokens
    output_tokens = wire.completion_tokens if wire.completion_tokens is not None else wire.output_tokens
    if input_tokens is None and output_tokens is None and wire.seconds is None:
        return None
    into = wire.prompt_tokens_details or wire.input_tokens_details or wire.input_token_details or _NO_INPUT_DETAILS
    out = (
        wire.completion_tokens_details or wire.output_tokens_details or wire.output_token_details or _NO_OUTPUT_DETAILS
    )
    usage = Usage(
        input_tokens=input_tokens or 0,
        output_tokens=output_tokens or 0,
        cached_input_tokens=into.cached_tokens or 0,
        cache_write_tokens=into.cache_write_tokens or 0,
        reasoning_tokens=out.reasoning_tokens or 0,
        audio_input_tokens=into.audio_tokens or 0,
        audio_output_tokens=out.audio_tokens or 0,
        image_input_tokens=into.image_tokens or 0,
        image_output_tokens=out.image_tokens or 0,
        audio_input_milliseconds=0 if wire.seconds is None else _milliseconds(wire.seconds),
    )
    figures = msgspec.structs.astuple(usage)
    return usage if min(figures) >= 0 else Usage(**_not_negative(usage))


def _not_negative(usage: Usage) -> dict[str, int]:
    return {name: max(0, figure) for name, figure in msgspec.structs.asdict(usage).items()}


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000) if 0 < seconds < 1e9 else 0


_ABSENT = Raw(b"")


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class AnswerBody(msgspec.Struct, gc=False):
    """The members of an answer that are read: a completion, a response object, a batch."""

    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    status: str | None = None
    usage: Raw = _ABSENT
    choices: list[_Choice] | None = None
    error: UpstreamError | None = None
    incomplete_details: _Incomplete | None = None


class _LenientBody(msgspec.Struct, gc=False):
    usage: Raw = _ABSENT


_decode_body = msgspec.json.Decoder(AnswerBody).decode
_decode_lenient = msgspec.json.Decoder(_LenientBody).decode

_JSON_ONLY = frozenset(
    {
        Endpoint.CHAT_COMPLETIONS,
        Endpoint.RESPONSES,
        Endpoint.COMPLETIONS,
        Endpoint.EMBEDDINGS,
        Endpoint.MODERATIONS,
    }
)
_FAILS_IN_BAND = _JSON_ONLY | {Endpoint.IMAGES, Endpoint.AUDIO, Endpoint.REALTIME}
_NOT_JSON = Failure(outcome=Outcome.PROVIDER_ERROR, code="invalid_response", status=200, scope=Scope.UPSTREAM)

FINISH_REASONS = ("error", "content_filter", "length", "max_output_tokens", "tool_calls", "function_call", "stop")
"""The known reasons, the most telling first: of several choices, the answer reports the first of these."""


def read_answer(endpoint: Endpoint, status: int, body: bytes) -> Answer:
    """Return what an answer says about itself. The body is plain, not compressed.

    Responses of kinds that hold none of this (a list, a file, plain text) give an empty answer. Note that fetching a
    stored response or a batch reports its usage again: what was charged once is for the caller to know.
    """
    if status >= 400:
        return Answer(failure=classify_response(status, {}, body))
    try:
        fields = _decode_body(body)
    except msgspec.ValidationError:
        fields = _lenient_fields(body)
    except UNREADABLE:
        return Answer(failure=_NOT_JSON if status == 200 and endpoint in _JSON_ONLY else None)
    return answer_of(endpoint, fields)


def _lenient_fields(body: bytes) -> AnswerBody:
    """Read only the usage: some member has an unknown shape, and what is to be paid matters most."""
    try:
        return AnswerBody(usage=_decode_lenient(body).usage)
    except UNREADABLE:
        return AnswerBody()


def answer_of(endpoint: Endpoint, fields: AnswerBody) -> Answer:
    """Return what the members of an answer, or of a stream's terminal response object, say.

    A batch or a job that failed is no failure of the call that asks for it: only generating endpoints fail in a 200.
    """
    return Answer(
        usage=read_usage(fields.usage) if len(fields.usage) else None,
        served_model=fields.model,
        service_tier=fields.service_tier,
        finish_reason=_finish_reason(fields),
        failure=_failure(endpoint, fields) if fields.error is not None or fields.status is not None else None,
        response_id=fields.id,
        response_status=fields.status,
    )


def _finish_reason(fields: AnswerBody) -> str | None:
    if fields.choices:
        if len(fields.choices) == 1:
            return fields.choices[0].finish_reason or None
        return most_telling(choice.finish_reason for choice in fields.choices)
    if fields.incomplete_details is not None:
        return fields.incomplete_details.reason or "incomplete"
    return "stop" if fields.status == "completed" else None


def most_telling(reasons: Iterable[str | None]) -> str | None:
    """Return one finish reason for several choices: the worst of the known ones, else any."""
    present = {reason for reason in reasons if reason}
    return next((reason for reason in FINISH_REASONS if reason in present), min(present, default=None))


def _failure(endpoint: Endpoint, fields: AnswerBody) -> Failure | None:
    """Return the failure inside a 200: a response that failed, or an error object where an answer should be."""
    if endpoint not in _FAILS_IN_BAND:
        return None
    if fields.status == "failed":
        return classify_error(fields.error or UpstreamError(code="server_error"))
    if fields.error is not None and fields.status is None:
        return classify_error(fields.error)
    return None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    response: AnswerBody | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_CLOSING_EVENTS = frozenset({"response.done", "response.completed", "response.failed", "response.incomplete"})


def read_event(endpoint: Endpoint, message: str | bytes) -> Answer | None:
    """Return the answer that one message of a WebSocket closes, realtime or Responses; None for all other messages."""
    try:
        event = _decode_event(message)
    except UNREADABLE:
        return None
    if event.response is None or event.type not in _CLOSING_EVENTS:
        return None
    return answer_of(endpoint, event.response)
