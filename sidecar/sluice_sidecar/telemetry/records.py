"""Decision records: one JSON line per call on standard output, written in batches by a thread of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import msgspec

from sluice_core.records import CallRecord

MAX_WAITING = 10_000
FLUSH_SECONDS = 0.1


class RecordWriter:
    """Takes records at the speed of calls; a slow reader of the output costs records, never calls."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._waiting: list[bytes] = []
        self._encoder = msgspec.json.Encoder()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="records")
        self._flush: asyncio.Handle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._closing = False
        self.dropped = 0

    def add(self, record: CallRecord) -> None:
        """Have the record written soon, or drop and count it if too many wait already."""
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        # Encoded here: in the other thread it would keep the interpreter's lock, and calls waiting, for a whole batch.
        self._waiting.append(self._encoder.encode(record))
        if self._flush is None and self._writing is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._start)

    def _start(self) -> None:
        self._flush = None
        batch, self._waiting = self._waiting, []
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write, batch)
        self._writing.add_done_callback(self._finished)

    def _finished(self, writing: asyncio.Future[None]) -> None:
        self._writing = None
        if not writing.cancelled() and writing.exception() is not None:
            self.dropped += 1
        if self._waiting and self._closing:
            self._start()
        elif self._waiting:
            # Not at once: under load that would be a change of threads for every other call.
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._start)

    def _write(self, batch: list[bytes]) -> None:
        self._output.write(b"\n".join([*batch, b""]))
        self._output.flush()

    async def close(self, timeout_seconds: float) -> None:
        """Write what waits, for at most this long."""
        self._closing = True
        if self._flush is not None:
            self._flush.cancel()
            self._start()
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while (writing := self._writing) is not None:
            done, _ = await asyncio.wait({writing}, timeout=deadline - asyncio.get_running_loop().time())
            if not done:
                self.dropped += len(self._waiting)
                break
            await asyncio.sleep(0)  # lets the callback start the next batch
        self._thread.shutdown(wait=False)
