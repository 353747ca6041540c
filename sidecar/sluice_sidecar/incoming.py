"""A request of the application as the pipeline sees it, and its body, which comes while it is being read."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from aiohttp import web

from sluice_sidecar.headers import Fields


class IncomingBody(Protocol):
    """The body of a request."""

    def is_eof(self) -> bool:
        """Tell whether all of it has come."""
        ...

    def at_eof(self) -> bool:
        """Tell whether all of it has come and has been read."""
        ...

    def read_nowait(self) -> bytes:
        """Return what has come."""
        ...

    async def readany(self) -> bytes:
        """Return what has come as soon as something has, or nothing at the end.

        Raises:
            web.RequestPayloadError: it is framed wrongly.
            ConnectionError: the application has gone.
        """
        ...


class Incoming(Protocol):
    """A request. `raw_path` is its target as it was written; `handshake` is set if it asks for another protocol."""

    @property
    def method(self) -> str: ...
    @property
    def raw_path(self) -> str: ...
    @property
    def fields(self) -> Fields: ...
    @property
    def version(self) -> tuple[int, int]: ...
    @property
    def keep_alive(self) -> bool: ...
    @property
    def content(self) -> IncomingBody: ...
    @property
    def content_length(self) -> int | None: ...
    @property
    def body_exists(self) -> bool: ...
    @property
    def task(self) -> asyncio.Task[Any] | None: ...
    @property
    def handshake(self) -> web.BaseRequest | None: ...
    @property
    def transport(self) -> asyncio.Transport | None: ...
    @property
    def writing_paused(self) -> bool: ...

    async def drain(self) -> None:
        """Wait until the application has read enough of what was written.

        Raises:
            ConnectionError: it has gone.
        """
        ...


class Holder(Protocol):
    """The connection that a request has come by: it is told when bytes that it holds are taken."""

    task: asyncio.Task[Any] | None
    transport: asyncio.Transport | None
    writing_paused: bool

    def taken(self, size: int) -> None: ...
    async def drain(self) -> None: ...


class Body:
    """A body as it comes. Its connection stops reading while too much of it waits."""

    __slots__ = ("_ended", "_fault", "_holder", "_parts", "_waiter")

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._parts: list[bytes] = []
        self._ended = False
        self._fault: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    # --- what the connection calls

    def feed(self, part: bytes) -> None:
        """Add what has come."""
        self._parts.append(part)
        if self._waiter is not None:
            self._wake()

    def end(self) -> None:
        """Note that this was all."""
        self._ended = True
        if self._waiter is not None:
            self._wake()

    def fail(self, fault: Exception) -> None:
        """Let whoever reads know that the rest will not come."""
        if not self._ended and self._fault is None:
            self._fault = fault
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- what the pipeline calls

    def is_eof(self) -> bool:
        """Tell whether all of it has come."""
        return self._ended

    def at_eof(self) -> bool:
        """Tell whether all of it has come and has been read."""
        return self._ended and not self._parts

    def read_nowait(self) -> bytes:
        """Return what has come."""
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._holder.taken(len(data))
        return data

    async def readany(self) -> bytes:
        """Return what has come as soon as something has, or nothing at the end.

        Raises:
            web.RequestPayloadError: it is framed wrongly.
            ConnectionError: the application has gone.
        """
        while not self._parts and not self._ended:
            if self._fault is not None:
                raise self._fault
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.read_nowait()


class Request:
    """A request that has come by a connection of our own."""

    __slots__ = ("_holder", "content", "fields", "keep_alive", "method", "raw_path", "version")
    handshake = None

    def __init__(
        self, holder: Holder, method: str, raw_path: str, version: tuple[int, int], fields: Fields, *, keep_alive: bool
    ) -> None:
        self._holder = holder
        self.method = method
        self.raw_path = raw_path
        self.version = version
        self.fields = fields
        self.keep_alive = keep_alive
        self.content = Body(holder)

    @property
    def content_length(self) -> int | None:
        """Return the length of the body, if it was declared."""
        declared = self.fields.get("content-length")
        return None if declared is None else int(declared)  # digits only, the parser says

    @property
    def body_exists(self) -> bool:
        """Tell whether there is a body that is not empty, as far as the head tells."""
        return self.fields.framed and self.content_length != 0

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """Return the task that answers it; asking asyncio for the current one costs a call of the kernel."""
        return self._holder.task

    @property
    def transport(self) -> asyncio.Transport | None:
        """Return the way back; None once the application has gone."""
        return self._holder.transport

    @property
    def writing_paused(self) -> bool:
        """Tell whether the application reads more slowly than we write."""
        return self._holder.writing_paused

    async def drain(self) -> None:
        """Wait until the application has read enough of what was written.

        Raises:
            ConnectionError: it has gone.
        """
        await self._holder.drain()


class Handshake:
    """A request that asks for another protocol. aiohttp's server holds it, which knows how to grant or decline that."""

    __slots__ = ("fields", "handshake")

    def __init__(self, request: web.BaseRequest) -> None:
        self.handshake = request
        self.fields = Fields(request.raw_headers)

    @property
    def method(self) -> str:
        """Return the method."""
        return self.handshake.method

    @property
    def raw_path(self) -> str:
        """Return the target as it was written."""
        return self.handshake.raw_path

    @property
    def version(self) -> tuple[int, int]:
        """Return the version of the protocol."""
        return self.handshake.version

    @property
    def keep_alive(self) -> bool:
        """Tell whether the connection may be used again."""
        return self.handshake.keep_alive

    @property
    def content(self) -> IncomingBody:
        """Return the body."""
        return self.handshake.content

    @property
    def content_length(self) -> int | None:
        """Return the length of the body, if it was declared."""
        return self.handshake.content_length

    @property
    def body_exists(self) -> bool:
        """Tell whether there is a body that is not empty, as far as the head tells."""
        return self.handshake.body_exists

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """Return the task that answers it."""
        return self.handshake.task

    @property
    def transport(self) -> asyncio.Transport | None:
        """Return the way back; None once the application has gone."""
        return self.handshake.transport

    @property
    def writing_paused(self) -> bool:
        """Tell whether the application reads more slowly than we write."""
        return self.handshake.protocol.writing_paused

    async def drain(self) -> None:
        """Wait until the application has read enough of what was written.

        Raises:
            ConnectionError: it has gone.
        """
        await self.handshake.writer.drain()
