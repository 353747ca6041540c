"""What settled calls add up to, in plain numbers; made into Prometheus metrics only when somebody scrapes.

A client library's counters take a lock and several calls for each increment. All calls settle on one thread, so an
attribute is enough, and what is kept for one kind of call is found by one look-up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice_core.records import Outcome

LATENCY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUEUE_SECONDS = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)
TOKEN_KINDS = ("input", "output", "cached_input", "reasoning")


class Labels(NamedTuple):
    """What distinguishes one kind of call from another."""

    endpoint: str
    route: str
    model: str
    version: str
    upstream: str
    allocation: str
    user_class: str


class Distribution:
    """A histogram: how many values are at most each bound but above the one before, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: Distribution) -> None:
        """Add what another one with the same bounds has counted."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts by upper bound."""
        total, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class CallSeries:
    """What the calls of one kind add up to."""

    __slots__ = ("duration", "first_token", "outcomes", "overhead", "queue", "tokens", "unpriced", "usd_micros")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.duration = Distribution(LATENCY_SECONDS)
        self.first_token = Distribution(FIRST_TOKEN_SECONDS)
        self.overhead = Distribution(OVERHEAD_SECONDS)
        self.queue = Distribution(QUEUE_SECONDS)
        self.tokens = [0] * len(TOKEN_KINDS)
        self.usd_micros = 0
        self.unpriced = 0


class _CounterFamily(NamedTuple):
    name: str
    text: str
    labels: tuple[str, ...]
    read: Callable[[Labels, CallSeries], Iterable[tuple[tuple[str, ...], float]]]


class _HistogramFamily(NamedTuple):
    name: str
    text: str
    labels: tuple[str, ...]
    read: Callable[[Labels, CallSeries], tuple[tuple[str, ...], Distribution]]


_ARM = ("route", "model", "version")
_SPEND = ("upstream", "model", "allocation", "user_class")


def _arm(of: Labels) -> tuple[str, ...]:
    return of.route, of.model, of.version


def _spend(of: Labels) -> tuple[str, ...]:
    return of.upstream, of.model, of.allocation, of.user_class


_COUNTERS = (
    _CounterFamily(
        "sluice_calls",
        "Calls settled, by how they ended.",
        ("endpoint", *_ARM, "outcome"),
        lambda of, series: [((of.endpoint, *_arm(of), each.value), n) for each, n in series.outcomes.items()],
    ),
    _CounterFamily(
        "sluice_tokens",
        "Tokens, as reported by the upstream.",
        (*_SPEND, "kind"),
        lambda of, series: [
            ((*_spend(of), kind), amount) for kind, amount in zip(TOKEN_KINDS, series.tokens, strict=True)
        ],
    ),
    _CounterFamily(
        "sluice_cost_usd",
        "US dollars spent.",
        _SPEND,
        lambda of, series: [(_spend(of), series.usd_micros / 1_000_000)],
    ),
    _CounterFamily(
        "sluice_unpriced_calls",
        "Calls whose model has no price.",
        ("upstream", "model"),
        lambda of, series: [((of.upstream, of.model), series.unpriced)],
    ),
)
_HISTOGRAMS = (
    _HistogramFamily(
        "sluice_call_duration_seconds",
        "From the request to the end of the answer.",
        ("endpoint", *_ARM),
        lambda of, series: ((of.endpoint, *_arm(of)), series.duration),
    ),
    _HistogramFamily(
        "sluice_first_token_seconds",
        "From the request to the first content of a stream.",
        _ARM,
        lambda of, series: (_arm(of), series.first_token),
    ),
    _HistogramFamily(
        "sluice_overhead_seconds",
        "Time of a call spent in Sluice, waiting in line excluded.",
        (),
        lambda _, series: ((), series.overhead),
    ),
    _HistogramFamily(
        "sluice_queue_seconds",
        "Time spent waiting in line.",
        ("allocation",),
        lambda of, series: ((of.allocation,), series.queue),
    ),
)


class CallCollector(Collector):
    """Makes metrics of the series: those that share a family's labels are added up."""

    def __init__(self, kinds: dict[Labels, CallSeries]) -> None:
        self._kinds = kinds

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        kinds = list(self._kinds.items())
        for counter in _COUNTERS:
            totals: dict[tuple[str, ...], float] = {}
            for labels, series in kinds:
                for values, amount in counter.read(labels, series):
                    totals[values] = totals.get(values, 0) + amount
            yield _counter(counter, totals)
        for histogram in _HISTOGRAMS:
            sums: dict[tuple[str, ...], Distribution] = {}
            for labels, series in kinds:
                values, counted = histogram.read(labels, series)
                sums.setdefault(values, Distribution(counted.bounds)).add(counted)
            yield _histogram(histogram, sums)


class AttemptCollector(Collector):
    """Makes a metric of the number of attempts by upstream and outcome."""

    def __init__(self, attempted: dict[tuple[str, Outcome], int]) -> None:
        self._attempted = attempted

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        text = "Tries at an upstream, by how they ended."
        metric = CounterMetricFamily("sluice_attempts", text, labels=("upstream", "outcome"))
        for (upstream, outcome), number in list(self._attempted.items()):
            metric.add_metric((upstream, outcome.value), number)
        yield metric


def _counter(family: _CounterFamily, totals: dict[tuple[str, ...], float]) -> Metric:
    metric = CounterMetricFamily(family.name, family.text, labels=family.labels)
    for values, amount in totals.items():
        metric.add_metric(values, amount)
    return metric


def _histogram(family: _HistogramFamily, sums: dict[tuple[str, ...], Distribution]) -> Metric:
    metric = HistogramMetricFamily(family.name, family.text, labels=family.labels)
    for values, counted in sums.items():
        metric.add_metric(values, counted.buckets(), counted.sum)
    return metric
