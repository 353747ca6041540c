"""The page of one run, made from its CSV: the bars and how far each is reached, then every table."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench import control_plane, lifecycle
from bench.results import Results, markdown, short
from bench.targets import GOVERNED

CSV = Path(__file__).parent / "results" / "benchmark.csv"
SOAK_CSV = CSV.with_name("soak.csv")
SUMMARY = "Ratios and additions"
STREAMS = "Streams of {events} events, 10 ms apart"
BUSY, SINGLE = "16 connections, 1 KB", "1 connection, 1 KB"
_STREAM = STREAMS.format(events=200)


class Bar(msgspec.Struct, frozen=True):
    """What a figure has to reach: at least `limit`, or at most."""

    says: str
    section: str
    row: str
    target: str
    metric: str
    limit: float
    unit: str
    at_least: bool = False

    def reached(self, figure: float) -> bool:
        """Tell whether a figure is good enough."""
        return figure >= self.limit if self.at_least else figure <= self.limit


BARS = (
    Bar("rate over the bare pass-through", SUMMARY, BUSY, GOVERNED, "rate over the bare pass-through", 1.5, "x", True),
    Bar("rate over Envoy", SUMMARY, BUSY, GOVERNED, "rate over Envoy", 0.5, "x", True),
    Bar("rate over LiteLLM", SUMMARY, BUSY, GOVERNED, "rate over LiteLLM", 80, "x", True),
    Bar("added to a call, one connection, p50", SUMMARY, SINGLE, GOVERNED, "p50, above direct", 0.3, "ms"),
    Bar("added to a call, one connection, p99", SUMMARY, SINGLE, GOVERNED, "p99, above direct", 2, "ms"),
    Bar(
        "added to a stream's first token, p50",
        SUMMARY,
        _STREAM,
        GOVERNED,
        "first token after the request, p50, above direct",
        1,
        "ms",
    ),
    Bar(
        "added to the gap between events, p99",
        SUMMARY,
        _STREAM,
        GOVERNED,
        "gap longer than the upstream's, p99, above direct",
        0.3,
        "ms",
    ),
    Bar("idle memory", lifecycle.SECTION, "idle", GOVERNED, "memory", 60, "MiB"),
    Bar("start to ready", lifecycle.SECTION, "start to ready", GOVERNED, "time", 0.6, "s"),
    Bar(
        "one leader, 1000 sidecars, a report every 5 s",
        control_plane.SECTION,
        "1000 sidecars, a report every 5 s",
        "operator",
        "processor",
        25,
        "% of a core",
    ),
    Bar(
        "compile 1002 resources in 200 namespaces",
        control_plane.SECTION,
        "compile and encode 1002 resources in 200 namespaces",
        "operator",
        "time",
        2,
        "s",
    ),
    Bar(
        "injector",
        control_plane.SECTION,
        "admissions, one injector, 16 connections",
        "operator",
        "rate",
        200,
        "admissions/s",
        True,
    ),
)
"""With every policy on, where a sidecar is measured."""


def bars(results: Results) -> str:
    """Return the table of the bars: what was asked, what was measured, whether that is enough."""
    cells = [["with every policy on", "bar", "measured", ""]]
    for bar in BARS:
        figure = results.median(bar.section, bar.row, bar.target, bar.metric)
        if figure is None:
            cells.append([bar.says, _limit(bar), "", "not measured"])
        else:
            cells.append([bar.says, _limit(bar), short(figure), "met" if bar.reached(figure) else "missed"])
    return markdown(cells)


def _soak() -> tuple[str, ...]:
    if not SOAK_CSV.exists():
        return ()
    results, machine = Results.read_csv(SOAK_CSV)
    return ("## A soak", f"Python {machine['python']}, {machine['processor']}.", results.tables())


def _limit(bar: Bar) -> str:
    return f"{'>=' if bar.at_least else '<='} {bar.limit:g} {bar.unit}"


def page() -> str:
    """Return the page of the run whose figures the CSVs hold."""
    results, machine = Results.read_csv(CSV)
    head = [["machine", ""], *([name, value] for name, value in machine.items())]
    parts = (
        "# A run of the benchmark",
        "<!-- Generated from bench/results/benchmark.csv by `make crds`; edits are lost. -->",
        "What is measured and how stands in [benchmarks.md](../benchmarks.md). Figures are medians; the CSV has the"
        " lowest and the highest sample of each.",
        markdown(head),
        "## Against the bars",
        bars(results),
        "## Tables",
        results.tables(),
        *_soak(),
    )
    return "\n\n".join(parts) + "\n"
