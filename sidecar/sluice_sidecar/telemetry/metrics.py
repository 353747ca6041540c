"""Prometheus metrics. Label values come from the policy alone: what a client can write never makes a series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice_core.records import CallRecord, Outcome
from sluice_core.usage import Usage

OTHER = "other"
NONE = ""
MAX_LABEL_SETS = 2000
"""Label sets kept of one family; policies that come and go share the last one, `other`, beyond it."""

_LATENCY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_QUEUE_SECONDS = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)


class _CallMetrics:
    """The bound children that a settled call touches: one look-up per call instead of one per metric."""

    __slots__ = ("cost", "duration", "first_token", "outcomes", "overhead", "queue", "tokens", "unpriced")

    def __init__(self, families: _Families, labels: tuple[str, ...]) -> None:
        endpoint, route, model, version, upstream, allocation, user_class = labels
        self.outcomes = {
            outcome: families.calls.labels(endpoint, route, model, version, outcome.value) for outcome in Outcome
        }
        self.duration = families.duration.labels(endpoint, route, model, version)
        self.first_token = families.first_token.labels(route, model, version)
        self.queue = families.queue.labels(allocation)
        self.overhead = families.overhead
        self.tokens = tuple(
            families.tokens.labels(upstream, model, allocation, user_class, kind)
            for kind in ("input", "output", "cached_input", "reasoning")
        )
        self.cost = families.cost.labels(upstream, model, allocation, user_class)
        self.unpriced = families.unpriced.labels(upstream, model)


class _Families:
    """All metrics, by family."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        arm = ("route", "model", "version")
        spend = ("upstream", "model", "allocation", "user_class")
        self.calls = counter("sluice_calls", "Calls settled, by how they ended.", "endpoint", *arm, "outcome")
        self.duration = histogram(
            "sluice_call_duration_seconds", "From the request to the end of the answer.", _LATENCY_SECONDS,
            "endpoint", *arm,
        )  # fmt: skip
        self.first_token = histogram(
            "sluice_first_token_seconds",
            "From the request to the first content of a stream.",
            _FIRST_TOKEN_SECONDS,
            *arm,
        )
        self.overhead = histogram(
            "sluice_overhead_seconds", "Time of a call spent in Sluice, waiting in line excluded.", _OVERHEAD_SECONDS
        )
        self.queue = histogram("sluice_queue_seconds", "Time spent waiting in line.", _QUEUE_SECONDS, "allocation")
        self.tokens = counter("sluice_tokens", "Tokens, as reported by the upstream.", *spend, "kind")
        self.cost = counter("sluice_cost_usd", "US dollars spent.", *spend)
        self.unpriced = counter("sluice_unpriced_calls", "Calls whose model has no price.", "upstream", "model")
        self.attempts = counter("sluice_attempts", "Tries at an upstream, by how they ended.", "upstream", "outcome")
        self.retries = counter("sluice_retries", "Attempts after the first, by the cause of it.", "upstream", "cause")
        self.fallbacks = counter("sluice_fallbacks", "Calls answered by a fallback.", "route")
        self.refusals = counter("sluice_refusals", "Calls refused; in Shadow, that would be.", "policy", "mode")
        self.credential_errors = counter(
            "sluice_credential_errors", "Answers that the key of an upstream is refused.", "upstream", "credential"
        )
        self.client_retries = counter("sluice_client_retries", "Calls that are retries of the application's own SDK.")


class Metrics:
    """What is counted. `known` tells which models the policy names; all others are `other`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self._families = _Families(self.registry)
        self._calls: dict[tuple[str, ...], _CallMetrics] = {}
        self.known_models: frozenset[str] = frozenset()

    def know_models(self, models: Iterable[str]) -> None:
        """Let these models have series of their own."""
        self.known_models = frozenset(models)

    def settled(self, record: CallRecord) -> None:
        """Count one settled call."""
        children = self._children(record)
        children.outcomes[record.outcome].inc()
        children.duration.observe(record.duration_ms / 1000)
        if record.first_token_ms is not None:
            children.first_token.observe(record.first_token_ms / 1000)
        children.overhead.observe(max(0.0, record.duration_ms - record.upstream_ms - record.queue_ms) / 1000)
        if record.queue_ms:
            children.queue.observe(record.queue_ms / 1000)
        if record.usage is not None:
            _count_spending(children, record.usage, record.cost_usd_micros)
        if len(record.attempts) > 1 or record.fallback is not None or record.refused_by or record.would_refuse:
            self._exceptional(record)
        elif record.attempts:
            self._attempts(record)
        if record.client_retry:
            self._families.client_retries.inc()

    def _children(self, record: CallRecord) -> _CallMetrics:
        model = record.model if record.model in self.known_models else OTHER if record.model else NONE
        route = f"{record.route}/{record.rule}" if record.route else NONE
        labels = (
            record.endpoint.value,
            route,
            model or NONE,
            record.version or NONE,
            record.upstream or NONE,
            record.allocation or NONE,
            record.user_class or NONE,
        )
        found = self._calls.get(labels)
        if found is None:
            if len(self._calls) >= MAX_LABEL_SETS:
                labels = (record.endpoint.value, *(OTHER,) * 6)
            found = self._calls.setdefault(labels, _CallMetrics(self._families, labels))
        return found

    def _attempts(self, record: CallRecord) -> None:
        for attempt in record.attempts:
            self._families.attempts.labels(attempt.upstream, attempt.outcome.value).inc()
            if attempt.outcome is Outcome.CREDENTIAL_ERROR:
                self._families.credential_errors.labels(attempt.upstream, attempt.credential or NONE).inc()

    def _exceptional(self, record: CallRecord) -> None:
        self._attempts(record)
        for before, after in zip(record.attempts, record.attempts[1:], strict=False):
            self._families.retries.labels(after.upstream, before.outcome.value).inc()
        if record.fallback is not None:
            self._families.fallbacks.labels(f"{record.route}/{record.rule}").inc()
        if record.refused_by:
            self._families.refusals.labels(record.refused_by, "Enforce").inc()
        if record.would_refuse:
            self._families.refusals.labels(record.would_refuse, "Shadow").inc()

    def render(self) -> bytes:
        """Return the exposition text. Takes milliseconds: not for the event loop."""
        return generate_latest(self.registry)


def _count_spending(children: _CallMetrics, usage: Usage, cost_usd_micros: int | None) -> None:
    amounts = (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.reasoning_tokens)
    for child, amount in zip(children.tokens, amounts, strict=True):
        if amount:
            child.inc(amount)
    if cost_usd_micros is None:
        children.unpriced.inc()
    else:
        children.cost.inc(cost_usd_micros / 1_000_000)


Reading = tuple[str, str, tuple[str, ...], list[tuple[tuple[str, ...], float]]]
"""One reading of live state: name, text, label names, and values by label values."""


class StateCollector(Collector):
    """Reads the live state when it is asked, so that nothing has to be kept up to date on the path."""

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the readings as metrics; those named `_total` are counters."""
        for name, text, labels, values in self._read():
            family = (
                CounterMetricFamily(name.removesuffix("_total"), text, labels=labels)
                if name.endswith("_total")
                else GaugeMetricFamily(name, text, labels=labels)
            )
            for label_values, value in values:
                family.add_metric(label_values, value)
            yield family
