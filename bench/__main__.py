"""Runs the benchmark: `python -m bench`. Prints the tables as Markdown and writes `bench/results/benchmark.csv`."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from pathlib import Path

import msgspec

from bench import closed, control_plane, lifecycle, machine, paths, streams
from bench.closed import UnfitError
from bench.page import BUSY, CSV, SINGLE, SOAK_CSV, STREAMS, SUMMARY, bars
from bench.results import Results, markdown
from bench.targets import (
    BARE,
    DIRECT,
    ENVOY,
    GOVERNED,
    LITELLM,
    PASSTHROUGH,
    Cores,
    Target,
    all_targets,
    available_cores,
    installed,
    sluice,
    upstream,
)

GAP_SECONDS = 0.01
LARGE_BYTES = 10_000_000
BESIDE_LARGE = "The same beside calls of 10 MB"


class Plan(msgspec.Struct, frozen=True):
    """How much is measured."""

    runs: int = 3
    seconds: int = 2
    shapes: tuple[closed.Shape, ...] = closed.SHAPES
    stream_runs: int = 2
    streams: int = 40
    events: int = 200
    starts: int = 7
    namespaces: int = 200
    report_seconds: float = 5.0
    leader_seconds: float = 30.0


QUICK = Plan(
    runs=1,
    seconds=1,
    shapes=closed.SHAPES[2:3],
    stream_runs=1,
    streams=5,
    events=20,
    starts=1,
    namespaces=4,
    report_seconds=0.5,
    leader_seconds=1.0,
)


def main() -> int:
    """Read the command line and measure; the exit status is 0 if everything answered as it should."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: its figures mean nothing")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only a soak of the governed sidecar")
    parser.add_argument(
        "--pace", type=float, metavar="CALLS", help="so many calls a second in the soak, not as many as it can"
    )
    parser.add_argument("--csv", type=Path, help="where the figures go (default: bench/results/)")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        print("The benchmark needs wrk (Debian and Ubuntu: apt install wrk; macOS: brew install wrk).", file=sys.stderr)
        return 2
    results, found = Results(), machine.describe()
    print(markdown([["machine", ""], *([name, value] for name, value in found.items())]), flush=True)
    try:
        if given.soak is not None:
            soak(given.soak, results, given.pace)
        else:
            measure(QUICK if given.quick else Plan(), results, quick=given.quick)
    except UnfitError as error:
        print(f"\nNot measured: {error}", file=sys.stderr)
        return 1
    ratios(results)
    print(f"\n{results.tables()}")
    if given.soak is None and not given.quick:
        print(f"\n### Against the bars\n\n{bars(results)}")
    if not given.quick:
        path = given.csv or (CSV if given.soak is None else SOAK_CSV)
        results.write_csv(path, found)
        print(f"\nWritten to {path}; `make crds` makes docs/reference/benchmark.md of it")
    return 0


def measure(plan: Plan, results: Results, *, quick: bool) -> None:
    """Measure everything that the plan names.

    Raises:
        UnfitError: something answered wrongly.
    """
    cores = available_cores()
    names = [PASSTHROUGH, GOVERNED] if quick else installed()
    with upstream(cores) as port, all_targets(port, cores, names) as targets:
        _say("calls")
        if not quick:
            closed.warm_up(targets, cores)
        closed.measure(targets, cores, results, plan.shapes, runs=plan.runs, seconds=plan.seconds)
        _say("other paths")
        governed = next(each for each in targets if each.name == GOVERNED)
        paths.measure(governed, port, cores, results, runs=min(3, plan.runs), seconds=plan.seconds)
        lifecycle.measure_start(port, cores, results, runs=plan.starts)
        lifecycle.note_memory(targets, results)
    _say("streams")
    with (
        upstream(cores, events=plan.events, gap_seconds=GAP_SECONDS) as port,
        all_targets(port, cores, names) as targets,
    ):
        for _ in range(plan.stream_runs):
            _streams(plan, targets, cores, results, large_bytes=0)
            _streams(plan, targets, cores, results, large_bytes=LARGE_BYTES)
    _say("control plane")
    control_plane.measure_compile(results, runs=min(3, plan.runs), namespaces=plan.namespaces)
    control_plane.measure_leader(
        cores, results, every=plan.report_seconds, seconds=plan.leader_seconds, namespaces=plan.namespaces
    )
    control_plane.measure_admissions(cores, results, runs=min(3, plan.runs), seconds=plan.seconds)


def _streams(plan: Plan, targets: list[Target], cores: Cores, results: Results, *, large_bytes: int) -> None:
    row = BESIDE_LARGE if large_bytes else STREAMS.format(events=plan.events)
    for target in targets:
        if target.name == LITELLM and large_bytes:
            continue  # it takes seconds for one such call, so the streams would be over
        load = streams.Load(target.port, plan.streams, 0.05, plan.events, large_bytes)
        figures = streams.run(load, cores)
        if figures.failed or (figures.intact < figures.streams and target.name != LITELLM):
            raise UnfitError(f"{target.name}, {row}: {figures.failed} failed, {figures.intact} intact streams")
        for metric, unit, value in (
            ("first token after the request, p50", "ms", figures.start_p50),
            ("first token after the request, p99", "ms", figures.start_p99),
            ("streams with the upstream's bytes", "%", 100 * figures.intact / figures.streams),
            ("streams with every event by itself", "%", 100 * figures.one_to_one / figures.streams),
        ):
            results.add("Streams", row, target.name, metric, unit, value)
        if not figures.delay_p99:
            continue  # the events were written anew, and the moments in them are gone
        for metric, unit, value in (
            ("event under way, p50", "ms", figures.delay_p50),
            ("event under way, p99", "ms", figures.delay_p99),
            ("gap longer than the upstream's, p99", "ms", figures.gap_p99),
        ):
            results.add("Streams", row, target.name, metric, unit, value)


def soak(minutes: float, results: Results, per_second: float | None) -> None:
    """Measure nothing but a long time."""
    cores = available_cores()
    with upstream(cores) as port, sluice(GOVERNED, "governed", port, cores) as target:
        closed.warm_up([target], cores)
        lifecycle.note_soak(asyncio.run(lifecycle.soak(target, minutes, per_second=per_second)), results)


RATIOS = (
    ("rate over the bare pass-through", PASSTHROUGH),
    ("rate over Envoy", ENVOY),
    ("rate over LiteLLM", LITELLM),
)


def ratios(results: Results) -> None:
    """Add what the bars are set on: rates as ratios, and latencies above the direct ones."""
    for name in (BARE, GOVERNED):
        rate = results.median(closed.SECTION, BUSY, name, "rate")
        for metric, other in RATIOS:
            base = results.median(closed.SECTION, BUSY, other, "rate")
            if rate and base:
                results.add(SUMMARY, BUSY, name, metric, "times", rate / base)
    for name in (PASSTHROUGH, BARE, GOVERNED, ENVOY, LITELLM):
        _additions(results, closed.SECTION, SINGLE, name, ("p50", "p99"))
        for stream_row in (STREAMS.format(events=Plan().events), BESIDE_LARGE):
            metrics = ("first token after the request, p50", "gap longer than the upstream's, p99")
            _additions(results, "Streams", stream_row, name, metrics)


def _additions(results: Results, section: str, row: str, name: str, metrics: tuple[str, ...]) -> None:
    for metric in metrics:
        value, direct = (results.median(section, row, each, metric) for each in (name, DIRECT))
        if value is not None and direct is not None:
            results.add(SUMMARY, row, name, f"{metric}, above direct", "ms", value - direct)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
