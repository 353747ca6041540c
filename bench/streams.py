"""Open-loop streams: they begin on a schedule, whatever happened to those before. Runs as a process of its own.

Every event holds the moment at which the upstream sent it. An event's delay is its arrival minus that moment, so that
the upstream's own jitter is in no figure; a gap's growth is the delay of an event minus that of the one before it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import subprocess
import sys
import time

import msgspec
import uvloop

from bench import wrk
from bench.client import connect, post
from bench.processes import ROOT, pinned
from bench.targets import Cores
from bench.upstream import STAMP_DIGITS, stream_events

_STAMP = re.compile(rb'"sent":"(\d{19})"')


class Load(msgspec.Struct, frozen=True):
    """What to do: so many streams, one every so often; with `large_bytes`, beside calls with bodies of that size."""

    port: int
    streams: int
    every_seconds: float
    events: int
    large_bytes: int = 0
    model: str = "gpt-4.1-mini"


class Figures(msgspec.Struct, frozen=True):
    """What was measured; times in milliseconds.

    `first_*`: from the upstream's sending of the first event to its arrival. `start_*`: from the moment at which the
    stream should have begun to its first event. `gap_*`: growth of the gaps. `intact` counts the streams whose bytes
    are exactly the upstream's, `one_to_one` those where every event arrived by itself.
    """

    streams: int
    intact: int
    one_to_one: int
    failed: int
    first_p50: float
    first_p99: float
    start_p50: float
    start_p99: float
    gap_p50: float
    gap_p99: float
    delay_p50: float
    delay_p99: float
    large_calls: int


class _Seen:
    def __init__(self) -> None:
        self.starts: list[float] = []
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.delays: list[float] = []
        self.intact = self.one_to_one = self.failed = self.large_calls = 0


def run(load: Load, cores: Cores) -> Figures:
    """Run the load in a process of its own and return what it measured."""
    command = [*pinned(cores.load), sys.executable, "-m", "bench.streams", msgspec.json.encode(load).decode()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return msgspec.json.decode(done.stdout, type=Figures)


async def _measure(load: Load) -> Figures:
    seen = _Seen()
    body = wrk.chat_body(600, load.model, stream=True)
    expected = b"".join(stream_events(load.events, usage=False))
    loop = asyncio.get_running_loop()
    begin = loop.time() + 0.2
    large = asyncio.create_task(_large_calls(load, seen)) if load.large_bytes else None
    async with asyncio.TaskGroup() as group:
        for number in range(load.streams):
            group.create_task(_stream(load.port, post(body), begin + number * load.every_seconds, expected, seen))
    if large is not None:
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
    return _figures(load, seen)


async def _stream(port: int, request: bytes, begin: float, expected: bytes, seen: _Seen) -> None:
    loop = asyncio.get_running_loop()
    connection = await connect(port)
    await asyncio.sleep(max(0.0, begin - loop.time()))
    due = time.monotonic_ns() - int((loop.time() - begin) * 1e9)
    try:
        status = await connection.call(request)
    except ConnectionError:
        status = 0
    finally:
        connection.close()
    if status != 200:
        seen.failed += 1
        return
    _note(connection.arrivals, due, expected, seen)


def _note(arrivals: list[tuple[int, bytes]], due: int, expected: bytes, seen: _Seen) -> None:
    delays = [(arrival - int(match[1])) / 1e6 for arrival, piece in arrivals for match in _STAMP.finditer(piece)]
    whole = b"".join(piece for _, piece in arrivals)
    seen.intact += _STAMP.sub(b'"sent":"' + b"0" * STAMP_DIGITS + b'"', whole) == expected
    seen.one_to_one += all(piece.count(b"\n\n") == 1 for _, piece in arrivals)
    seen.starts.append((arrivals[0][0] - due) / 1e6)
    if delays:
        seen.firsts.append(delays[0])
        seen.delays += delays
        seen.gaps += [after - before for before, after in itertools.pairwise(delays)]


async def _large_calls(load: Load, seen: _Seen) -> None:
    """Send one large call after the other for as long as the streams run."""
    request = post(wrk.chat_body(load.large_bytes, load.model))
    connection = await connect(load.port)
    try:
        while True:
            if await connection.call(request) != 200:
                seen.failed += 1
            seen.large_calls += 1
            await asyncio.sleep(0.05)
    finally:
        connection.close()


def _figures(load: Load, seen: _Seen) -> Figures:
    return Figures(
        streams=load.streams,
        intact=seen.intact,
        one_to_one=seen.one_to_one,
        failed=seen.failed,
        first_p50=quantile(seen.firsts, 0.5),
        first_p99=quantile(seen.firsts, 0.99),
        start_p50=quantile(seen.starts, 0.5),
        start_p99=quantile(seen.starts, 0.99),
        gap_p50=quantile(seen.gaps, 0.5),
        gap_p99=quantile(seen.gaps, 0.99),
        delay_p50=quantile(seen.delays, 0.5),
        delay_p99=quantile(seen.delays, 0.99),
        large_calls=seen.large_calls,
    )


def quantile(values: list[float], share: float) -> float:
    """Return a quantile, by nearest rank; 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def main() -> None:
    """Run the load that the argument describes; print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("load")
    load = msgspec.json.decode(parser.parse_args().load, type=Load)
    print(msgspec.json.encode(uvloop.run(_measure(load))).decode())


if __name__ == "__main__":
    main()
