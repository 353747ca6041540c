"""Writing a body the way the faults of a call order it: paced, reframed, rechunked, stalled, cut or reset."""

import asyncio
import hashlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from aiohttp import web

from sluice_cli.mock.effects import Effect, Timing
from sluice_cli.mock.ledger import LedgerEntry
from sluice_cli.mock.wire import reframe

_COALESCED_EVENTS: Final = 16
_RANDOM_CHUNK_BYTES: Final = 48


class Cut(Exception):  # noqa: N818 - an order carried out, not an error
    """The body ended where the fault said it should."""


def abort(request: web.BaseRequest, *, reset: bool) -> None:
    """End the connection under a response: by RST, or by closing it with the body unfinished."""
    transport = request.transport
    if transport is None:
        return
    if not reset:
        transport.close()  # what has been written still goes out
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        # A zero linger time makes the kernel send RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Emitter:
    """One response body in the writing; books bytes and events as they leave."""

    __slots__ = (
        "_buffered", "_draw", "_effect", "_entry", "_hash", "_hashed", "_held", "_parts", "_plain", "_request",
        "_response", "_timing",
    )  # fmt: skip

    def __init__(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        effect: Effect,
        entry: LedgerEntry,
        draw: Callable[[], float],
        *,
        hashed: bool = True,
    ) -> None:
        self._hashed = hashed  # a large file is not worth its hashing time
        self._request = request
        self._response = response
        self._effect = effect
        self._entry = entry
        self._draw = draw
        self._timing = Timing.of(effect)
        self._hash = hashlib.sha256()
        self._held = bytearray()
        self._buffered = 0
        self._parts = 0
        self._plain = effect.chunking is None and effect.cut_at_byte is None

    async def event(self, data: bytes, *, paced: bool = True) -> None:
        """Send one event. Raises `Cut` where the body is ordered to end."""
        effect, number = self._effect, self._entry.sent_events
        if effect.cut_at_event is not None and number >= effect.cut_at_event:
            raise Cut
        if effect.stall_at_event == number and effect.stall_seconds:
            await asyncio.sleep(effect.stall_seconds)
        if paced and number and self._timing.gap is not None:
            await asyncio.sleep(self._timing.gap.draw(self._draw()))
        if effect.crlf or effect.no_space or effect.comments:
            data = reframe(
                data,
                crlf=bool(effect.crlf),
                space_after_colon=not effect.no_space,
                comment=bool(effect.comments),
            )
        if self._plain:
            await self._write(data)
        elif effect.chunking == "coalesced":
            await self._hold(data)
        else:
            await self._chunks(data)
        self._entry.sent_events += 1

    async def raw(self, data: bytes) -> None:
        """Send a part of a body that is no event stream; for pace and stalls it counts as an event does."""
        number, effect = self._parts, self._effect
        self._parts += 1
        if effect.stall_at_event == number and effect.stall_seconds:
            await asyncio.sleep(effect.stall_seconds)
        if number and self._timing.gap is not None:
            await asyncio.sleep(self._timing.gap.draw(self._draw()))
        if self._plain:
            await self._write(data)
        else:
            await self._chunks(data)

    async def finish(self) -> None:
        """Send what is held back; the caller ends the response."""
        if self._held:
            data = bytes(self._held)
            self._held.clear()
            await self._chunks(data)
        if self._hashed:
            self._entry.sent_sha256 = self._hash.hexdigest()

    async def _hold(self, data: bytes) -> None:
        self._held += data
        self._buffered += 1
        if self._buffered % _COALESCED_EVENTS == 0:
            held = bytes(self._held)
            self._held.clear()
            await self._chunks(held)

    async def _chunks(self, data: bytes) -> None:
        cut = self._effect.cut_at_byte
        if cut is not None:
            left = cut - self._entry.sent_bytes
            if len(data) >= left:
                if left > 0:
                    await self._write(data[:left])
                raise Cut
        for piece in _pieces(data, self._effect.chunking, self._draw):
            await self._write(piece)
            if self._effect.chunking is not None:
                # Each piece is its own segment: the loop must turn before the next is written.
                await asyncio.sleep(0)

    async def _write(self, data: bytes) -> None:
        await self._response.write(data)
        if self._hashed:
            self._hash.update(data)
        self._entry.sent_bytes += len(data)


def _pieces(data: bytes, chunking: str | None, draw: Callable[[], float]) -> Iterator[bytes]:
    if chunking == "bytes":
        for at in range(len(data)):
            yield data[at : at + 1]
    elif chunking == "random":
        at = 0
        while at < len(data):
            size = 1 + int(draw() * _RANDOM_CHUNK_BYTES)
            yield data[at : at + size]
            at += size
    elif chunking == "utf8":
        # Behind the first byte of the first long character; in the middle where all are short.
        lead = next((at for at, byte in enumerate(data) if byte >= 0xC0), len(data) // 2)
        yield data[: lead + 1]
        if data[lead + 1 :]:
            yield data[lead + 1 :]
    else:
        yield data
