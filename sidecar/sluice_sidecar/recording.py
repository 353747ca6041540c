"""Keeping what an application gets of a stream while it gets it, within a bound for all streams together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sluice_sidecar.downstream import ClientGoneError, Downstream
from sluice_sidecar.headers import Field


class Room:
    """The memory that there is for recording: in all, and for each answer."""

    __slots__ = ("max_answer_bytes", "max_bytes", "used_bytes")

    def __init__(self, max_bytes: int, max_answer_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.max_answer_bytes = max_answer_bytes
        self.used_bytes = 0

    def take(self, size: int) -> bool:
        """Take so much, if there is so much."""
        if self.used_bytes + size > self.max_bytes:
            return False
        self.used_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        self.used_bytes -= size


class RecordingDownstream(Downstream):
    """The application's side of a call, put in the place of another one before its answer begins.

    `wanted` tells whether others wait for the answer: if the application goes away, it is then read to its end all the
    same. `recorded` is what has been written so far, None once it is too much to keep.
    """

    __slots__ = ("_gone", "_parts", "_room", "_size", "_wanted")

    def __init__(self, replaced: Downstream, room: Room, wanted: Callable[[], bool]) -> None:
        super().__init__(replaced._request, closing=replaced._closing)  # noqa: SLF001 - of its own base class
        self._room = room
        self._wanted = wanted
        self._gone = False
        self._size = 0
        self._parts: list[bytes] | None = []

    @property
    def recorded(self) -> bytes | None:
        """Return the body so far, None if it is too much."""
        return b"".join(self._parts) if self._parts is not None else None

    def start(
        self,
        status: int,
        reason: str,
        fields: Sequence[Field],
        length: int | None,
        *,
        passed: bytes = b"",
        body: bytes = b"",
    ) -> None:
        """Write the head, and as much of the body as there is already."""
        self._record(body)
        try:
            super().start(status, reason, fields, length, passed=passed, body=body)
        except ClientGoneError:
            self._lose()

    def put(self, chunk: bytes) -> bool:
        """Write a part of the body; tell whether the application reads more slowly than the upstream sends."""
        self._record(chunk)
        if self._gone:
            self._lose()
            return False
        try:
            return super().put(chunk)
        except ClientGoneError:
            self._lose()
            return False

    async def drain(self) -> None:
        """Wait until the application has read enough of what was written."""
        try:
            await super().drain()
        except ClientGoneError:
            self._lose()

    def finish(self) -> None:
        """Write the end of the body."""
        if not self._gone:
            super().finish()

    def write_last(self, chunk: bytes) -> None:
        """Write a last part and the end of the body without waiting."""
        self.forget()
        if not self._gone:
            super().write_last(chunk)

    def forget(self) -> None:
        """Give the memory back: nothing more is recorded."""
        self._room.give_back(self._size)
        self._size = 0
        self._parts = None

    def _record(self, part: bytes) -> None:
        if self._parts is None or not part:
            return
        fits = self._size + len(part) <= self._room.max_answer_bytes and self._room.take(len(part))
        if not fits:
            self.forget()
            return
        self._parts.append(part)
        self._size += len(part)

    def _lose(self) -> None:
        """The application has gone: go on for those who wait, as long as there will be something for them."""
        if self._parts is None or not self._wanted():
            raise ClientGoneError
        self._gone = True
