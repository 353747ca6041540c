"""What the sidecar needs of an HTTP client, and no more: one request out, one raw answer back, faults with a name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import msgspec

from sluice_core.api.upstream import Timeouts
from sluice_core.records import Outcome
from sluice_sidecar.headers import Fields


class TransportError(Exception):
    """The upstream could not be reached, or broke off.

    `outcome` is Timeout or ConnectionError, or Truncated for a body that ended too early; `code` says where it
    happened, in a closed vocabulary. Neither holds anything of the request.
    """

    def __init__(self, outcome: Outcome, code: str) -> None:
        super().__init__(f"{outcome}: {code}")
        self.outcome = outcome
        self.code = code


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it goes out. `lines` are those of its head, each with its end. `body` is whole, or an iterator
    that can be sent once.

    `content_length` is that of an iterator, if it is known; otherwise it is sent in chunks.
    """

    method: str
    url: str
    lines: bytes
    body: bytes | AsyncIterator[bytes] | None
    timeouts: Timeouts
    content_length: int | None = None


class UpstreamResponse(Protocol):
    """One answer. It must be finished with `release` (body read to its end) or `abort`."""

    status: int
    reason: str
    fields: Fields

    def take(self) -> bytes | None:
        """Return the bytes of the body that have come, nothing at its end, None if there may be more but not yet."""
        ...

    @property
    def ended(self) -> bool:
        """Tell whether all of the body has been taken."""
        ...

    def arrival(self) -> Awaitable[None]:
        """Return what is done as soon as there is something to take, or has failed: look, await, and look again.

        Raises:
            TransportError: the connection broke.
        """
        ...

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Hand what comes to `sink` as it comes, until that returns true because it is full, or the body ends.

        To be called when there is nothing to take. What the sink raises is raised here.

        Raises:
            TransportError: the connection broke, or was silent for too long.
        """
        ...

    async def next_chunk(self) -> bytes:
        """Return the next bytes of the body as they came, or nothing at its end.

        Raises:
            TransportError: the connection broke, or was silent for too long.
        """
        ...

    def release(self) -> None:
        """Give the connection back for reuse; it is closed if the body was not read to its end."""
        ...

    def abort(self) -> None:
        """Close the connection at once."""
        ...


class UpstreamTransport(Protocol):
    """Sends requests to one upstream."""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Return the answer as soon as its head is there.

        Raises:
            TransportError: there will be none.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
