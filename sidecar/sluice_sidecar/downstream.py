"""The application's side of a call: reading its body within bounds, writing the answer with back-pressure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from http import HTTPStatus

from aiohttp import web

from sluice_sidecar.headers import Field, lines_of
from sluice_sidecar.incoming import Incoming

MAX_BODY_BYTES = 64 * 1024 * 1024
BODY_IDLE_SECONDS = 60.0
_DRAINED_BYTES = 16_384
_NO_BODY = frozenset({204, 304})
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class BodyTooLargeError(Exception):
    """The application sends more than is read into memory."""


class BrokenBodyError(Exception):
    """The application stopped in the middle of its body, or framed it wrongly."""


class ClientGoneError(Exception):
    """The application has closed the connection."""


class Reply(web.StreamResponse):
    """Tells aiohttp's server that the answer is already written, and whether the connection may be used again."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:  # noqa: ARG002 - aiohttp's signature
        """Write nothing: the head is out."""
        return

    async def write_eof(self, data: bytes = b"") -> None:
        """Write nothing: the body is out."""


_KEPT, _CLOSED = Reply(keep_alive=True), Reply(keep_alive=False)


class Downstream:
    """One request of the application and the answer to it."""

    __slots__ = ("_chunked", "_closing", "_head_only", "_keep_alive", "_request", "bytes_written", "started")

    def __init__(self, request: Incoming, *, closing: bool) -> None:
        """With `closing`, the connection ends with this answer: the process is about to stop."""
        self._request = request
        self._closing = closing
        self._keep_alive = False
        self._chunked = False
        self._head_only = request.method == "HEAD"
        self.started = False
        self.bytes_written = 0

    # --- the request's body

    def body_at_hand(self) -> bytes | None:
        """Return the whole body if it came with its head, as most do that are small; None if it is for `read_body`."""
        content = self._request.content
        if not content.is_eof():
            return None
        return b"" if content.at_eof() else content.read_nowait()

    async def read_body(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """Return the whole body.

        Raises:
            BodyTooLargeError: it is larger than `limit`; at most that much has been read.
            BrokenBodyError: nothing came for a while.
        """
        body = self.body_at_hand()
        if body is None:
            return await self._gather(limit)
        if len(body) > limit:
            raise BodyTooLargeError
        return body

    async def _gather(self, limit: int) -> bytes:
        if (self._request.content_length or 0) > limit:
            raise BodyTooLargeError
        self._continue_body()
        content = self._request.content
        clock = asyncio.get_running_loop().time
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_IDLE_SECONDS) as idle:
                while not content.at_eof():
                    parts.append(await content.readany())
                    size += len(parts[-1])
                    if size > limit:
                        raise BodyTooLargeError
                    idle.reschedule(clock() + BODY_IDLE_SECONDS)
        except (TimeoutError, web.RequestPayloadError):
            raise BrokenBodyError from None
        return b"".join(parts)

    async def iterate_body(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. The application is read no faster than the upstream takes it.

        Raises:
            ClientGoneError: it does not come to its end.
        """
        self._continue_body()
        content = self._request.content
        try:
            while not content.at_eof():
                async with asyncio.timeout(BODY_IDLE_SECONDS):
                    part = await content.readany()
                if part:
                    yield part
        except (TimeoutError, web.RequestPayloadError, ConnectionError):
            raise ClientGoneError from None

    def _continue_body(self) -> None:
        """Ask for the body if the application waits to be asked."""
        request = self._request
        if request.fields.get("expect", "").lower() == "100-continue" and request.version >= (1, 1):
            self._transport().write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- the answer

    def start(
        self,
        status: int,
        reason: str,
        fields: Sequence[Field],
        length: int | None,
        *,
        passed: bytes = b"",
        body: bytes = b"",
    ) -> None:
        """Write the head, and as much of the body as there is already.

        `length` is the body's, None if it is not known. `passed` are lines of the upstream's head that are passed on.
        """
        transport = self._transport()
        head = self._head(status, reason, passed + lines_of(fields, errors="replace"), length)
        self.bytes_written = len(body)
        transport.write(head + self._framed(body) if body and not self._head_only else head)

    async def send(self, status: int, reason: str, fields: Sequence[Field], body: bytes) -> None:
        """Write the whole answer at once, and wait if the application reads a large one slowly."""
        if self.put_whole(status, reason, fields, body):
            await self.drain()

    def put_whole(self, status: int, reason: str, fields: Sequence[Field], body: bytes, *, passed: bytes = b"") -> bool:
        """Write the whole answer at once; tell whether to wait until the application has read some of it."""
        transport = self._transport()
        head = self._head(status, reason, passed + lines_of(fields, errors="replace"), len(body))
        self.bytes_written = len(body)
        transport.write(head if self._head_only or status in _NO_BODY else head + body)
        return len(body) > _DRAINED_BYTES

    def put(self, chunk: bytes) -> bool:
        """Write a part of the body; tell whether the application reads more slowly than the upstream sends."""
        transport = self._transport()
        self.bytes_written += len(chunk)
        if self._head_only:
            return False
        transport.write(self._framed(chunk))
        return self._request.writing_paused

    async def drain(self) -> None:
        """Wait until the application has read enough of what was written.

        Raises:
            ClientGoneError: it has closed the connection.
        """
        try:
            await self._request.drain()
        except ConnectionError:
            raise ClientGoneError from None

    async def write(self, chunk: bytes) -> None:
        """Write a part of the body, and wait if the application reads more slowly than the upstream sends."""
        if self.put(chunk):
            await self.drain()

    def write_last(self, chunk: bytes) -> None:
        """Write a last part and the end of the body without waiting."""
        transport = self._transport()
        self.bytes_written += len(chunk)
        transport.write(self._framed(chunk))
        self.finish()

    def finish(self) -> None:
        """Write the end of the body."""
        if self._chunked and not self._head_only:
            self._transport().write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Leave the body without its end and close: the application must not take a cut answer for a whole one."""
        self._keep_alive = False

    @property
    def reply(self) -> Reply:
        """Return what the server's handler returns."""
        return _KEPT if self._keep_alive else _CLOSED

    def _transport(self) -> asyncio.Transport:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ClientGoneError
        return transport

    def _framed(self, chunk: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk

    def _head(self, status: int, reason: str, lines: bytes, length: int | None) -> bytes:
        request = self._request
        self.started = True
        self._keep_alive = request.keep_alive and not self._closing
        current = request.version >= (1, 1)
        framing = b""
        if status not in _NO_BODY and not (self._head_only and length is None):
            if length is not None:
                framing = b"Content-Length: %d\r\n" % length
            elif current:
                self._chunked = True
                framing = b"Transfer-Encoding: chunked\r\n"
            else:
                self._keep_alive = False
        if not self._keep_alive:
            framing += b"Connection: close\r\n"
        elif not current:
            framing += b"Connection: keep-alive\r\n"
        return b"".join((_status_line(status, reason), lines, framing, b"\r\n"))


@lru_cache(maxsize=64)
def _status_line(status: int, reason: str) -> bytes:
    line = f"HTTP/1.1 {status} {reason or _REASONS.get(status, '')}"
    return line.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace") + b"\r\n"
