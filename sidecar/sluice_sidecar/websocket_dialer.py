"""Opening WebSockets to an upstream, with aiohttp's client: no redirects, no cookies, no fields of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from sluice_core.records import Outcome
from sluice_sidecar.headers import Field, Fields
from sluice_sidecar.transport import TransportError
from sluice_sidecar.websocket import MAX_MESSAGE_BYTES

MAX_CONNECTIONS = 1000
_NOTHING_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
MAX_DECLINED_BYTES = 1024 * 1024
DECLINED_SECONDS = 5.0


class DeclinedError(Exception):
    """The upstream answered the handshake with a plain HTTP answer, which is kept as it came."""

    def __init__(self, status: int, reason: str, fields: Fields, body: bytes) -> None:
        super().__init__(f"declined with {status}")
        self.status = status
        self.reason = reason
        self.fields = fields
        self.body = body


async def _take_declined(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Take any answer but an open WebSocket out of aiohttp's hands: it would follow a redirect, and drop the body."""
    response = await handler(request)
    if response.status == 101:
        return response
    body = bytearray()
    try:
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(DECLINED_SECONDS):
                while len(body) < MAX_DECLINED_BYTES and (part := await response.content.readany()):
                    body += part
    finally:
        response.close()
    raise DeclinedError(response.status, response.reason or "", Fields(response.raw_headers), bytes(body))


class WebSocketDialer:
    """Opens WebSockets to one upstream. Costs nothing until the first one."""

    def __init__(self, ca_bundle: str | None = None) -> None:
        """Trust the system's authorities, or only those in `ca_bundle`, given as PEM text."""
        self._ca_bundle = ca_bundle
        self._session: aiohttp.ClientSession | None = None

    async def dial(self, url: str, fields: list[Field], protocols: tuple[str, ...]) -> aiohttp.ClientWebSocketResponse:
        """Return an open WebSocket.

        Raises:
            TransportError: the upstream cannot be reached.
            DeclinedError: it answered with plain HTTP.
        """
        if self._session is None:
            self._session = self._new_session()
        try:
            return await self._session.ws_connect(
                URL(url, encoded=True),
                headers=CIMultiDict(fields),
                protocols=protocols,
                max_msg_size=MAX_MESSAGE_BYTES,
                autoping=False,
                autoclose=False,
            )
        except aiohttp.WSServerHandshakeError:
            raise TransportError(Outcome.CONNECTION_ERROR, "malformed_response") from None
        except TimeoutError:
            raise TransportError(Outcome.TIMEOUT, "connect_timeout") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise TransportError(Outcome.CONNECTION_ERROR, "connection_refused") from None

    def _new_session(self) -> aiohttp.ClientSession:
        context = ssl.create_default_context(cadata=self._ca_bundle) if self._ca_bundle is not None else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=context),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=60.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            middlewares=(_take_declined,),
            skip_auto_headers=_NOTHING_ADDED,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all WebSockets."""
        if self._session is not None:
            await self._session.close()
