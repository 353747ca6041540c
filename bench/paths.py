"""The paths that are not the usual one: an upstream that fails, a limit that is reached, a policy that changes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Self
from urllib.request import urlopen

from bench import wrk
from bench.closed import UnfitError
from bench.policy import Mount, compiled
from bench.results import Results
from bench.targets import Cores, Target

SECTION = "Other paths, 16 connections, 1 KB"
CONNECTIONS = 16


def measure(target: Target, upstream_port: int, cores: Cores, results: Results, *, runs: int, seconds: int) -> None:
    """Measure the governed sidecar beyond the usual path.

    Raises:
        UnfitError: an answer was not the one that the path is about.
    """
    for _ in range(runs):
        _path(target, "served by the route's target", "gpt-4.1-mini", cores, results, seconds)
        _path(target, "upstream fails 9 of 10, fallback answers", "mostly-1", cores, results, seconds)
        _path(target, "breaker open, fallback answers", "fail-1", cores, results, seconds)
        _path(target, "limit reached, 429", "tight", cores, results, seconds, refused=True)
        _under_reloads(target, upstream_port, cores, results, seconds)


def _under_reloads(target: Target, upstream_port: int, cores: Cores, results: Results, seconds: int) -> None:
    assert target.mount is not None
    row = "policy replaced twice a second"
    with Reloads(target.mount, upstream_port) as reloads:
        _path(target, row, "gpt-4.1-mini", cores, results, seconds)
    wait_until(lambda: status(target)["revision"] == reloads.revision, "the last policy is not in force")
    results.add(SECTION, row, target.name, "replaced", "times", reloads.count)


def _path(
    target: Target, row: str, model: str, cores: Cores, results: Results, seconds: int, *, refused: bool = False
) -> None:
    body = wrk.chat_body(1_000, model)
    before = target.cpu_seconds()
    load = wrk.run(target.port, body=body, connections=CONNECTIONS, seconds=seconds, core=cores.load)
    used = target.cpu_seconds() - before
    served = load.requests - load.bad_statuses
    if load.broken or (served > 1 if refused else load.bad_statuses):
        raise UnfitError(f"{row}: {load.bad_statuses} bad statuses of {load.requests}, {load.broken} broken calls")
    results.add(SECTION, row, target.name, "rate", "calls/s", load.per_second)
    results.add(SECTION, row, target.name, "p50", "ms", load.p50_us / 1000)
    results.add(SECTION, row, target.name, "p99", "ms", load.p99_us / 1000)
    results.add(SECTION, row, target.name, "processor", "us/call", used / max(1, load.requests) * 1e6)


class Reloads:
    """Replaces the mounted policy twice a second from a thread of its own; `count` says how often it did."""

    def __init__(self, mount: Mount, upstream_port: int) -> None:
        self._mount = mount
        self._upstream = f"http://127.0.0.1:{upstream_port}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0
        self.revision = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            self.count += 1
            snapshot = compiled("governed", self._upstream, weight=10 + self.count % 80)
            self.revision = snapshot.revision
            self._mount.write(snapshot)


def status(target: Target) -> dict[str, object]:
    """Return the sidecar's status page."""
    with urlopen(f"http://127.0.0.1:{target.admin_port}/status", timeout=10) as answer:
        page: dict[str, object] = json.loads(answer.read())
        return page


def wait_until(condition: Callable[[], bool], otherwise: str, seconds: float = 10.0) -> None:
    """Wait until the condition holds.

    Raises:
        UnfitError: it does not within the time; the message says `otherwise`.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise UnfitError(otherwise)
        time.sleep(0.05)
