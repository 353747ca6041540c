"""Prometheus metrics. Label values come from the policy alone: what a client can write never makes a series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice_core.api.degradation import Level
from sluice_core.records import CallRecord, Outcome
from sluice_core.usage import Usage
from sluice_sidecar.telemetry.series import AttemptCollector, CallCollector, CallSeries, Labels

OTHER = "other"
NONE = ""
MAX_LABEL_SETS = 2000
"""Label sets kept of one family; policies that come and go share the last one, `other`, beyond it."""


class _Families:
    """What is counted only in calls that are out of the ordinary."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.retries = counter("sluice_retries", "Attempts after the first, by the cause of it.", "upstream", "cause")
        self.fallbacks = counter("sluice_fallbacks", "Calls answered by a fallback.", "route")
        self.degraded = counter(
            "sluice_degraded_calls",
            "Calls made cheaper, or answered without an upstream, by the level of service.",
            "quota",
            "allocation",
        )
        self.levels = counter(
            "sluice_level_calls",
            "Calls that a level of service below Full concerned, refused ones included.",
            "quota",
            "allocation",
            "level",
            "cause",
        )
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
        self._kinds: dict[Labels, CallSeries] = {}
        self._known: dict[tuple[str | None, ...], CallSeries] = {}  # by what records say, to spare making labels
        self._attempted: dict[tuple[str, Outcome], int] = {}
        self.registry.register(CallCollector(self._kinds))
        self.registry.register(AttemptCollector(self._attempted))
        self._families = _Families(self.registry)
        self.known_models: frozenset[str] = frozenset()

    def know_models(self, models: Iterable[str]) -> None:
        """Let these models have series of their own."""
        self.known_models = frozenset(models)
        self._known.clear()

    def settled(self, record: CallRecord) -> None:
        """Count one settled call."""
        series = self._series(record)
        series.outcomes[record.outcome] += 1
        duration_ms, own_ms = record.duration_ms, record.duration_ms - record.upstream_ms - record.queue_ms
        series.duration.observe(duration_ms / 1000)
        series.overhead.observe(own_ms / 1000 if own_ms > 0.0 else 0.0)
        if record.first_token_ms is not None:
            series.first_token.observe(record.first_token_ms / 1000)
        if record.queue_ms:
            series.queue.observe(record.queue_ms / 1000)
        if record.usage is not None:
            _count_spending(series, record.usage, record.cost_usd_micros)
        series.usd_micros += record.lost_usd_micros
        self._attempts(record)
        if record.level is not None:
            self._below_full(record, record.level)
        if len(record.attempts) > 1 or record.fallback is not None or record.refused_by or record.would_refuse:
            self._exceptional(record)
        if record.client_retry:
            self._families.client_retries.inc()

    def _series(self, record: CallRecord) -> CallSeries:
        kind = (
            record.endpoint,
            record.route,
            record.rule,
            record.model,
            record.version,
            record.upstream,
            record.allocation,
            record.user_class,
        )
        found = self._known.get(kind)
        if found is None:
            found = self._find_series(record)
            if len(self._known) >= MAX_LABEL_SETS:  # models are named by callers
                self._known.clear()
            self._known[kind] = found
        return found

    def _find_series(self, record: CallRecord) -> CallSeries:
        model = record.model if record.model in self.known_models else OTHER if record.model else NONE
        labels = Labels(
            record.endpoint.value,
            f"{record.route}/{record.rule}" if record.route else NONE,
            model or NONE,
            record.version or NONE,
            record.upstream or NONE,
            record.allocation or NONE,
            record.user_class or NONE,
        )
        found = self._kinds.get(labels)
        if found is None:
            if len(self._kinds) >= MAX_LABEL_SETS:
                labels = Labels(record.endpoint.value, *(OTHER,) * 6)
            found = self._kinds.setdefault(labels, CallSeries())
        return found

    def _attempts(self, record: CallRecord) -> None:
        for attempt in record.attempts:
            name = attempt.upstream, attempt.outcome
            self._attempted[name] = self._attempted.get(name, 0) + 1
            if attempt.outcome is Outcome.CREDENTIAL_ERROR:
                self._families.credential_errors.labels(attempt.upstream, attempt.credential or NONE).inc()

    def _below_full(self, record: CallRecord, level: Level) -> None:
        place, cause = (record.quota or NONE, record.allocation or NONE), record.level_cause
        self._families.levels.labels(*place, level.value, cause.value if cause is not None else NONE).inc()
        if record.degraded:
            self._families.degraded.labels(*place).inc()

    def _exceptional(self, record: CallRecord) -> None:
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


def _count_spending(series: CallSeries, usage: Usage, cost_usd_micros: int | None) -> None:
    tokens = series.tokens
    tokens[0] += usage.input_tokens
    tokens[1] += usage.output_tokens
    tokens[2] += usage.cached_input_tokens
    tokens[3] += usage.reasoning_tokens
    if cost_usd_micros is None:
        series.unpriced += 1
    else:
        series.usd_micros += cost_usd_micros


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
