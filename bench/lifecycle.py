"""A sidecar's life: how fast it is ready, what it weighs, whether it stays that way."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from bench import wrk
from bench.client import connect, post
from bench.closed import UnfitError
from bench.paths import status, wait_until
from bench.policy import Mount, compiled, write_keys
from bench.processes import pinned, python, resident_mib, wait_until_ready
from bench.results import Results
from bench.targets import GOVERNED, Cores, Target, sidecar_environment, wait_for_ports

SECTION = "Life of a sidecar"


def measure_start(upstream_port: int, cores: Cores, results: Results, *, runs: int) -> None:
    """Start sidecars with every policy on; note how long until `/readyz` says yes, and their memory when idle."""
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="sluice-bench-") as directory:
            folder = Path(directory)
            snapshot = compiled("governed", f"http://127.0.0.1:{upstream_port}")
            Mount(folder / "config").write(snapshot)
            write_keys(folder / "credentials", snapshot)
            start = time.perf_counter()
            process = subprocess.Popen(
                [*pinned(cores.proxy), *python("sluice_sidecar")],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **sidecar_environment(folder)},
            )
            try:
                ports = wait_for_ports(folder / "ports.json", process)
                wait_until_ready(f"http://127.0.0.1:{ports['admin']}/readyz", process)
                results.add(SECTION, "start to ready", GOVERNED, "time", "s", time.perf_counter() - start)
                results.add(SECTION, "idle", GOVERNED, "memory", "MiB", resident_mib(process.pid))
            finally:
                process.terminate()
                process.wait()


def note_memory(targets: list[Target], results: Results) -> None:
    """Note what every target weighs after load."""
    for target in targets:
        if target.pid:
            results.add(SECTION, "after load", target.name, "memory", "MiB", target.resident_mib())


class Soak(msgspec.Struct, frozen=True):
    """What a soak showed. The slope is that of a line through the memory of its second half."""

    minutes: float
    calls: int
    unexpected: int
    first_mib: float
    last_mib: float
    slope_mib_per_hour: float
    in_flight_after: int


MIX = (
    ("gpt-4.1-mini", False, 1_000),
    ("gpt-4.1-mini", True, 1_000),
    ("gpt-4.1", False, 10_000),
    ("mostly-1", False, 1_000),
    ("fail-1", False, 1_000),
    ("tight", False, 1_000),
    ("gpt-4.1-mini", False, 100_000),
)
EXPECTED = frozenset({200, 429})


async def soak(target: Target, minutes: float, *, workers: int = 16, per_second: float | None = None) -> Soak:
    """Keep mixed traffic on a sidecar: plain calls, streams, failures, refusals, and clients that go away.

    Without `per_second` it is as much as the workers get answered.
    """
    end = time.monotonic() + minutes * 60
    counts = {"calls": 0, "unexpected": 0}
    samples: list[tuple[float, float]] = []
    async with asyncio.TaskGroup() as group:
        for worker in range(workers):
            gap = workers / per_second if per_second else 0.0
            group.create_task(_work(target.port, end, worker, counts, gap))
        group.create_task(_weigh(target, end, samples))
    with suppress(UnfitError):
        await asyncio.to_thread(wait_until, lambda: not status(target)["inFlight"], "calls are still in flight")
    half = samples[len(samples) // 2 :]
    return Soak(
        minutes=minutes,
        calls=counts["calls"],
        unexpected=counts["unexpected"],
        first_mib=samples[0][1],
        last_mib=samples[-1][1],
        slope_mib_per_hour=slope(half) * 3600,
        in_flight_after=int(str(status(target)["inFlight"])),
    )


async def _work(port: int, end: float, worker: int, counts: dict[str, int], gap_seconds: float) -> None:
    requests = [
        post(wrk.chat_body(size, model, stream=stream), x_user_id=f"user-{worker}") for model, stream, size in MIX
    ]
    turn = worker
    connection = await connect(port)
    due = time.monotonic()
    while time.monotonic() < end:
        if gap_seconds:
            due += gap_seconds
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        turn += 1
        counts["calls"] += 1
        if turn % 50 == 0:  # goes away in the middle of a call
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.002):
                    await connection.call(requests[1])
            connection.close()
            connection = await connect(port)
            continue
        try:
            counts["unexpected"] += await connection.call(requests[turn % len(requests)]) not in EXPECTED
        except ConnectionError:
            counts["unexpected"] += 1
            connection = await connect(port)
    connection.close()


async def _weigh(target: Target, end: float, samples: list[tuple[float, float]]) -> None:
    while time.monotonic() < end:
        samples.append((time.monotonic(), target.resident_mib()))
        await asyncio.sleep(0.5)


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line of least squares through the points."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def note_soak(found: Soak, results: Results) -> None:
    """Note a soak's figures."""
    row = f"soak of {found.minutes:g} minutes"
    for metric, unit, value in (
        ("calls", "", float(found.calls)),
        ("unexpected answers", "", float(found.unexpected)),
        ("memory at the start", "MiB", found.first_mib),
        ("memory at the end", "MiB", found.last_mib),
        ("memory slope, second half", "MiB/h", found.slope_mib_per_hour),
        ("calls in flight afterwards", "", float(found.in_flight_after)),
    ):
        results.add(SECTION, row, GOVERNED, metric, unit, value)
