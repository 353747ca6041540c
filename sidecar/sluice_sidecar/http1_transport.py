"""The upstream transport of our own: pooled HTTP/1.1 connections on asyncio, with llhttp's parser."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from typing import Final
from urllib.parse import urlsplit

import msgspec

from sluice_core.records import Outcome
from sluice_sidecar.headers import Field
from sluice_sidecar.http1_connection import Connection
from sluice_sidecar.transport import TransportError, UpstreamRequest

MAX_CONNECTIONS: Final = 1000
_IDLE_CONNECTION_SECONDS: Final = 55.0  # below the minute after which load balancers close
_SWEEP_SECONDS: Final = 10.0
_LINE_BREAKS: Final = (b"\r", b"\n")


class _Origin(msgspec.Struct, frozen=True):
    host: str
    port: int
    tls: bool
    authority: str


class Http1Transport:
    """One upstream's connections."""

    def __init__(self, ca_bundle: str | None = None, max_connections: int = MAX_CONNECTIONS) -> None:
        """Trust the system's authorities, or only those in `ca_bundle`, given as PEM text."""
        self._ca_bundle = ca_bundle
        self._context: ssl.SSLContext | None = None
        self._loop = asyncio.get_running_loop()
        self._idle: dict[_Origin, deque[Connection]] = {}
        self._in_use: set[Connection] = set()
        self._slots = asyncio.Semaphore(max_connections)
        self._origins: dict[str, _Origin] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def send(self, request: UpstreamRequest) -> Http1Response:
        """Return the answer as soon as its head is there."""
        origin, target = self._split(request.url)
        head = _head(request, origin, target)
        connection = await self._acquire(origin, request.timeouts.connect_seconds)
        answered = False
        try:
            await _exchange(connection, request, head)
            answered = True
        finally:
            if not answered:
                self.discard(connection)
        return Http1Response(self, origin, connection)

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._in_use):
            self.discard(connection)
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    def give_back(self, origin: _Origin, connection: Connection) -> None:
        """Take a connection back after an exchange, to reuse it if that is safe."""
        done = connection.reusable and connection.answered and not connection.unsent
        if self._closed or not (done and connection.usable):
            self.discard(connection)
            return
        self._in_use.discard(connection)
        connection.idle_since = self._loop.time()
        self._idle.setdefault(origin, deque()).append(connection)
        self._slots.release()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def discard(self, connection: Connection) -> None:
        """Close a connection that is in use."""
        if connection in self._in_use:
            self._in_use.discard(connection)
            self._slots.release()
        connection.close()

    def _split(self, url: str) -> tuple[_Origin, str]:
        scheme, _, rest = url.partition("://")
        authority, slash, target = rest.partition("/")
        base = f"{scheme}://{authority}"
        origin = self._origins.get(base)
        if origin is None:
            parts = urlsplit(base)
            tls = scheme == "https"
            host = parts.hostname
            if host is None or scheme not in ("http", "https"):
                raise TransportError(Outcome.CONNECTION_ERROR, "invalid_url")
            origin = _Origin(host, parts.port or (443 if tls else 80), tls, authority)
            self._origins = {base: origin}  # an upstream has one; a changed one takes its place
        return origin, slash + target or "/"

    async def _acquire(self, origin: _Origin, connect_seconds: float) -> Connection:
        await self._take_slot(connect_seconds)
        idle = self._idle.get(origin)
        oldest = self._loop.time() - _IDLE_CONNECTION_SECONDS
        while idle:
            connection = idle.pop()  # the last one used is the least likely to have been closed
            if connection.usable and connection.idle_since >= oldest:
                self._in_use.add(connection)
                return connection
            connection.close()
        try:
            return await self._connect(origin, connect_seconds)
        except BaseException:
            self._slots.release()
            raise

    async def _take_slot(self, seconds: float) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # at once: no timer for what does not wait
            return
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise TransportError(Outcome.TIMEOUT, "pool_timeout") from None

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
        self._in_use.add(connection)
        return connection

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context(cadata=self._ca_bundle)
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context

    def _sweep(self) -> None:
        oldest = self._loop.time() - _IDLE_CONNECTION_SECONDS
        for origin, idle in list(self._idle.items()):
            while idle and (idle[0].idle_since < oldest or not idle[0].usable):
                connection = idle.popleft()
                connection.close()
            if not idle:
                del self._idle[origin]
        self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep) if self._idle else None


class Http1Response:
    """One answer."""

    __slots__ = ("_connection", "_origin", "_transport", "fields", "reason", "status")

    def __init__(self, transport: Http1Transport, origin: _Origin, connection: Connection) -> None:
        self._transport = transport
        self._origin = origin
        self._connection: Connection | None = connection
        self.status = connection.status
        self.reason = connection.reason
        self.fields: list[Field] = connection.fields

    async def next_chunk(self) -> bytes:
        """Return the next bytes of the body as they came, or nothing at its end."""
        if self._connection is None:
            return b""
        try:
            return await self._connection.next_chunk()
        except TransportError as fault:
            if fault.outcome is Outcome.CONNECTION_ERROR:
                raise TransportError(Outcome.TRUNCATED, fault.code) from None
            raise

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


def _head(request: UpstreamRequest, origin: _Origin, target: str) -> bytes:
    lines = [f"{request.method} {target} HTTP/1.1", f"Host: {origin.authority}"]
    lines += [f"{name}: {value}" for name, value in request.fields]
    if isinstance(request.body, bytes):
        lines.append(f"Content-Length: {len(request.body)}")
    elif request.body is not None and request.content_length is not None:
        lines.append(f"Content-Length: {request.content_length}")
    elif request.body is not None:
        lines.append("Transfer-Encoding: chunked")
    lines += ["", ""]
    try:
        head = "\r\n".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        raise TransportError(Outcome.CONNECTION_ERROR, "invalid_request") from None
    # A line break inside a value would start a request of its own; the count is the cheapest complete check.
    if any(head.count(mark) != len(lines) - 1 for mark in _LINE_BREAKS) or b"\0" in head:
        raise TransportError(Outcome.CONNECTION_ERROR, "invalid_request")
    return head


async def _exchange(connection: Connection, request: UpstreamRequest, head: bytes) -> None:
    """Send the request and wait for the head of the answer, which may come before the body has been sent."""
    timeouts = request.timeouts
    body = request.body
    whole = body if isinstance(body, bytes) else None
    connection.begin(head, whole, head_only=request.method == "HEAD", idle_seconds=timeouts.idle_seconds)
    if body is None or isinstance(body, bytes):
        await connection.head(timeouts.first_byte_seconds)
        return
    chunked = request.content_length is None
    async for piece in body:
        if piece:
            connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await connection.drain()
        if connection.status:
            connection.unsent = True  # answered early: the rest of the body is not wanted
            break
    else:
        if chunked:
            connection.write(b"0\r\n\r\n")
    await connection.head(timeouts.first_byte_seconds)


def _is_resolution(error: OSError) -> bool:
    return isinstance(error, socket.gaierror)
