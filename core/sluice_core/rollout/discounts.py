"""By how much evidence is discounted because requests of one user are alike."""

from __future__ import annotations

from collections.abc import Callable

from sluice_core.rollout.counts import EDGES_SECONDS, ArmCounts, Cohort, Histogram
from sluice_core.rollout.presets import Metric
from sluice_core.rollout.stats import design_effect


def discount_of(metric: Metric, stable: ArmCounts, candidate: ArmCounts) -> float:
    """Return the larger design effect of the two arms, at least 1."""
    return max(_of_arm(metric, stable), _of_arm(metric, candidate))


def _of_arm(metric: Metric, counts: ArmCounts) -> float:
    match metric:
        case Metric.ERROR_RATE | Metric.ERROR_CEILING:
            return design_effect([(cohort.errors, cohort.requests) for cohort in counts.cohorts.values()])
        case Metric.LATENCY | Metric.FIRST_TOKEN:
            variance = _variance_milliseconds(counts.latency)
            return _of_sums(counts, lambda cohort: cohort.latency_milliseconds, variance)
        case Metric.COST:
            return _of_sums(counts, lambda cohort: cohort.cost_usd_micros, counts.cost_usd_micros.variance)
        case Metric.OUTPUT_TOKENS:
            return _of_sums(counts, lambda cohort: cohort.output_tokens, counts.output_tokens.variance)
        case Metric.FINISH_REASONS:
            return _of_sums(counts, lambda cohort: cohort.cut, None)
        case Metric.SCORE:  # scores come without a cohort: the most alike of the other figures stands in
            return max(_of_arm(other, counts) for other in (Metric.ERROR_RATE, Metric.LATENCY, Metric.OUTPUT_TOKENS))


def _of_sums(counts: ArmCounts, total: Callable[[Cohort], int], variance: float | None) -> float:
    return design_effect(
        [(total(cohort), cohort.requests - cohort.errors) for cohort in counts.cohorts.values()], variance
    )


def _variance_milliseconds(histogram: Histogram) -> float:
    n = sum(histogram.values())
    if n < 2:
        return 0.0
    points = [(EDGES_SECONDS[min(index, len(EDGES_SECONDS) - 1)] * 1000, count) for index, count in histogram.items()]
    mean = sum(point * count for point, count in points) / n
    return sum((point - mean) ** 2 * count for point, count in points) / (n - 1)
