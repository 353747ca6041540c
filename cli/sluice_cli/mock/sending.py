"""Turning an answer into a response: headers, the body through its faults, and the end of the ledger entry."""

import asyncio
import email.utils
import gzip
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from aiohttp import hdrs, web

from sluice_cli.mock.answers import BytesAnswer, Frame, JsonAnswer, StreamAnswer
from sluice_cli.mock.effects import Effect, Timing
from sluice_cli.mock.emission import Cut, Emitter, abort
from sluice_cli.mock.errors import ApiError, error_body
from sluice_cli.mock.ledger import LedgerEntry, Outcome, Usage
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JSON_CONTENT_TYPE, SSE_CONTENT_TYPE, encode_json

_HTML: Final = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><center><h1>502 Bad Gateway</h1></center>"
    b"</body>\r\n</html>\r\n"
)
_RAW_CHUNK_BYTES: Final = 1 << 16


class Sender:
    """Sends the one response of a request."""

    __slots__ = ("_draw", "_entry", "_request", "_started")

    def __init__(self, request: web.BaseRequest, entry: LedgerEntry, started: float, draw: Callable[[], float]) -> None:
        self._request = request
        self._entry = entry
        self._started = started
        self._draw = draw

    def headers(self, content_type: str, effect: Effect | None, rate: Mapping[str, str]) -> dict[str, str]:
        """Write the headers that every answer of OpenAI has."""
        milliseconds = max(1, int((time.perf_counter() - self._started) * 1000))
        headers = {
            "Content-Type": content_type,
            "x-request-id": self._entry.request_id,
            "openai-organization": self._entry.organization or "org-mock",
            "openai-processing-ms": str(milliseconds),
            "openai-version": "2020-10-01",
            **rate,
        }
        if effect is not None:
            headers |= _ordered_headers(effect)
        return headers

    def html(self, effect: Effect) -> web.Response:
        """Answer 200 (or the status ordered) with a page that no client of the API expects."""
        self._finish(Outcome.FAILED, effect.status or 200, len(_HTML))
        headers = self.headers("text/html", effect, {})
        return web.Response(body=_HTML, status=effect.status or 200, headers=headers)

    def error(self, exc: ApiError, effect: Effect | None, rate: Mapping[str, str]) -> web.Response:
        """Answer with an error body."""
        body = encode_json(error_body(exc.shape))
        self._entry.error_code = exc.shape.code or exc.shape.type
        self._finish(Outcome.ERROR, exc.shape.status, len(body))
        headers = self.headers(JSON_CONTENT_TYPE, effect, rate) | exc.headers
        return web.Response(body=body, status=exc.shape.status, headers=headers)

    async def send(self, call: Call, answer: JsonAnswer | StreamAnswer | BytesAnswer) -> web.StreamResponse:
        """Send an answer as the faults of its call say."""
        if isinstance(answer, JsonAnswer):
            return await self._json(call, answer)
        if isinstance(answer, StreamAnswer):
            return await self._stream(call, answer)
        return await self._bytes(call, answer)

    async def _json(self, call: Call, answer: JsonAnswer) -> web.StreamResponse:
        effect, entry = call.effect, self._entry
        body = encode_json(answer.payload)
        gap = Timing.of(effect).gap if effect.gap_seconds is not None else None
        if gap is not None and answer.events:
            # The whole answer takes as long to generate as the stream of it would.
            await asyncio.sleep(sum(gap.draw(self._draw()) for _ in range(answer.events)))
        headers = self.headers(JSON_CONTENT_TYPE, effect, call.rate_headers)
        if effect.gzip_body:
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        entry.usage, entry.usage_sent = answer.usage, answer.usage is not None and answer.usage_sent
        entry.error_code = answer.failure
        outcome = Outcome.FAILED if answer.failure else Outcome.COMPLETED
        if effect.http10:
            return self._http10(headers, body, outcome)
        if not _odd(effect):
            entry.sent_sha256 = hashlib.sha256(body).hexdigest()
            self._finish(outcome, 200, len(body))
            return web.Response(body=body, headers=headers)
        response = web.StreamResponse(headers=headers)
        response.content_length = len(body)
        return await self._emit(call, response, _one_frame(body, answer.usage), outcome, answer.usage)

    async def _stream(self, call: Call, answer: StreamAnswer) -> web.StreamResponse:
        self._entry.error_code = answer.failure
        headers = self.headers(SSE_CONTENT_TYPE, call.effect, call.rate_headers)
        headers["Cache-Control"] = "no-cache"
        outcome = Outcome.FAILED if answer.failure else Outcome.COMPLETED
        self._entry.usage_sent = answer.usage is not None and answer.usage_sent
        if call.effect.http10:
            self._entry.usage = answer.usage
            return self._http10(headers, b"".join(frame.data for frame in answer.frames), outcome)
        response = web.StreamResponse(headers=headers)
        return await self._emit(call, response, answer, outcome, answer.usage)

    async def _emit(
        self,
        call: Call,
        response: web.StreamResponse,
        answer: StreamAnswer,
        outcome: Outcome,
        usage: Usage | None,
    ) -> web.StreamResponse:
        """Write every frame; bill all of it, or what had been generated when it was broken off."""
        entry = self._entry
        entry.status = 200
        generated = 0
        whole = answer.detached
        if whole:
            entry.usage = usage  # now, so that a cancel that comes meanwhile has the last word
        try:
            await response.prepare(self._request)
            emitter = Emitter(self._request, response, call.effect, entry, self._draw)
            for frame in answer.frames:
                await _until(frame.due_seconds)
                generated = frame.output_tokens
                await emitter.event(frame.data, paced=frame.due_seconds is None)
            await emitter.finish()
            entry.outcome = outcome
            if not whole:
                entry.usage = usage
        except Cut:
            self._break_off(Outcome.CUT, None if whole else usage, generated)
            abort(self._request, reset=bool(call.effect.reset))
        except (asyncio.CancelledError, ConnectionError):
            self._break_off(Outcome.CLIENT_CLOSED, None if whole else usage, generated)
            raise
        return response

    async def _bytes(self, call: Call, answer: BytesAnswer) -> web.StreamResponse:
        entry = self._entry
        headers = self.headers(answer.content_type, call.effect, call.rate_headers) | dict(answer.headers)
        response = web.StreamResponse(headers=headers)
        chunks = answer.chunks
        response.content_length = len(chunks) if isinstance(chunks, bytes) else answer.length_bytes
        entry.status, entry.usage, entry.usage_sent = 200, answer.usage, answer.usage_sent
        emitter = Emitter(self._request, response, call.effect, entry, self._draw, hashed=False)
        try:
            await response.prepare(self._request)
            if isinstance(chunks, bytes):
                for at in range(0, len(chunks), _RAW_CHUNK_BYTES):
                    await emitter.raw(chunks[at : at + _RAW_CHUNK_BYTES])
            else:
                async for chunk in chunks:
                    await emitter.raw(chunk)
            await emitter.finish()
            entry.outcome = Outcome.COMPLETED
        except Cut:
            entry.outcome = Outcome.CUT
            abort(self._request, reset=bool(call.effect.reset))
        return response

    def _break_off(self, outcome: Outcome, usage: Usage | None, generated: int) -> None:
        entry = self._entry
        entry.outcome = outcome
        entry.usage_sent = False
        if usage is not None:
            entry.usage = msgspec.structs.replace(
                usage,
                output_tokens=min(generated, usage.output_tokens),
                reasoning_tokens=min(usage.reasoning_tokens, generated),
            )

    def _http10(self, headers: Mapping[str, str], body: bytes, outcome: Outcome) -> web.Response:
        """Answer as an HTTP/1.0 server would: no length, no chunks, the end of the connection ends the body."""
        transport = self._request.transport
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if transport is not None:
            transport.write(f"HTTP/1.0 200 OK\r\n{lines}Connection: close\r\n\r\n".encode() + body)
            transport.close()
        self._finish(outcome, 200, len(body))
        return web.Response()  # nothing of it is sent: the connection is closing

    def _finish(self, outcome: Outcome, status: int, sent_bytes: int) -> None:
        self._entry.outcome = outcome
        self._entry.status = status
        self._entry.sent_bytes = sent_bytes


def refusal(sender: Sender, call: Call | None, exc: ApiError) -> web.Response:
    """Answer a call that was refused, with what its faults say about the headers."""
    if call is None:
        return sender.error(exc, None, {})
    return sender.error(exc, call.effect, call.rate_headers)


def _ordered_headers(effect: Effect) -> dict[str, str]:
    headers = dict(effect.response_headers or {})
    if effect.retry_after is not None:
        written = effect.retry_after
        if written.startswith("date:"):
            written = email.utils.formatdate(time.time() + float(written.removeprefix("date:")), usegmt=True)
        headers["retry-after"] = written
    if effect.retry_after_ms is not None:
        headers["retry-after-ms"] = effect.retry_after_ms
    if effect.should_retry is not None:
        headers["x-should-retry"] = "true" if effect.should_retry else "false"
    if effect.http10:
        headers[hdrs.CONNECTION] = "close"
    return headers


def _odd(effect: Effect) -> bool:
    """Whether a JSON body has to be written bit by bit."""
    return not (
        effect.chunking is None
        and effect.cut_at_byte is None
        and effect.cut_at_event is None
        and effect.stall_at_event is None
    )


def _one_frame(body: bytes, usage: Usage | None) -> StreamAnswer:
    generated = 0 if usage is None else usage.output_tokens
    return StreamAnswer(frames=[Frame(data=body, output_tokens=generated)], usage=usage)


async def _until(due_seconds: float | None) -> None:
    if due_seconds is None:
        return
    left = due_seconds - asyncio.get_running_loop().time()
    if left > 0:
        await asyncio.sleep(left)
