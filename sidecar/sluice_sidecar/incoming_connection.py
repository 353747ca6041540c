"""One connection of the application: requests in around llhttp's parser, answered one after the other.

Owned because every call passes it. Parsing is llhttp's, strict: a message framed in two ways, a bare line feed or a bad
chunk is an error, never a guess. What asks for another protocol is handed to aiohttp's server, with the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Final, Protocol, cast

import httptools
from aiohttp import web

from sluice_sidecar.closing import FAILED, MALFORMED, closing_answer
from sluice_sidecar.headers import Fields, RawField
from sluice_sidecar.incoming import Body, Incoming, Request

LONGEST_LINE_BYTES: Final = 16 * 1024
LONGEST_FIELD_BYTES: Final = 32 * 1024
MOST_FIELDS: Final = 256
MAX_HEAD_BYTES: Final = 256 * 1024
HEAD_SECONDS: Final = 60.0
"""How long a head may take from its first byte to its last."""
IDLE_SECONDS: Final = 3630.0
"""How long a connection is kept without a call: longer than any client's pool keeps it."""
LINGER_SECONDS: Final = 10.0
"""How long the rest of a body is still read, and dropped, after its request has been answered."""

_PAUSE_BYTES: Final = 256 * 1024  # a slow upstream stops its own application here
_RESUME_BYTES: Final = 64 * 1024
_MAX_LINE: Final = 32  # requests that came before the first of them was answered
_MOST_IN_LINE: Final = 8192  # of one read from the socket; more is an attack
_MALFORMED: Final = closing_answer(MALFORMED)
_FAILED: Final = closing_answer(FAILED)
_VERSIONS: Final = {"1.1": (1, 1), "1.0": (1, 0)}

Handler = Callable[[Incoming], Coroutine[None, None, web.StreamResponse]]


class Owner(Protocol):
    """What connections belong to."""

    handler: Handler
    connections: set[Connection]

    def upgrade(self, transport: asyncio.Transport, received: bytes) -> None:
        """Serve a connection from now on that has asked for another protocol, beginning with these bytes."""
        ...


class Connection(asyncio.Protocol):
    """One connection. A task of its own answers what has come, in turn; it is cancelled when the client goes.

    What waits in line is a request, the bytes of one that asks for another protocol, or None for what is no HTTP.
    """

    __slots__ = (
        "_body",
        "_closing",
        "_deaf",
        "_drained",
        "_head_since",
        "_held",
        "_idle",
        "_line",
        "_loop",
        "_overhead_bytes",
        "_owner",
        "_parser",
        "_paused",
        "_quiet_since",
        "_raw",
        "_serving",
        "_target",
        "_waiter",
        "task",
        "transport",
        "upgrading",
        "writing_paused",
    )

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self.transport: asyncio.Transport | None = None
        self.writing_paused = False
        self.upgrading = False
        self._line: deque[Request | bytes | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._body: Body | None = None
        self._raw: list[RawField] = []
        self._target = b""
        self._held = 0
        self._overhead_bytes = 0
        self._paused = self._deaf = self._closing = self._serving = False
        self._head_since = 0.0
        self._quiet_since = loop.time()
        self._parser = httptools.HttpRequestParser(self)

    # What the transport calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and begin to serve."""
        self.transport = cast("asyncio.Transport", transport)
        self._owner.connections.add(self)
        self.task = self._loop.create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._deaf:
            return
        self._overhead_bytes += len(data)  # of heads, trailers and framing, until the next bytes of a body
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self._refuse()
        else:
            if self._overhead_bytes > MAX_HEAD_BYTES and (self._head_since or self._body is not None):
                self._refuse()
            elif self._held > _PAUSE_BYTES or len(self._line) > _MAX_LINE:
                self._pause()

    def _parse(self, data: bytes) -> bytes:
        """Parse what came; return what is to be parsed anew."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        else:
            return b""
        offers = [value.lower() for name, value in self._raw if name.lower() == b"upgrade"]
        if offers and not any(b"websocket" in offer for offer in offers):
            # A protocol that is not spoken here, HTTP/2 mostly: the request goes on as if it had not been offered.
            self._raw = [field for field in self._raw if field[0].lower() != b"upgrade"]
            again = self._head() + rest
            self._parser = httptools.HttpRequestParser(self)
            return again
        self._put(self._head() + rest)
        self._deaf = True
        self._pause()
        return b""

    def eof_received(self) -> None:
        """Let the connection be closed: a client that has stopped sending is taken to have gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End what goes on."""
        del exc
        self._owner.connections.discard(self)
        self.transport = None
        if self._body is not None:
            self._body.fail(ConnectionResetError("the application has gone"))
        self.resume_writing()
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        """Make `drain` wait."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """Let `drain` go on."""
        self.writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # What the parser calls ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        if len(self._line) >= _MOST_IN_LINE:
            raise ValueError("too many requests at once")
        self._raw = []
        self._target = b""
        self._head_since = self._loop.time()

    def on_url(self, target: bytes) -> None:
        """Take the target, or a part of it."""
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field; those behind the body of a request are dropped with the list."""
        self._raw.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Put the request in line; its body follows."""
        parser = self._parser
        raw, self._raw = self._raw, []
        version = _VERSIONS.get(parser.get_http_version())
        fields = Fields(raw)
        if version is None or fields.ambiguous or (version == (1, 1) and "host" not in fields):
            raise ValueError("not a request that is served here")
        if self._overhead_bytes > LONGEST_LINE_BYTES or len(raw) > MOST_FIELDS:
            _check_sizes(self._target, raw)
        self._head_since = 0.0
        if parser.should_upgrade():
            self._raw = raw
            return
        request = Request(
            self,
            parser.get_method().decode("latin-1"),
            self._target.decode("latin-1"),
            version,
            fields,
            keep_alive=parser.should_keep_alive(),
        )
        self._body = request.content
        self._put(request)

    def on_body(self, part: bytes) -> None:
        """Keep a part of the body."""
        assert self._body is not None  # noqa: S101 - its head has come
        self._overhead_bytes = 0
        self._held += len(part)
        self._body.feed(part)

    def on_message_complete(self) -> None:
        """End the request."""
        self._overhead_bytes = 0
        if self._body is not None:
            self._body.end()
            self._body = None

    # What a request calls -----------------------------------------------------------------------------------------

    def taken(self, size: int) -> None:
        """Note that so many bytes that were held have been read."""
        self._held -= size
        if self._paused:
            self._resume()

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written.

        Raises:
            ConnectionError: it has gone.
        """
        while self.writing_paused:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)
        if self.transport is None:
            raise ConnectionResetError("the application has gone")

    # What the server calls ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close as soon as the request that is being answered has its answer."""
        self._closing = True
        if not self._serving and self.transport is not None:
            self.transport.close()

    async def shutdown(self, seconds: float) -> None:
        """Close, after so long at the latest."""
        self.close()
        if self._serving:
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=seconds)
        if self.transport is not None:
            self.transport.close()
        if self.task is not None:
            self.task.cancel()

    def look_at_clock(self, now: float) -> None:
        """Close if the client has been silent for too long."""
        slow_head = self._head_since and now - self._head_since > HEAD_SECONDS
        idle = now - self._quiet_since > IDLE_SECONDS
        if not self._serving and (slow_head or idle) and self.transport is not None:
            self.transport.close()

    # Serving ------------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Answer one request after the other."""
        try:
            while not self._closing:
                if not self._line:
                    await self._arrival()
                taken = self._line.popleft()
                if self._paused:
                    self._resume()
                if isinstance(taken, Request):
                    if not await self._answer(taken):
                        break
                elif taken is None:
                    self._write(_MALFORMED)
                    break
                else:
                    self._hand_over(taken)
                    return
        finally:
            if self.transport is not None:
                self.transport.close()

    async def _arrival(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _answer(self, request: Request) -> bool:
        """Answer one request; tell whether the connection may serve another."""
        self._serving = True
        try:
            keep_alive = (await self._owner.handler(request)).keep_alive
        except ConnectionError:
            return False
        except Exception:  # noqa: BLE001 - its text might quote the call
            self._write(_FAILED)
            return False
        finally:
            self._serving = False
            self._quiet_since = self._loop.time()
            if self._idle is not None and not self._idle.done():  # somebody waits for the end of this call
                self._idle.set_result(None)
        body = request.content
        return bool(keep_alive) and (body.at_eof() or await self._read_rest(body))

    async def _read_rest(self, body: Body) -> bool:
        """Read what is left of a body after its answer, for a client that reads only once it has sent everything."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not body.at_eof():
                    await body.readany()
        except (TimeoutError, ConnectionError, web.RequestPayloadError):
            return False
        return True

    def _hand_over(self, received: bytes) -> None:
        transport, self.transport = self.transport, None
        self._owner.connections.discard(self)
        if transport is not None and not transport.is_closing():
            transport.resume_reading()
            self._owner.upgrade(transport, received)

    def _write(self, answer: bytes) -> None:
        if self.transport is not None:
            self.transport.write(answer)

    # Listening ----------------------------------------------------------------------------------------------------

    def _put(self, item: Request | bytes | None) -> None:
        self._line.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _refuse(self) -> None:
        """Listen no longer to what is no HTTP: the request that it is part of fails, or an answer says so."""
        self._deaf = True
        if self._body is not None:
            self._body.fail(web.RequestPayloadError("not valid HTTP"))
        else:
            self._put(None)

    def _pause(self) -> None:
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._held <= _RESUME_BYTES and len(self._line) <= _MAX_LINE // 2 and not self._deaf:
            self._paused = False
            if self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    def _head(self) -> bytes:
        """Write the head of a request that asks for another protocol once more, for the server that takes it over."""
        parser = self._parser
        start = b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._target, parser.get_http_version().encode())
        return start + b"".join([b"%b: %b\r\n" % field for field in self._raw]) + b"\r\n"


def _check_sizes(target: bytes, raw: list[RawField]) -> None:
    longest = max((len(name) + len(value) for name, value in raw), default=0)
    if len(target) > LONGEST_LINE_BYTES or longest > LONGEST_FIELD_BYTES or len(raw) > MOST_FIELDS:
        raise ValueError("request head too large")
