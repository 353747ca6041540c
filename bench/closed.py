"""Closed loop: so many connections, each with one call in flight. Rate, latency and processor time per call."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bench import wrk
from bench.results import Results
from bench.targets import DIRECT, LITELLM, Cores, Target

SECTION = "Calls"


class Shape(msgspec.Struct, frozen=True):
    """One row: how many connections, how large a prompt."""

    row: str
    connections: int
    body_bytes: int


SHAPES = (
    Shape("1 connection, 1 KB", 1, 1_000),
    Shape("4 connections, 1 KB", 4, 1_000),
    Shape("16 connections, 1 KB", 16, 1_000),
    Shape("64 connections, 1 KB", 64, 1_000),
    Shape("16 connections, 10 KB", 16, 10_000),
    Shape("16 connections, 100 KB", 16, 100_000),
)
BODIES = {size: wrk.chat_body(size) for size in {shape.body_bytes for shape in SHAPES}}


class UnfitError(Exception):
    """Something answered wrongly under load: its figures would mean nothing."""


def warm_up(targets: Sequence[Target], cores: Cores) -> None:
    """Let every target have its connections, its caches and its first garbage collections behind it."""
    for target in targets:
        wrk.run(target.port, body=BODIES[1_000], connections=16, seconds=1, core=cores.load)


def measure(
    targets: Sequence[Target], cores: Cores, results: Results, shapes: Sequence[Shape], *, runs: int, seconds: int
) -> None:
    """Put the same load on every target in turn, several times over.

    Raises:
        UnfitError: a target answered with an error.
    """
    for _ in range(runs):
        for shape in shapes:
            for target in targets:
                if target.name == LITELLM and shape.connections == 64:
                    continue  # hundreds of milliseconds a call: what is in flight at the end never comes
                _sample(target, shape, cores, results, seconds)


def _sample(target: Target, shape: Shape, cores: Cores, results: Results, seconds: int) -> None:
    body = BODIES[shape.body_bytes]
    before = target.cpu_seconds()
    load = wrk.run(target.port, body=body, connections=shape.connections, seconds=seconds, core=cores.load)
    used = target.cpu_seconds() - before
    if load.bad_statuses or load.broken:
        raise UnfitError(f"{target.name}, {shape.row}: {load.bad_statuses} bad statuses, {load.broken} broken calls")
    results.add(SECTION, shape.row, target.name, "rate", "calls/s", load.per_second)
    results.add(SECTION, shape.row, target.name, "p50", "ms", load.p50_us / 1000)
    results.add(SECTION, shape.row, target.name, "p99", "ms", load.p99_us / 1000)
    if target.name != DIRECT:
        results.add(SECTION, shape.row, target.name, "processor", "us/call", used / max(1, load.requests) * 1e6)
