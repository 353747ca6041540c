"""The proxy port's HTTP server: connections of our own, and aiohttp's for those that ask for another protocol."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from aiohttp import web

from sluice_sidecar.closing import FAILED, MALFORMED
from sluice_sidecar.incoming import Handshake
from sluice_sidecar.incoming_connection import (
    LONGEST_FIELD_BYTES,
    LONGEST_LINE_BYTES,
    MOST_FIELDS,
    Connection,
    Handler,
)

SWEEP_SECONDS: Final = 10.0


class ProxyServer:
    """Makes connections, and ends them."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._upgrades = web.Server(self._handshake, handler_cancellation=True)
        self._sweeper: asyncio.TimerHandle | None = None

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        return Connection(self, self._loop)

    def upgrade(self, transport: asyncio.Transport, received: bytes) -> None:
        """Serve a connection from now on that has asked for another protocol, beginning with these bytes."""
        options: dict[str, Any] = {
            "access_log": None,
            "logger": silent_logger(),
            "auto_decompress": False,
            "max_line_size": LONGEST_LINE_BYTES,
            "max_field_size": LONGEST_FIELD_BYTES,
            "max_headers": MOST_FIELDS,
        }
        protocol = _UpgradedConnection(self._upgrades, loop=self._loop, **options)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(received)

    async def _handshake(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.handler(Handshake(request))

    def pre_shutdown(self) -> None:
        """Close the connections on which nothing happens, and each other one behind its next answer."""
        for connection in tuple(self.connections):
            connection.close()
        self._upgrades.pre_shutdown()

    async def shutdown(self, seconds: float) -> None:
        """Close all connections, after so long at the latest."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.gather(*(connection.shutdown(seconds) for connection in tuple(self.connections)))
        await self._upgrades.shutdown(seconds)

    def _sweep(self) -> None:
        """Look for clients that have been silent for too long."""
        now = self._loop.time()
        for connection in tuple(self.connections):
            connection.look_at_clock(now)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self.connections else None


class _UpgradedConnection(web.RequestHandler):
    """A connection of aiohttp's, with our answers: its own would quote what the client sent."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Return the answer to a request that is no HTTP, or that the handler has failed to serve."""
        del request, exc, message
        refusal = MALFORMED if status == MALFORMED.status else FAILED
        answer = web.Response(status=status, body=refusal.body(), headers=refusal.headers())
        answer.force_close()
        return answer


def silent_logger() -> logging.Logger:
    """Return a logger for the HTTP parser that writes nothing: its messages quote what the client sent, keys too."""
    logger = logging.getLogger("sluice.http")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    logger.disabled = True
    return logger
