"""The upstream transport of our own: pooled HTTP/1.1 connections on asyncio, with llhttp's parser."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final
from urllib.parse import urlsplit

from sluice_core.records import Outcome
from sluice_sidecar.aside import LARGE_BYTES
from sluice_sidecar.http1_connection import Connection
from sluice_sidecar.transport import TransportError, UpstreamRequest

MAX_CONNECTIONS: Final = 1000
_IDLE_CONNECTION_SECONDS: Final = 55.0  # below the minute after which load balancers close
_SWEEP_SECONDS: Final = 10.0
PIECE_BYTES: Final = 256 * 1024
_MAX_STARTS: Final = 256
_MAX_REMEMBERED_URL: Final = 512


class _Origin:
    """A server, and the connections to it that wait for use."""

    __slots__ = ("authority", "given_up", "host", "idle", "port", "tls")

    def __init__(self, host: str, port: int, authority: str, *, tls: bool) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.authority = authority
        self.idle: deque[Connection] = deque()
        self.given_up = False


class Http1Transport:
    """One upstream's connections."""

    def __init__(self, ca_bundle: str | None = None, max_connections: int = MAX_CONNECTIONS) -> None:
        """Trust the system's authorities, or only those in `ca_bundle`, given as PEM text."""
        self._ca_bundle = ca_bundle
        self._context: ssl.SSLContext | None = None
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._slots = max_connections
        self._line: deque[asyncio.Future[None]] = deque()
        self._origins: dict[str, _Origin] = {}
        self._starts: dict[tuple[str, str], tuple[_Origin, bytes]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def send(self, request: UpstreamRequest) -> Http1Response:
        """Return the answer as soon as its head is there."""
        place = (request.method, request.url)
        origin, start = self._starts.get(place) or self._start_of(*place)
        body = request.body
        connection = self._take_idle(origin)
        if connection is None:
            connection = await self._acquire(origin, request.timeouts.connect_seconds)
        try:
            whole = body if isinstance(body, bytes) and len(body) <= LARGE_BYTES else None
            connection.begin(
                start + request.lines + _framing(request),
                whole,
                head_only=request.method == "HEAD",
                timeouts=request.timeouts,
            )
            if body is not whole:
                await _send_body(connection, request)
            while not connection.answering:
                await connection.arrival()
        except BaseException:
            self.discard(connection)
            raise
        return Http1Response(self, origin, connection)

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._connections):
            self.discard(connection)

    def give_back(self, origin: _Origin, connection: Connection) -> None:
        """Take a connection back after an exchange, to reuse it if that is safe."""
        if self._closed or origin.given_up or not connection.again_usable:
            self.discard(connection)
            return
        connection.in_use = False
        connection.idle_since = self._loop.time()
        origin.idle.append(connection)
        self._free_slot()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def discard(self, connection: Connection) -> None:
        """Close a connection, and free its slot if it is in use."""
        self._connections.discard(connection)
        if connection.in_use:
            connection.in_use = False
            self._free_slot()
        connection.close()

    def _start_of(self, method: str, url: str) -> tuple[_Origin, bytes]:
        """Return where a request goes, and how its head begins. Remembered: most calls go to a few addresses."""
        scheme, _, rest = url.partition("://")
        authority, slash, target = rest.partition("/")
        origin = self._origin(scheme, authority)
        try:
            start = f"{method} {slash + target or '/'} HTTP/1.1\r\nHost: {origin.authority}\r\n".encode("latin-1")
        except UnicodeEncodeError:
            start = b""
        if start.count(b"\n") != 2 or start.count(b"\r") != 2 or b"\0" in start:
            raise TransportError(Outcome.CONNECTION_ERROR, "invalid_request")
        if len(url) <= _MAX_REMEMBERED_URL:
            if len(self._starts) >= _MAX_STARTS:
                self._starts.clear()
            self._starts[method, url] = origin, start
        return origin, start

    def _origin(self, scheme: str, authority: str) -> _Origin:
        base = f"{scheme}://{authority}"
        origin = self._origins.get(base)
        if origin is None:
            parts = urlsplit(base)
            tls = scheme == "https"
            host = parts.hostname
            if host is None or scheme not in ("http", "https"):
                raise TransportError(Outcome.CONNECTION_ERROR, "invalid_url")
            for other in self._origins.values():
                other.given_up = True
                while other.idle:
                    self.discard(other.idle.pop())
            self._starts.clear()
            origin = _Origin(host, parts.port or (443 if tls else 80), authority, tls=tls)
            self._origins = {base: origin}  # an upstream has one; a changed one takes its place
        return origin

    def _take_idle(self, origin: _Origin) -> Connection | None:
        """Return a connection that waits for use, if there is one and a slot is free."""
        idle = origin.idle
        if not self._slots or not idle:
            return None
        oldest = self._loop.time() - _IDLE_CONNECTION_SECONDS
        while idle:
            connection = idle.pop()  # the last one used is the least likely to have been closed
            if connection.usable and connection.idle_since >= oldest:
                self._slots -= 1
                connection.in_use = True
                return connection
            self.discard(connection)
        return None

    async def _acquire(self, origin: _Origin, connect_seconds: float) -> Connection:
        if self._slots:
            self._slots -= 1
        else:
            await self._wait_for_slot(connect_seconds)
            self._slots += 1  # for the moment: nothing runs in between
            if (connection := self._take_idle(origin)) is not None:
                return connection
            self._slots -= 1
        try:
            return await self._connect(origin, connect_seconds)
        except BaseException:
            self._free_slot()
            raise

    async def _wait_for_slot(self, seconds: float) -> None:
        waiter = self._loop.create_future()
        self._line.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except BaseException as gone:
            if waiter.done() and not waiter.cancelled():
                self._free_slot()  # it came in the very moment of leaving
            if isinstance(gone, TimeoutError):
                raise TransportError(Outcome.TIMEOUT, "pool_timeout") from None
            raise

    def _free_slot(self) -> None:
        """Hand a slot to whoever has waited longest, or keep it."""
        while self._line:
            waiter = self._line.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._slots += 1

    async def _connect(self, origin: _Origin, connect_seconds: float) -> Connection:
        context = self._tls() if origin.tls else None
        try:
            async with asyncio.timeout(connect_seconds):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop), origin.host, origin.port, ssl=context
                )
        except TimeoutError:
            raise TransportError(Outcome.TIMEOUT, "connect_timeout") from None
        except ssl.SSLCertVerificationError:
            raise TransportError(Outcome.CONNECTION_ERROR, "certificate_invalid") from None
        except ssl.SSLError:
            raise TransportError(Outcome.CONNECTION_ERROR, "tls_failed") from None
        except OSError as error:
            code = "name_not_resolved" if _is_resolution(error) else "connection_refused"
            raise TransportError(Outcome.CONNECTION_ERROR, code) from None
        self._connections.add(connection)
        connection.in_use = True
        return connection

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context(cadata=self._ca_bundle)
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context

    def _sweep(self) -> None:
        oldest = self._loop.time() - _IDLE_CONNECTION_SECONDS
        waiting = False
        for origin in self._origins.values():
            idle = origin.idle
            while idle and (idle[0].idle_since < oldest or not idle[0].usable):
                self.discard(idle.popleft())
            waiting = waiting or bool(idle)
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep) if waiting else None


class Http1Response:
    """One answer."""

    __slots__ = ("_connection", "_origin", "_transport", "fields", "reason", "status")

    def __init__(self, transport: Http1Transport, origin: _Origin, connection: Connection) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: Connection | None = connection
        self.status = connection.status
        self.reason = connection.reason
        self.fields = connection.fields

    def take(self) -> bytes | None:
        """Return the bytes of the body that have come, nothing at its end, None if there may be more but not yet."""
        return b"" if self._connection is None else self._connection.take()

    @property
    def ended(self) -> bool:
        """Tell whether all of the body has been taken."""
        return self._connection is None or self._connection.ended

    def arrival(self) -> asyncio.Future[None]:
        """Return what is done as soon as there is something to take, or has failed."""
        if self._connection is None:
            raise TransportError(Outcome.TRUNCATED, "connection_closed")
        return self._connection.more()

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Hand what comes to `sink` at once until it says that it is full, or the body ends."""
        if self._connection is None:
            raise TransportError(Outcome.TRUNCATED, "connection_closed")
        await self._connection.pour(sink)

    async def next_chunk(self) -> bytes:
        """Return the next bytes of the body as they came, or nothing at its end."""
        return b"" if self._connection is None else await self._connection.next_chunk()

    def release(self) -> None:
        """Give the connection back for reuse; it is closed if the body was not read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(self._origin, connection)

    def abort(self) -> None:
        """Close the connection at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.discard(connection)


def _framing(request: UpstreamRequest) -> bytes:
    """Return the end of the head: how the body is framed, and an empty line."""
    body = request.body
    if body is None:
        return b"\r\n"
    length = len(body) if isinstance(body, bytes) else request.content_length
    return b"Transfer-Encoding: chunked\r\n\r\n" if length is None else b"Content-Length: %d\r\n\r\n" % length


async def _send_body(connection: Connection, request: UpstreamRequest) -> None:
    """Send a body in pieces. The answer may come before its end, and then the rest is not wanted."""
    body = request.body
    assert body is not None  # noqa: S101 - the caller has looked
    chunked = request.content_length is None and not isinstance(body, bytes)
    async for piece in _pieces(body) if isinstance(body, bytes) else body:
        if piece:
            connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await connection.drain()
        if connection.answering:
            connection.unsent = True
            return
        if not connection.usable:
            return
    if chunked:
        connection.write(b"0\r\n\r\n")
    connection.expect_within(request.timeouts.first_byte_seconds)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """Cut a large body up: encrypted in one piece, it would hold up all other calls."""
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES]


def _is_resolution(error: OSError) -> bool:
    return isinstance(error, socket.gaierror)
