"""One connection to a Redis server, over which one script is called. It is opened anew after every fault.

The client library is imported with the first connection, for few need it. It is used below its pool, because a
connection must not be repaired in silence: whoever connects anew has to ask whether it is still the same server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from sluice_sidecar.credentials import Secret

if TYPE_CHECKING:
    from redis.asyncio.connection import Connection

_DEFAULT_PORT: Final = 6379
_RUN_ID: Final = re.compile(rb"run_id:([0-9a-f]{8,64})")


class StoreError(Exception):
    """The store did not answer as it should. The message holds nothing that the server or the policy said.

    `moved_to` is the node of a cluster, as host and port, that this one has referred to; no host means the same one.
    """

    def __init__(self, message: str, moved_to: tuple[str, int] | None = None) -> None:
        super().__init__(message)
        self.moved_to = moved_to


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is, and how to speak to it."""

    host: str
    port: int
    database: int
    tls: bool
    ca_bundle: str | None = None


def address_of(url: str, ca_bundle: str | None = None) -> Address:
    """Return the address in a URL.

    Raises:
        StoreError: it is not `redis[s]://host[:port][/database]`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORT
        database = int(parts.path.strip("/") or 0)
    except ValueError:
        parts, port, database = urlsplit(""), 0, 0
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not plain:
        raise StoreError("the store's address is not redis[s]://host[:port][/database]; correct spec.store.url")
    return Address(host=parts.hostname, port=port, database=database, tls=parts.scheme == "rediss", ca_bundle=ca_bundle)


class Script:
    """A script and its name in the server's cache."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisLink:
    """An open connection. `server` is the server's run id: it changes when the server is restarted or replaced."""

    def __init__(self, connection: Connection, server: str) -> None:
        self._connection = connection
        self.server = server

    @classmethod
    async def open(
        cls, address: Address, username: str | None, password: Secret | None, timeout_seconds: float
    ) -> RedisLink:
        """Connect. Without a `username` the password is that of the server's default user.

        Raises:
            StoreError: that failed, or took too long.
        """
        connection = _connection(address, username, password)
        async with _closed_on_fault(connection), asyncio.timeout(timeout_seconds):
            await connection.connect()  # type: ignore[no-untyped-call]
            information = await _exchange(connection, "INFO", "server")
        found = _RUN_ID.search(information if isinstance(information, bytes) else b"")
        if found is None:
            await _disconnect(connection)
            raise StoreError("the store does not say which server it is; allow INFO")
        return cls(connection, found[1].decode())

    async def call(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int], timeout_seconds: float
    ) -> object:
        """Return the script's answer. After a fault the connection is closed: whether the script ran is unknown.

        Raises:
            StoreError: there was no answer in time.
        """
        words = (len(keys), *keys, *arguments)
        if not self._connection.is_connected:  # it would connect by itself, perhaps to another server
            raise StoreError("the store has closed the connection")
        async with _closed_on_fault(self._connection), asyncio.timeout(timeout_seconds):
            try:
                return await _exchange(self._connection, "EVALSHA", script.digest, *words)
            except _errors().NoScriptError:
                return await _exchange(self._connection, "EVAL", script.text, *words)

    async def close(self) -> None:
        """Close the connection at once."""
        await _disconnect(self._connection)


def _connection(address: Address, username: str | None, password: Secret | None) -> Connection:
    try:
        from redis.asyncio import Connection, SSLConnection
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise StoreError('the Redis client is not installed; install sluice-k8s with its extra "sidecar"') from None
    options: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "db": address.database,
        "username": username if password is not None else None,
        "password": password.reveal() if password is not None else None,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
    }
    if not address.tls:
        return Connection(**options)
    return SSLConnection(ssl_cert_reqs="required", ssl_check_hostname=True, ssl_ca_data=address.ca_bundle, **options)


async def _exchange(connection: Connection, *words: str | int) -> object:
    await connection.send_command(*words, check_health=False)
    answer: object = await connection.read_response(disconnect_on_error=False)
    return answer


@contextlib.asynccontextmanager
async def _closed_on_fault(connection: Connection) -> AsyncIterator[None]:
    """Close the connection and say why, unless all goes well. Whoever is cancelled leaves no answer behind either."""
    well = False
    try:
        yield
        well = True
    except Exception as error:  # noqa: BLE001 - of a server that talks nonsense the client makes whatever comes to it
        raise _translated(error) from None
    finally:
        if not well:
            await _disconnect(connection)


async def _disconnect(connection: Connection) -> None:
    with contextlib.suppress(OSError, _errors().RedisError):
        await connection.disconnect(nowait=True)


def _errors() -> Any:
    from redis import exceptions

    return exceptions


def _translated(error: Exception) -> StoreError:
    """Return the fault in our words. A server's own may repeat what it was sent, a password included."""
    errors = _errors()
    match error:
        case TimeoutError() | errors.TimeoutError():
            return StoreError("the store did not answer in time")
        case errors.AuthenticationError():
            return StoreError("the store refuses the user or password; correct spec.store.username or its Secret")
        case errors.NoPermissionError():
            return StoreError("the store forbids a command or a key; allow what docs/quotas.md lists")
        case errors.MovedError():
            return StoreError("the store keeps this account on another node", (error.host, error.port))
        case errors.ClusterDownError():
            return StoreError("the store's cluster is down")
        case errors.OutOfMemoryError():
            return StoreError("the store is out of memory; give it more")
        case errors.ReadOnlyError():
            return StoreError("the store is a replica that takes no writes")
        case errors.BusyLoadingError():
            return StoreError("the store is still loading its data")
        case errors.ResponseError():
            return StoreError("the store refused the call")
        case _:
            return StoreError(f"the store cannot be reached: {type(error).__name__}")
