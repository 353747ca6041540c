"""A rollout's metrics as numbers, for time series; status has them as text for people."""

from __future__ import annotations

from sluice_core.api.base import Value
from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.rollout import evidence as memory
from sluice_core.rollout.counts import ArmCounts
from sluice_core.rollout.evidence import cut_short, finished, moments_of
from sluice_core.rollout.figures import quantile_milliseconds
from sluice_core.rollout.presets import Metric, MetricRule, resolve


class MetricGauge(Value, frozen=True, kw_only=True):
    """One metric: both arms' figures (see `metric_value`), its limit, and the evidence of harm of what is acted on."""

    metric: Metric
    stable: float | None
    candidate: float | None
    limit_percent: int
    evidence: float = 0.0
    threshold: float = 0.0
    needed_requests: int = 0


def gauges_of(split: CanarySplit) -> tuple[MetricGauge, ...]:
    """Return the metrics that the rollout's status speaks of."""
    known = {metric.name: metric for metric in split.status.metrics}
    totals = memory.decode(split.status.evidence, split.key, split.status.revision)
    gauges = []
    for rule in resolve(split.spec).metrics:
        status = known.get(rule.metric.value)
        if status is None:
            continue
        evidence, _, threshold = status.evidence.partition(" of ")
        gauges.append(
            MetricGauge(
                metric=rule.metric,
                stable=metric_value(rule, totals.stable),
                candidate=metric_value(rule, totals.candidate),
                limit_percent=rule.limit_percent,
                evidence=float(evidence or 0),
                threshold=float(threshold or 0),
                needed_requests=status.needed_requests,
            )
        )
    return tuple(gauges)


def metric_value(rule: MetricRule, counts: ArmCounts) -> float | None:
    """Return one arm's figure: a share of requests, seconds, US dollars, tokens or a score; None without data."""
    match rule.metric:
        case Metric.ERROR_RATE | Metric.ERROR_CEILING:
            return counts.error_count / counts.requests if counts.requests else None
        case Metric.FINISH_REASONS:
            whole = finished(counts)
            return cut_short(counts) / whole if whole else None
        case Metric.LATENCY | Metric.FIRST_TOKEN:
            histogram = counts.latency if rule.metric is Metric.LATENCY else counts.first_token
            milliseconds = quantile_milliseconds(histogram, rule.quantile / 100)
            return None if milliseconds is None else milliseconds / 1000
        case Metric.COST | Metric.OUTPUT_TOKENS | Metric.SCORE:
            moments = moments_of(rule.metric, counts)
            if moments is None or not moments.n:
                return None
            return moments.mean / 1_000_000 if rule.metric is Metric.COST else moments.mean
