"""The upstream transport on aiohttp's client: no redirects, no cookies, no decoding, no fields of its own."""

from __future__ import annotations

import ssl

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from sluice_core.api.upstream import Timeouts
from sluice_core.records import Outcome
from sluice_sidecar.headers import Field
from sluice_sidecar.transport import TransportError, UpstreamRequest

MAX_CONNECTIONS = 1000
_IDLE_CONNECTION_SECONDS = 55.0  # below the minute after which load balancers close
_NOTHING_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_LONGEST_FIELD = 32 * 1024

_FAULTS: tuple[tuple[type[BaseException], Outcome, str], ...] = (
    (aiohttp.ConnectionTimeoutError, Outcome.TIMEOUT, "connect_timeout"),
    (aiohttp.SocketTimeoutError, Outcome.TIMEOUT, "read_timeout"),
    (TimeoutError, Outcome.TIMEOUT, "timeout"),
    (aiohttp.ClientConnectorCertificateError, Outcome.CONNECTION_ERROR, "certificate_invalid"),
    (aiohttp.ClientSSLError, Outcome.CONNECTION_ERROR, "tls_failed"),
    (aiohttp.ClientConnectorDNSError, Outcome.CONNECTION_ERROR, "name_not_resolved"),
    (aiohttp.ClientConnectorError, Outcome.CONNECTION_ERROR, "connection_refused"),
    (aiohttp.ServerDisconnectedError, Outcome.CONNECTION_ERROR, "connection_closed"),
    (aiohttp.ClientOSError, Outcome.CONNECTION_ERROR, "connection_reset"),
    (aiohttp.ClientPayloadError, Outcome.TRUNCATED, "body_truncated"),
    (aiohttp.ClientError, Outcome.CONNECTION_ERROR, "malformed_response"),
    (OSError, Outcome.CONNECTION_ERROR, "connection_reset"),
)


def _fault(error: BaseException) -> TransportError:
    """The one place where the client's exceptions get our names."""
    for kind, outcome, code in _FAULTS:
        if isinstance(error, kind):
            return TransportError(outcome, code)
    return TransportError(Outcome.CONNECTION_ERROR, "malformed_response")


class AiohttpTransport:
    """One upstream's connections."""

    def __init__(self, ca_bundle: str | None = None) -> None:
        """Trust the system's authorities, or only those in `ca_bundle`, given as PEM text."""
        context = _tls(ca_bundle)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS, keepalive_timeout=_IDLE_CONNECTION_SECONDS, ssl=context
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NOTHING_ADDED,
            trust_env=False,
            requote_redirect_url=False,
            max_line_size=_LONGEST_FIELD,
            max_field_size=_LONGEST_FIELD,
        )
        self._timeouts: dict[Timeouts, aiohttp.ClientTimeout] = {}

    async def send(self, request: UpstreamRequest) -> AiohttpResponse:
        """Return the answer as soon as its head is there."""
        try:
            response = await self.session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=CIMultiDict(request.fields),
                data=request.body,
                allow_redirects=False,
                timeout=self._timeout(request.timeouts),
            )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _fault(error) from None
        return AiohttpResponse(response, request.timeouts.idle_seconds)

    def _timeout(self, timeouts: Timeouts) -> aiohttp.ClientTimeout:
        found = self._timeouts.get(timeouts)
        if found is None:
            self._timeouts = {timeouts: (found := _client_timeout(timeouts))}
        return found

    async def close(self) -> None:
        """Close all connections."""
        await self.session.close()


def _client_timeout(timeouts: Timeouts) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=None,  # the caller's deadline covers all attempts
        connect=timeouts.connect_seconds,
        sock_connect=timeouts.connect_seconds,
        sock_read=timeouts.first_byte_seconds,
        ceil_threshold=60,
    )


def _tls(ca_bundle: str | None) -> ssl.SSLContext | bool:
    if ca_bundle is None:
        return True
    return ssl.create_default_context(cadata=ca_bundle)


class AiohttpResponse:
    """One answer of aiohttp's client."""

    __slots__ = ("_response", "fields", "reason", "status")

    def __init__(self, response: aiohttp.ClientResponse, idle_seconds: float) -> None:
        self._response = response
        self.status = response.status
        self.reason = response.reason or ""
        self.fields: list[Field] = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in response.raw_headers]
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = idle_seconds

    async def next_chunk(self) -> bytes:
        """Return the next bytes of the body as they came, or nothing at its end."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            fault = _fault(error)
            if fault.outcome is Outcome.CONNECTION_ERROR:
                fault = TransportError(Outcome.TRUNCATED, fault.code)
            raise fault from None

    def release(self) -> None:
        """Give the connection back for reuse; it is closed if the body was not read to its end."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._response.close()


async def connect_websocket(
    transport: AiohttpTransport, url: str, fields: list[Field], protocols: tuple[str, ...], max_bytes: int
) -> aiohttp.ClientWebSocketResponse:
    """Return an open WebSocket to the upstream.

    Raises:
        TransportError: the upstream did not accept it.
        aiohttp.WSServerHandshakeError: it answered with a plain HTTP error.
    """
    try:
        return await transport.session.ws_connect(
            URL(url, encoded=True),
            headers=CIMultiDict(fields),
            protocols=protocols,
            max_msg_size=max_bytes,
            autoping=False,
            autoclose=False,
        )
    except aiohttp.WSServerHandshakeError:
        raise
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise _fault(error) from None
