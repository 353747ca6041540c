"""The proxy port's HTTP server: aiohttp's low-level one, with our answers to requests that cannot be parsed."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from sluice_core.errors import RefusalCode, refuse

LONGEST_LINE_BYTES = 16 * 1024
LONGEST_FIELD_BYTES = 32 * 1024
MOST_FIELDS = 256


class _Connection(web.RequestHandler):
    """One connection of the application."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 - aiohttp's signature
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002
        message: str | None = None,  # noqa: ARG002 - it quotes what the client sent
    ) -> web.StreamResponse:
        """Answer in the API's shape, without a quotation, and close."""
        code = RefusalCode.INVALID_REQUEST if status < 500 else RefusalCode.INTERNAL_ERROR
        refusal = refuse(code, "The request is not valid HTTP." if status < 500 else "The Sluice sidecar failed.")
        response = web.Response(status=status, body=refusal.body(), headers=refusal.headers())
        response.force_close()
        return response


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
