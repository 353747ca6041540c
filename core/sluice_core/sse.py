"""Cutting a byte stream into server-sent events, whatever its framing and however it was chunked. Sans I/O.

Lines end in LF, CRLF or CR; an empty line ends an event. Nothing is decoded or re-encoded: the pieces that come out,
joined, are the bytes that went in. At most one event is buffered, up to a bound; a larger one leaves in fragments.
"""

from __future__ import annotations

import re

MAX_EVENT_BYTES = 1 << 20

_END_OF_EVENT = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?=[^\n]))")
"""Two line ends in a row. A final CR counts only once the next byte shows that it is no half of a CRLF."""

_LONGEST_END = 4
_LF, _CR = 0x0A, 0x0D
_LINE = re.compile(rb"[^\r\n]+")
_BOM = b"\xef\xbb\xbf"


class Fragment(bytes):
    """A part of an event that is larger than the bound: to be passed on, not to be read."""

    __slots__ = ()


class SSESplitter:
    """Cuts a stream into events, each with the empty line that ends it.

    `between_events` tells that no part of an unfinished event is held or has been passed on.
    """

    __slots__ = ("_buffer", "_fragmenting", "_max_event_bytes", "_scanned", "between_events")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._fragmenting = False
        self._max_event_bytes = max_event_bytes
        self.between_events = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that this chunk completes, and fragments of those that are too large to hold."""
        if self.between_events and chunk.endswith(b"\n\n") and _CR not in chunk:
            events = self._whole(chunk)  # the way nearly every server sends them
            if events is not None:
                return events
        self._buffer += chunk
        events = self._cut()
        if len(self._buffer) > self._max_event_bytes:
            events.append(self._fragment())
        self.between_events = not self._buffer and not self._fragmenting
        return events

    def flush(self) -> bytes:
        """Return what is left at the end of the stream: an event without its end, or nothing."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return Fragment(rest) if self._fragmenting else rest

    def _whole(self, chunk: bytes) -> list[bytes] | None:
        if chunk.find(b"\n\n") == len(chunk) - 2:
            events = [chunk]
        elif b"\n\n\n" in chunk:
            return None  # more than one way to cut it; leave it to the general rule
        else:
            events = [event + b"\n\n" for event in chunk[:-2].split(b"\n\n")]
        if len(chunk) <= self._max_event_bytes:
            return events
        return [event if len(event) <= self._max_event_bytes else Fragment(event) for event in events]

    def _cut(self) -> list[bytes]:
        events: list[bytes] = []
        buffer, start = self._buffer, 0
        position = max(0, self._scanned - _LONGEST_END + 1)
        while (end := _END_OF_EVENT.search(buffer, position)) is not None:
            stop = end.end()
            event = bytes(buffer[start:stop])
            events.append(Fragment(event) if self._fragmenting or len(event) > self._max_event_bytes else event)
            self._fragmenting = False
            start = position = stop
        if start:
            del buffer[:start]
        self._scanned = len(buffer)
        return events

    def _fragment(self) -> bytes:
        """Return all but the last bytes, which may be the beginning of the event's end."""
        keep = _LONGEST_END - 1
        piece = Fragment(self._buffer[:-keep])
        del self._buffer[:-keep]
        self._scanned = 0
        self._fragmenting = True
        return piece


def event_fields(event: bytes) -> tuple[bytes, bytes]:
    """Return (name, data) of one event; several data lines are joined by LF, comments and other fields are left out."""
    if event.startswith(b"data: {") and event.find(_LF) == len(event) - 2 and _CR not in event:
        return b"", event[6:-2]
    name = b""
    data: list[bytes] = []
    for line in _LINE.findall(event.removeprefix(_BOM)):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, b"\n".join(data)
