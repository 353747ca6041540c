"""One HTTP/1.1 connection to an upstream: bytes in and out around llhttp's parser, one exchange at a time.

Owned because it is where a proxied call's time goes; kept to what a proxy needs. Parsing is llhttp's, strict: a message
framed in two ways, a bare line feed or a bad chunk is an error, never a guess.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from sluice_core.api.upstream import Timeouts
from sluice_core.records import Outcome
from sluice_sidecar.headers import Fields, RawField
from sluice_sidecar.transport import TransportError

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 256
_PAUSE_BYTES: Final = 256 * 1024  # a slow reader stops its own upstream here
_RESUME_BYTES: Final = 64 * 1024
_JOINED_BYTES: Final = 256 * 1024  # copying so much costs less than writing twice

_NO_BODY: Final = frozenset({204, 304})
_NO_FIELDS: Final = Fields(())


class Connection(asyncio.Protocol):
    """One connection. `begin` starts an exchange; the head and the chunks of its answer are then waited for in turn.

    Whoever waits looks whether what it needs has come, and if not awaits `arrival` and looks again, so that what has
    come already is taken without a suspension.
    """

    __slots__ = (
        "_buffered",
        "_chunks",
        "_complete",
        "_deadline",
        "_drained",
        "_fault",
        "_idle_seconds",
        "_informational",
        "_loop",
        "_overhead_bytes",
        "_parser",
        "_paused",
        "_raw",
        "_sink",
        "_timer",
        "_transport",
        "_until_close",
        "_waiter",
        "answering",
        "fields",
        "head_only",
        "idle_since",
        "in_use",
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
        self._parser = httptools.HttpResponseParser(self)
        self.idle_since = 0.0
        self.in_use = False
        self.served = 0
        self._reset()

    def _reset(self) -> None:
        """Begin anew. The parser does so by itself: a connection is only used again after a whole answer."""
        self._raw: list[RawField] = []
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._overhead_bytes = 0
        self._paused = self._complete = self._informational = self._until_close = False
        self._fault: TransportError | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self.answering = False
        self.reusable = False
        self.unsent = False
        self.status = 0
        self.reason = ""
        self.fields = _NO_FIELDS

    # What the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came; anything after the end of an answer means that the peer is confused."""
        if self._complete:
            self._fail(Outcome.CONNECTION_ERROR, "malformed_response")
            return
        self._overhead_bytes += len(data)  # of head, trailers and framing, until the next bytes of a body
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(Outcome.CONNECTION_ERROR, "malformed_response")
        except httptools.HttpParserError:
            self._fail(Outcome.CONNECTION_ERROR, "malformed_response")
        else:
            if self._overhead_bytes > MAX_HEAD_BYTES and not self._complete:
                self._fail(Outcome.CONNECTION_ERROR, "malformed_response")
                return
            self._deadline = self._loop.time() + self._idle_seconds
            if self._sink is None or self._complete:
                self._wake()

    def eof_received(self) -> None:
        """Take the end of the connection as the end of a body that is framed by it."""
        if self.answering and self._until_close:
            self._complete = True
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Name the fault by where the exchange stood."""
        self._transport = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._complete or (self._until_close and exc is None):
            self._complete = True
        elif exc:
            self._fail(Outcome.CONNECTION_ERROR, "connection_reset")
        else:
            self._fail(Outcome.CONNECTION_ERROR, "body_truncated" if self.answering else "connection_closed")
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
        raw = self._raw
        if len(raw) >= MAX_FIELDS:
            raise ValueError("response head too large")
        raw.append((name, value))

    def on_headers_complete(self) -> None:
        """Note how the body is framed; an interim answer (1xx) is passed over."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._informational = True
            return
        if self._overhead_bytes > MAX_HEAD_BYTES and sum(len(n) + len(v) for n, v in self._raw) > MAX_HEAD_BYTES:
            raise ValueError("response head too large")
        self.status = status
        self.fields = fields = Fields(self._raw)
        self.answering = True
        if self.head_only:
            self._complete = True
        elif not fields.framed:
            self._until_close = status not in _NO_BODY

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body on, or keep it; stop reading while too much waits."""
        self._overhead_bytes = 0
        if self._sink is not None:
            self._pour_out(self._sink, body)
            return
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > _PAUSE_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """End the answer, or begin anew after an interim one."""
        if self._informational:
            self._informational = False
            self._raw = []
            self.reason = ""
            return
        self._complete = True
        self.reusable = not self.head_only and not self._until_close and self._parser.should_keep_alive()

    # What an exchange calls ---------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Tell whether the connection is open and between two exchanges."""
        return self._transport is not None and not self._transport.is_closing() and self._fault is None

    def begin(self, head: bytes, body: bytes | None, *, head_only: bool, timeouts: Timeouts) -> None:
        """Send a request whose body is whole, or the head of one whose body follows by `write`."""
        if self.served:
            self._reset()
        self.served += 1
        self.head_only = head_only
        self._idle_seconds = timeouts.idle_seconds
        if not body:
            self.write(head)
        elif len(body) <= _JOINED_BYTES:
            self.write(head + body)
        else:
            self.write(head)
            self.write(body)
        self.expect_within(timeouts.first_byte_seconds)

    def write(self, data: bytes) -> None:
        """Send bytes; a connection that is gone says so to whoever awaits the answer."""
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was written."""
        if self._drained is not None:
            await self._drained

    def arrival(self) -> asyncio.Future[None]:
        """Return what is done as soon as something has come, or has failed.

        Raises:
            TransportError: nothing will come any more.
        """
        if self._fault is not None:
            raise self._fault
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def take(self) -> bytes | None:
        """Return the bytes of the body that have come, nothing at its end, None if there may be more but not yet."""
        chunks = self._chunks
        if not chunks:
            return b"" if self._complete else None
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
            self._deadline = self._loop.time() + self._idle_seconds
        return data

    async def next_chunk(self) -> bytes:
        """Return the next bytes of the body, or nothing at its end."""
        while (data := self.take()) is None:
            await self.more()
        return data

    def more(self) -> asyncio.Future[None]:
        """Return the arrival of the next bytes of a body that has begun; the peer may be silent for a while only."""
        self.expect_within(self._idle_seconds)
        return self.arrival()

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Hand what comes to `sink` at once, with nobody woken in between, until it says that it is full.

        To be called when all that has come is taken. It returns as well when the body has ended, and raises what the
        sink raises.
        """
        self._sink = sink
        try:
            await self.more()
        finally:
            self._sink = None

    def _pour_out(self, sink: Callable[[bytes], bool], piece: bytes) -> None:
        try:
            if not sink(piece):
                return
        except Exception as error:  # noqa: BLE001 - it is raised where the body is read
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
        self._sink = None

    @property
    def ended(self) -> bool:
        """Tell whether the answer has been received and read to its end."""
        return self._complete and not self._chunks

    @property
    def again_usable(self) -> bool:
        """Tell whether the exchange is over in such a way that another may follow."""
        done = self.reusable and self._complete and not self._chunks and not self.unsent
        return done and self._fault is None and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Close at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    # Waiting ------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fail(self, outcome: Outcome, code: str) -> None:
        if self._fault is None and not self._complete:
            broken_off = self.answering and outcome is Outcome.CONNECTION_ERROR
            self._fault = TransportError(Outcome.TRUNCATED if broken_off else outcome, code)
        self.reusable = False
        self._wake()
        self.close()

    def expect_within(self, seconds: float) -> None:
        """Fail if nothing comes for so long."""
        # One timer serves many deadlines: it looks again when it fires, so that neither data nor calls cost one.
        self._deadline = deadline = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._look_at_clock)
        elif self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return  # nobody waits: between exchanges, or the reader is slow
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)
        else:
            self._fail(Outcome.TIMEOUT, "read_timeout")
