"""One attempt at an upstream, up to the point where its answer is certain enough to be shown to the application."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable

import msgspec

from sluice_core.answer import Answer, read_answer
from sluice_core.api.modelroute import Endpoint
from sluice_core.classify import Failure, Scope, classify_response
from sluice_core.ratelimit_headers import read_limits, refill_seconds
from sluice_core.records import Outcome
from sluice_core.tap import StreamTap
from sluice_sidecar.aside import LARGE_BYTES, aside
from sluice_sidecar.headers import Fields, media_type
from sluice_sidecar.transport import TransportError, UpstreamRequest, UpstreamResponse, UpstreamTransport

MAX_WHOLE_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 1024 * 1024
MAX_DECODED_CHUNK_BYTES = 16 * 1024 * 1024
MAX_STRIPPED_EVENT_BYTES = 32 * 1024 * 1024
"""Where something may have to be taken out of it, an event has to be whole first; larger ones pass as they are."""

HOLD_BYTES = 64 * 1024
HOLD_SECONDS = 5.0
"""A stream's head is held back until its first content, so that a fallback before it stays invisible; not longer."""

UNSENDABLE = Failure(outcome=Outcome.CONNECTION_ERROR, code="invalid_request", scope=Scope.UPSTREAM)


class Order(UpstreamRequest, frozen=True, kw_only=True):
    """What one attempt sends, and how its answer is read.

    `reads` tells that the answer is looked into; `strips_usage` that its usage event is only there because we asked;
    `edited` names the request members that we set.
    """

    endpoint: Endpoint
    reads: bool
    strips_usage: bool
    edited: frozenset[str]


class Whole(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is in memory: every JSON answer that is looked into, and every error."""

    status: int
    reason: str
    fields: Fields
    body: bytes
    answer: Answer


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of events whose content has begun, or that has been held back for long enough. `held` goes first."""

    response: UpstreamResponse
    decoder: Decoder | None
    tap: StreamTap
    held: bytes
    ended: bool


class Opaque(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is only passed on: a file, audio, a list."""

    response: UpstreamResponse


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """No answer worth showing. `whole` is what the upstream said, if it said anything."""

    failure: Failure
    whole: Whole | None = None


Result = Whole | Stream | Opaque | Failed


class Decoder:
    """Undoes a content coding that the upstream applied although it was asked not to."""

    __slots__ = ("_inflate",)

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its header

    def feed(self, chunk: bytes, limit: int) -> bytes:
        """Return the decoded bytes.

        Raises:
            TransportError: they are malformed, or more than `limit`.
        """
        try:
            decoded = self._inflate.decompress(chunk, limit)
        except zlib.error:
            raise TransportError(Outcome.PROVIDER_ERROR, "invalid_encoding") from None
        if self._inflate.unconsumed_tail:
            raise TransportError(Outcome.PROVIDER_ERROR, "response_too_large")
        return decoded


def failure_of(error: TransportError) -> Failure:
    """Return a transport's fault as a failure: what cannot be reached fails for every model, the rest for this one."""
    unreachable = error.outcome is Outcome.CONNECTION_ERROR or error.code == "connect_timeout"
    scope = Scope.UPSTREAM if unreachable else Scope.MODEL
    return Failure(outcome=error.outcome, code=error.code, scope=scope)


def with_refill(failed: Failed, tokens: int) -> Failed:
    """Return the failure with a time to wait for, where a 429 names none: until the limits have room for `tokens`."""
    failure, whole = failed.failure, failed.whole
    if failure.outcome is not Outcome.THROTTLED or failure.retry_after_seconds is not None or whole is None:
        return failed
    seconds = refill_seconds(read_limits(whole.fields), tokens)
    if seconds is None:
        return failed
    return Failed(failure=msgspec.structs.replace(failure, retry_after_seconds=seconds), whole=whole)


async def attempt(transport: UpstreamTransport, order: Order) -> Result:
    """Send the request once and return what came of it. The connection is closed unless the result holds it."""
    try:
        response = await transport.send(order)
    except TransportError as error:
        return Failed(failure=failure_of(error))
    handed_over = False
    try:
        received = _receive(response, order)
        result = received if isinstance(received, Whole | Failed | Opaque) else await received
        handed_over = isinstance(result, Stream | Opaque)
        return result
    except TransportError as error:
        return Failed(failure=failure_of(error))
    finally:
        if not handed_over:
            response.release()


def _receive(response: UpstreamResponse, order: Order) -> Whole | Failed | Opaque | Awaitable[Result]:
    """Return the answer, or what to await where it is not all there yet."""
    fields = response.fields
    if response.status >= 400:
        return _receive_error(response, order)
    if not order.reads or order.method == "HEAD":
        return Opaque(response=response)
    kind = media_type(fields.get("content-type", ""))
    coding = fields.get("content-encoding", "identity").lower()
    decoder = Decoder() if coding in ("gzip", "deflate", "x-gzip") else None
    if coding != "identity" and decoder is None:
        return Opaque(response=response)  # a coding that nobody asked for: better unread than broken
    if kind == "text/event-stream":
        return _hold(response, decoder, _tap(order))
    if kind in ("application/json", "text/html", "text/plain", ""):
        return _receive_whole(response, decoder, order)
    return Opaque(response=response)


def _tap(order: Order) -> StreamTap:
    if order.strips_usage:
        return StreamTap(order.endpoint, strip_usage=True, max_event_bytes=MAX_STRIPPED_EVENT_BYTES)
    return StreamTap(order.endpoint, strip_usage=False)


async def _receive_error(response: UpstreamResponse, order: Order) -> Result:
    if order.method == "HEAD":
        return _whole(response, b"", Answer(), decoded=False)
    decoder = Decoder() if response.fields.get("content-encoding", "").lower() in ("gzip", "deflate") else None
    body = await _read(response, decoder, MAX_ERROR_BYTES)
    failure = classify_response(response.status, response.fields, body, edited=order.edited)
    whole = _whole(response, body, Answer(failure=failure), decoded=decoder is not None)
    return whole if failure is None else Failed(failure=failure, whole=whole)


def _receive_whole(
    response: UpstreamResponse, decoder: Decoder | None, order: Order
) -> Whole | Failed | Awaitable[Result]:
    body = response.take() if decoder is None else None
    if body is None or not response.ended or len(body) > LARGE_BYTES:
        return _gather_whole(response, decoder, order, body or b"")
    answer = read_answer(order.endpoint, response.status, body)  # as small as most, it came with its head
    whole = Whole(status=response.status, reason=response.reason, fields=response.fields, body=body, answer=answer)
    return whole if answer.failure is None else Failed(failure=answer.failure, whole=whole)


async def _gather_whole(response: UpstreamResponse, decoder: Decoder | None, order: Order, begun: bytes) -> Result:
    body = await _read(response, decoder, MAX_WHOLE_BYTES, begun)
    place = order.endpoint, response.status
    answer = read_answer(*place, body) if len(body) <= LARGE_BYTES else await aside(read_answer, *place, body)
    whole = _whole(response, body, answer, decoded=decoder is not None)
    return whole if answer.failure is None else Failed(failure=answer.failure, whole=whole)


def _whole(response: UpstreamResponse, body: bytes, answer: Answer, *, decoded: bool) -> Whole:
    fields = response.fields.without("content-encoding") if decoded else response.fields
    return Whole(status=response.status, reason=response.reason, fields=fields, body=body, answer=answer)


async def _read(response: UpstreamResponse, decoder: Decoder | None, limit: int, begun: bytes = b"") -> bytes:
    parts, size = [begun], len(begun)
    while chunk := await response.next_chunk():
        if decoder is not None:
            chunk = decoder.feed(chunk, limit)
        size += len(chunk)
        if size > limit:
            raise TransportError(Outcome.PROVIDER_ERROR, "response_too_large")
        parts.append(chunk)
    return b"".join(parts)


async def _hold(response: UpstreamResponse, decoder: Decoder | None, tap: StreamTap) -> Result:
    """Read on until the stream has content, has failed, has ended, or has been held back for long enough."""
    held = bytearray()
    ended = False
    try:
        async with asyncio.timeout(HOLD_SECONDS):
            while not (tap.content_seen or tap.terminal_seen or tap.failure or ended) and len(held) <= HOLD_BYTES:
                if (chunk := response.take()) is None:
                    await response.arrival()
                    continue
                passed, ended = read_events(chunk, decoder, tap)
                held += passed
            if not tap.content_seen and tap.failure is not None:
                return await _failed_stream(response, decoder, tap, held, ended)
    except TimeoutError:
        pass
    return Stream(response=response, decoder=decoder, tap=tap, held=bytes(held), ended=ended)


def read_events(chunk: bytes, decoder: Decoder | None, tap: StreamTap) -> tuple[bytes, bool]:
    """Return what the application gets of the next bytes of a stream, and whether that is the last.

    Raises:
        TransportError: they are in a content coding, and malformed.
    """
    if not chunk:
        return tap.end(), True
    return tap.feed(chunk if decoder is None else decoder.feed(chunk, MAX_DECODED_CHUNK_BYTES)), False


async def _failed_stream(
    response: UpstreamResponse, decoder: Decoder | None, tap: StreamTap, held: bytearray, ended: bool
) -> Failed:
    """A stream that failed before its content: its few bytes are kept, to be shown if nothing else can be done."""
    failure = tap.failure
    assert failure is not None  # noqa: S101 - the caller has looked
    while not ended and len(held) <= HOLD_BYTES:
        passed, ended = read_events(await response.next_chunk(), decoder, tap)
        held += passed
    return Failed(failure=failure, whole=_whole(response, bytes(held), Answer(failure=failure), decoded=bool(decoder)))
