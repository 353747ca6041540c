"""A bare HTTP/1.1 client for measuring: no pool, no policy, the moment of every byte that arrives."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

import httptools


class Exchange(asyncio.Protocol):
    """One connection, one call at a time. `arrivals` are (nanoseconds, bytes) of each piece of the body."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._parser: Any = None
        self._now = 0
        self.status = 0
        self.arrivals: list[tuple[int, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came, with the moment of it."""
        self._now = time.monotonic_ns()
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the call that is under way."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"closed in the middle of an answer: {exc}"))

    def on_headers_complete(self) -> None:
        """Note the status."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Note a piece of the body."""
        self.arrivals.append((self._now, body))

    def on_message_complete(self) -> None:
        """End the call."""
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    @property
    def body(self) -> bytes:
        """Return the body of the last answer."""
        return b"".join(piece for _, piece in self.arrivals)

    async def call(self, request: bytes) -> int:
        """Send a request and wait for the end of its answer; return the status."""
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self.arrivals, self.status = [], 0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done
        return self.status

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


async def connect(port: int, tls: ssl.SSLContext | None = None) -> Exchange:
    """Return a connection to a port of this machine."""
    factory: Callable[[], Exchange] = Exchange
    _, connection = await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", port, ssl=tls)
    return connection


def post(body: bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    """Return a request as bytes; an underscore in a header's name stands for a hyphen."""
    fields = {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Authorization": "Bearer sk-bench",
        "x-user-id": "user-1",
        "Content-Length": str(len(body)),
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
