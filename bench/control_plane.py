"""The control plane at scale: one leader and a thousand sidecars, a cluster's worth of resources, admissions."""

from __future__ import annotations

import time

import msgspec

from bench import admissions, wrk
from bench.closed import UnfitError
from bench.fleet import NAMESPACES, PODS_PER_NAMESPACE, compiled_fleet, resources
from bench.policy import refuse_errors
from bench.processes import cpu_seconds, first_line, python, resident_mib, started
from bench.results import Results
from bench.sidecars import Figures
from bench.targets import Cores
from sluice_core.snapshot import encode

SECTION = "Control plane"


def measure_compile(results: Results, *, runs: int, namespaces: int = NAMESPACES) -> None:
    """Compile and encode all of a cluster's policies."""
    everything = resources(namespaces)
    for _ in range(runs):
        start = time.perf_counter()
        compiled = compiled_fleet(everything)
        size = sum(len(encode(snapshot)) for snapshot in compiled.snapshots.values())
        spent = time.perf_counter() - start
        refuse_errors(compiled)
        row = f"compile and encode {len(everything)} resources in {namespaces} namespaces"
        results.add(SECTION, row, "operator", "time", "s", spent)
        results.add(SECTION, row, "operator", "policies", "kB", size / 1000)


def measure_leader(
    cores: Cores, results: Results, *, every: float = 5.0, seconds: float, namespaces: int = NAMESPACES
) -> None:
    """Let sidecars report to one leader; note its share of a core, in steady state.

    Raises:
        UnfitError: reports failed, or nobody was leased anything.
    """
    pods = namespaces * PODS_PER_NAMESPACE
    row = f"{pods} sidecars, a report every {every:g} s"
    options = ["--namespaces", str(namespaces)]
    with started(python("bench.fleet", *options), core=cores.proxy) as leader:
        port = first_line(leader)
        options += ["--every", str(every), "--seconds", str(seconds + every)]
        with started(python("bench.sidecars", port, *options), core=cores.load) as sidecars:
            first_line(sidecars)  # all are connected
            time.sleep(every)  # everybody has been heard of once
            before, start = cpu_seconds(leader.pid), time.perf_counter()
            time.sleep(max(0.0, seconds - 1.0))
            share = (cpu_seconds(leader.pid) - before) / (time.perf_counter() - start)
            memory = resident_mib(leader.pid)
            figures = msgspec.json.decode(first_line(sidecars), type=Figures)
    if figures.failed or not figures.leased:
        raise UnfitError(f"{row}: {figures.failed} failed reports, {figures.leased} leases")
    results.add(SECTION, row, "operator", "processor", "% of a core", share * 100)
    results.add(SECTION, row, "operator", "memory", "MiB", memory)
    results.add(SECTION, row, "operator", "reports answered", "", figures.reports)
    results.add(SECTION, row, "operator", "p50", "ms", figures.p50)
    results.add(SECTION, row, "operator", "p99", "ms", figures.p99)


def measure_admissions(cores: Cores, results: Results, *, runs: int, seconds: int) -> None:
    """Put admission reviews on one injector, with TLS.

    Raises:
        UnfitError: an answer was an error.
    """
    row = "admissions, one injector, 16 connections"
    body = admissions.review()
    with started(python("bench.admissions"), core=cores.proxy) as injector:
        port = int(first_line(injector))
        for _ in range(runs):
            load = wrk.run(
                port, body=body, connections=16, seconds=seconds, core=cores.load, path="/inject", scheme="https"
            )
            if load.bad_statuses or load.broken:
                raise UnfitError(f"{row}: {load.bad_statuses} bad statuses, {load.broken} broken calls")
            results.add(SECTION, row, "operator", "rate", "admissions/s", load.per_second)
            results.add(SECTION, row, "operator", "p99", "ms", load.p99_us / 1000)
        results.add(SECTION, row, "operator", "memory", "MiB", resident_mib(injector.pid))
