"""One HTTP/1.1 connection to an upstream: bytes in and out around llhttp's parser, one exchange at a time.

Owned because it is where a proxied call's time goes; kept to what a proxy needs. Parsing is llhttp's, strict: a message
framed in two ways, a bare line feed or a bad chunk is an error, never a guess.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, cast

import httptools

from sluice_core.records import Outcome
from sluice_sidecar.headers import Field
from sluice_sidecar.transport import TransportError

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 256
_PAUSE_BYTES: Final = 256 * 1024  # a slow reader stops its own upstream here
_RESUME_BYTES: Final = 64 * 1024

_NO_BODY: Final = frozenset({204, 304})
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_FRAMING_LENGTHS: Final = frozenset({14, 17})


class Connection(asyncio.Protocol):
    """One connection. `begin` starts an exchange; the head and the chunks of its answer are then awaited in turn."""

    __slots__ = (
        "_buffered",
        "_chunks",
        "_complete",
        "_deadline",
        "_drained",
        "_fault",
        "_framed",
        "_head",
        "_head_bytes",
        "_idle_seconds",
        "_informational",
        "_loop",
        "_parser",
        "_paused",
        "_timer",
        "_transport",
        "_until_close",
        "_waiter",
        "fields",
        "head_only",
        "idle_since",
        "reason",
        "reusable",
        "served",
        "status",
        "unsent",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self.served = 0
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._head = self._complete = self._informational = self._until_close = self._framed = False
        self._head_bytes = 0
        self._idle_seconds = 60.0
        self._fault: TransportError | None = None
        self.head_only = False
        self.reusable = False
        self.unsent = False
        self.status = 0
        self.reason = ""
        self.fields: list[Field] = []

    # What the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came; anything after the end of an answer means that the peer is confused."""
        if self._complete or self._parser is None:
            self._fail(Outcome.CONNECTION_ERROR, "malformed_response")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(Outcome.CONNECTION_ERROR, "malformed_response")
        except httptools.HttpParserError:
            self._fail(Outcome.TRUNCATED if self._head else Outcome.CONNECTION_ERROR, "malformed_response")
        else:
            self._deadline = self._loop.time() + self._idle_seconds
            self._wake()

    def eof_received(self) -> None:
        """Take the end of the connection as the end of a body that is framed by it."""
        if self._head and self._until_close:
            self._complete = True
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Name the fault by where the exchange stood."""
        self._transport = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._complete or (self._until_close and exc is None):
            self._complete = True
        elif self._head:
            self._fail(Outcome.TRUNCATED, "connection_reset" if exc else "body_truncated")
        else:
            self._fail(Outcome.CONNECTION_ERROR, "connection_reset" if exc else "connection_closed")
        self._wake()

    def pause_writing(self) -> None:
        """Make `drain` wait."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let `drain` go on."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # What the parser calls ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request; it would become the answer to the next."""
        if self._complete:
            raise ValueError("bytes after the end of the answer")

    def on_status(self, reason: bytes) -> None:
        """Take the reason phrase."""
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field, within bounds."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.fields) >= MAX_FIELDS:
            raise ValueError("response head too large")
        if len(name) in _FRAMING_LENGTHS and name.lower() in _FRAMING:
            self._framed = True
        self.fields.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """Note how the body is framed; an interim answer (1xx) is passed over."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._informational = True
            return
        self.status = status
        self._head = True
        self._until_close = not self._framed and not self.head_only and status not in _NO_BODY
        if self.head_only:
            self._complete = True

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body; stop reading while too much waits."""
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > _PAUSE_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """End the answer, or begin anew after an interim one."""
        if self._informational:
            self._informational = False
            self.fields = []
            self.reason = ""
            self._head_bytes = 0
            self._framed = False
            return
        self._complete = True
        self.reusable = not self.head_only and not self._until_close and self._parser.should_keep_alive()

    # What an exchange calls ---------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Tell whether the connection is open and between two exchanges."""
        return self._transport is not None and not self._transport.is_closing() and self._fault is None

    def begin(self, head: bytes, body: bytes | None, *, head_only: bool, idle_seconds: float) -> None:
        """Send a request whose body is whole, or the head of one whose body follows by `write`."""
        if self.served:
            self._reset()
        self.served += 1
        self.head_only = head_only
        self._idle_seconds = idle_seconds
        if body:
            self.write(head + body if len(body) < _RESUME_BYTES else head)
            if len(body) >= _RESUME_BYTES:
                self.write(body)
        else:
            self.write(head)

    def write(self, data: bytes) -> None:
        """Send bytes; a connection that is gone says so to whoever awaits the answer."""
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was written."""
        if self._drained is not None:
            await self._drained

    async def head(self, first_byte_seconds: float) -> None:
        """Wait for the head of the answer.

        Raises:
            TransportError: there will be none.
        """
        self._expect_by(self._loop.time() + first_byte_seconds)
        while not self._head:
            await self._wait()
        self._expect_by(self._loop.time() + self._idle_seconds)

    async def next_chunk(self) -> bytes:
        """Return the bytes of the body that have come, or nothing at its end."""
        while not self._chunks:
            if self._complete:
                return b""
            self._expect_by(max(self._deadline, self._loop.time() + self._idle_seconds))
            await self._wait()
        chunks = self._chunks
        data = chunks.popleft() if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
            self._deadline = self._loop.time() + self._idle_seconds
        return data

    @property
    def answered(self) -> bool:
        """Tell whether the answer has been received and read to its end."""
        return self._complete and not self._chunks

    def close(self) -> None:
        """Close at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    # Waiting ------------------------------------------------------------------------------------------------------

    async def _wait(self) -> None:
        self._raise_fault()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if not self._chunks:
            self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, outcome: Outcome, code: str) -> None:
        if self._fault is None and not self._complete:
            self._fault = TransportError(outcome, code)
        self.reusable = False
        self._wake()
        self.close()

    def _expect_by(self, deadline: float) -> None:
        # One timer serves many deadlines: it looks again when it fires, so that data costs no timer.
        self._deadline = deadline
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._look_at_clock)
        elif self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if self._waiter is None:
            return  # nobody waits: between exchanges, or the reader is slow
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)
        else:
            self._fail(Outcome.TIMEOUT, "read_timeout")
