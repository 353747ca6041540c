"""Showing an answer to the application: bytes as they come, the upstream slowed by a slow reader, honest endings."""

from __future__ import annotations

import asyncio
import contextlib

from sluice_core.answer import Answer
from sluice_core.classify import TRUNCATED, Failure
from sluice_core.errors import Refusal, RefusalCode, refuse
from sluice_core.records import Outcome
from sluice_core.tap import StreamTap
from sluice_sidecar.attempt import Opaque, Stream, Whole, failure_of, read_events
from sluice_sidecar.call import Call
from sluice_sidecar.downstream import ClientGoneError
from sluice_sidecar.headers import Field, Fields
from sluice_sidecar.transport import TransportError, UpstreamResponse

MAX_DRAINED_BYTES = 64 * 1024 * 1024
TOO_LATE = Failure(outcome=Outcome.TIMEOUT, code="total_timeout")
_LENGTH = frozenset({"content-length"})
_LENGTH_AND_CODING = _LENGTH | {"content-encoding"}


async def relay_whole(call: Call, whole: Whole, extra: list[Field]) -> None:
    """Send an answer that is in memory."""
    _answered(call, whole.status, whole.fields)
    learn(call, whole.answer)
    passed = whole.fields.passed_back(_LENGTH)
    try:
        downstream = call.downstream
        if downstream.put_whole(whole.status, whole.reason, extra, whole.body, passed=passed):
            await downstream.drain()
    except ClientGoneError:
        call.outcome = call.outcome or Outcome.CLIENT_CLOSED


async def relay_opaque(call: Call, opaque: Opaque, extra: list[Field]) -> Failure | None:
    """Pass an answer on without looking into it; return why it broke off, if it did.

    Raises:
        ClientGoneError: the application has gone.
    """
    response = opaque.response
    _answered(call, response.status, response.fields)
    length = _content_length(response.fields)
    downstream = call.downstream
    whole = False
    try:
        passed = response.fields.passed_back(_LENGTH)
        downstream.start(response.status, response.reason, extra, length, passed=passed)
        async with asyncio.timeout_at(call.deadline):
            while chunk := await response.next_chunk():
                await downstream.write(chunk)
        downstream.finish()
        whole = True
    except TransportError as error:
        downstream.break_off()
        return failure_of(error)
    except TimeoutError:
        downstream.break_off()
        return TOO_LATE
    finally:
        if whole:
            response.release()
        else:
            response.abort()
    return None


async def relay_stream(call: Call, stream: Stream, extra: list[Field]) -> Failure | None:
    """Pass a stream of events on; return why it failed, if it did. Nothing of it is ever generated a second time.

    Raises:
        ClientGoneError: the application has gone, and the rest is not wanted.
    """
    response, tap = stream.response, stream.tap
    _answered(call, response.status, response.fields)
    if tap.content_seen:
        call.first_token_at = call.clock()
    writer = _StreamWriter(call, stream)
    try:
        passed = response.fields.passed_back(_LENGTH if stream.decoder is None else _LENGTH_AND_CODING)
        writer.start(response, passed, extra, stream.held)
        async with asyncio.timeout_at(call.deadline):
            await _pass_on(call, stream, writer)
    except (TransportError, TimeoutError) as error:
        if not tap.terminal_seen:
            failure = failure_of(error) if isinstance(error, TransportError) else TOO_LATE
            writer.fail(failure, tap)
            return failure
    except (asyncio.CancelledError, ClientGoneError) as gone:
        writer.leave_early(gone, tap)
    finally:
        learn(call, stream_answer(tap))
        call.streamed_deltas = tap.deltas
        if writer.ended:
            response.release()
        else:
            response.abort()
    if tap.failure is TRUNCATED:
        writer.fail(tap.failure, tap)
    else:
        writer.finish()
    return tap.failure


async def _pass_on(call: Call, stream: Stream, writer: _StreamWriter) -> None:
    response, decoder, tap = stream.response, stream.decoder, stream.tap

    def show(chunk: bytes) -> bool:
        """Pass on what has come; tell whether to wait until the application has read some."""
        passed, writer.ended = read_events(chunk, decoder, tap)
        if call.first_token_at is None and tap.content_seen:
            call.first_token_at = call.clock()
        return bool(passed) and writer.write(passed)

    while not writer.ended:
        if (chunk := response.take()) is None:
            await response.pour(show)
            await writer.drain()
        elif show(chunk):
            await writer.drain()


class _StreamWriter:
    """Writes events to the application; once it has gone, only counts them, as far as the rule wants them read."""

    __slots__ = ("_call", "_discarded", "_gone", "_last", "_said_all", "_tap", "ended")

    def __init__(self, call: Call, stream: Stream) -> None:
        self._call = call
        self._tap = stream.tap
        self.ended = stream.ended
        self._said_all = False
        self._gone = False
        self._discarded = 0
        self._last = b""

    def start(self, response: UpstreamResponse, passed: bytes, extra: list[Field], held: bytes) -> None:
        self._last = held
        try:
            self._call.downstream.start(response.status, response.reason, extra, None, passed=passed, body=held)
            self._said_all = self._tap.terminal_seen
        except ClientGoneError:
            self._leave()

    def write(self, chunk: bytes) -> bool:
        """Write, or count, the next bytes; tell whether to wait until the application has read some."""
        self._last = chunk
        if not self._gone:
            try:
                full = self._call.downstream.put(chunk)
                self._said_all = self._tap.terminal_seen
                return full
            except ClientGoneError:
                self._leave()
        elif (discarded := self._discarded + len(chunk)) > MAX_DRAINED_BYTES:
            raise ClientGoneError
        else:
            self._discarded = discarded
        return False

    async def drain(self) -> None:
        """Wait until the application has read some."""
        try:
            await self._call.downstream.drain()
        except ClientGoneError:
            self._leave()

    def _leave(self) -> None:
        if not self._call.drains:
            raise ClientGoneError
        self._gone = True

    def leave_early(self, gone: BaseException, tap: StreamTap) -> None:
        """Take it that the application has gone. It has its whole answer if the terminal event was written:
        clients close as soon as they have read that. Raise what says that it has gone otherwise."""
        if not self._said_all:
            if isinstance(gone, asyncio.CancelledError):
                self.cut(tap)
            raise gone
        self._gone = True

    def finish(self) -> None:
        if not self._gone:
            self._call.downstream.finish()

    def fail(self, failure: Failure, tap: StreamTap) -> None:
        """End with an error event in the endpoint's own shape. There is no `[DONE]` after it."""
        self.write(self._event(failure.code or failure.outcome.value, tap))
        self.finish()

    def cut(self, tap: StreamTap) -> None:
        """End at once, because the sidecar stops; harmless if it is the application that has gone."""
        if not self._gone:
            with contextlib.suppress(ClientGoneError, ConnectionError):
                self._call.downstream.write_last(self._event("the sidecar stops", tap))

    def _event(self, why: str, tap: StreamTap) -> bytes:
        event = interrupted(why).event(self._call.endpoint, tap.last_sequence_number + 1)
        return event if self._last.endswith((b"\n\n", b"\r\r", b"\r\n\r\n")) else b"\n\n" + event


def interrupted(why: str) -> Refusal:
    """Return what an application is told when a stream breaks off after it has begun."""
    return refuse(
        RefusalCode.STREAM_INTERRUPTED,
        f"The stream broke off before its end ({why}); what has been received is incomplete.",
    )


def stream_answer(tap: StreamTap) -> Answer:
    """Return what a stream said about itself so far."""
    return Answer(
        usage=tap.usage,
        served_model=tap.served_model,
        service_tier=tap.service_tier,
        finish_reason=tap.finish_reason,
        response_id=tap.response_id,
        response_status=tap.response_status,
    )


def learn(call: Call, answer: Answer) -> None:
    """Take what an answer said about itself into the call."""
    call.usage = answer.usage
    call.served_model = answer.served_model
    call.service_tier = answer.service_tier
    call.finish_reason = answer.finish_reason
    call.response_id = answer.response_id
    call.response_status = answer.response_status


def _answered(call: Call, status: int, fields: Fields) -> None:
    call.status = status
    call.upstream_request_id = fields.get("x-request-id", call.upstream_request_id)


def _content_length(fields: Fields) -> int | None:
    value = fields.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else None
