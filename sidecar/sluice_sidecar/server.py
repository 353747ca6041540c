"""The proxy port's HTTP server: aiohttp's low-level one, with our answers to requests that cannot be parsed.

Its connections go below aiohttp's public surface in two places that every call passes, and that cost as much as the
rest of the server: see `_Connection`. Tests of pipelining, bodies, upgrades and shutdown hold that to its behaviour.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage, StreamWriter

from sluice_core.errors import RefusalCode, refuse

LONGEST_LINE_BYTES = 16 * 1024
LONGEST_FIELD_BYTES = 32 * 1024
MOST_FIELDS = 256
LINGER_SECONDS: Final = 10.0
"""How long the rest of a body is still read, and dropped, after its request has been answered."""


def _closing_answer(status: str, code: RefusalCode, message: str) -> bytes:
    refusal = refuse(code, message)
    body = refusal.body()
    fields = refusal.headers() | {"Content-Length": str(len(body)), "Connection": "close"}
    head = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(head).encode("latin-1") + body


_MALFORMED: Final = _closing_answer("400 Bad Request", RefusalCode.INVALID_REQUEST, "The request is not valid HTTP.")
_FAILED: Final = _closing_answer("500 Internal Server Error", RefusalCode.INTERNAL_ERROR, "The Sluice sidecar failed.")


class _Connection(web.RequestHandler):
    """One connection of the application.

    aiohttp would make a task for each request, and offer its parser each body a second time in case it had been held
    back. Here the connection's own task answers its requests, and only what was held back is parsed again.
    """

    __slots__ = ()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading, if reading was paused."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    async def start(self) -> None:
        """Answer one request after the other. Cancelled when the connection is lost."""
        try:
            while not self._force_close:
                if not self._messages:
                    await self._arrival()
                message, payload = self._take()
                if not isinstance(message, RawRequestMessage):
                    self._write(_MALFORMED)
                    break
                if not (await self._respond(message, payload) and self._may_go_on()):
                    break
        except asyncio.CancelledError:
            self.force_close()
            raise
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _arrival(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _take(self) -> tuple[Any, StreamReader]:
        """Take the next request; the parser goes on once half of those that it has put in line are gone."""
        taken = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return taken

    async def _respond(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Answer one request; tell whether the connection may serve another."""
        assert self._manager is not None  # noqa: S101 - the connection is open
        assert self._task_handler is not None  # noqa: S101 - it is this task
        handler = self._manager.request_handler
        writer = StreamWriter(self, self._loop)
        request = web.BaseRequest(message, payload, self, writer, self._task_handler, self._loop)
        if message.upgrade or "Upgrade" in message.headers:
            return await self._upgrade(request)
        self._current_request = request
        self._request_in_progress = True
        try:
            keep_alive = bool((await handler(request)).keep_alive)
        except ConnectionError:
            return False
        except Exception:  # noqa: BLE001 - its text might quote the call
            self._write(_FAILED)
            return False
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:  # somebody waits for the end of this call, to shut down
                self._handler_waiter.set_result(None)
        return (payload.is_eof() or await self._read_rest(payload)) and keep_alive

    async def _upgrade(self, request: web.BaseRequest) -> bool:
        """Leave it to aiohttp, which knows what to do with bytes that follow an upgrade, granted or declined."""
        assert self._manager is not None  # noqa: S101 - the connection is open
        try:
            reply, lost = await self._handle_request(request, None, self._manager.request_handler)
        except ConnectionError:
            return False
        return bool(reply.keep_alive) and not lost

    async def _read_rest(self, payload: StreamReader) -> bool:
        """Read what is left of a body after its answer, for a client that reads only once it has sent everything."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not (payload.is_eof() or self._force_close):
                    await payload.readany()
        except (TimeoutError, ConnectionError, web.RequestPayloadError):
            return False
        return payload.is_eof()

    def _may_go_on(self) -> bool:
        """Set the time until which the next request has to come; tell whether one may come at all."""
        if self._close or self._force_close:
            return False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        return True

    def _write(self, answer: bytes) -> None:
        if self.transport is not None:
            self.transport.write(answer)


class ProxyServer(web.Server):
    """Makes connections of our kind."""

    def __init__(self, handler: Any) -> None:
        self._options: dict[str, Any] = {
            "access_log": None,
            "logger": silent_logger(),
            "auto_decompress": False,
            "max_line_size": LONGEST_LINE_BYTES,
            "max_field_size": LONGEST_FIELD_BYTES,
            "max_headers": MOST_FIELDS,
        }
        super().__init__(handler, handler_cancellation=True)

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return _Connection(self, loop=asyncio.get_running_loop(), **self._options)


def silent_logger() -> logging.Logger:
    """Return a logger for the HTTP parser that writes nothing: its messages quote what the client sent, keys too."""
    logger = logging.getLogger("sluice.http")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    logger.disabled = True
    return logger
