"""Figures as people read them: one arm at a glance, one metric in a sentence."""

from __future__ import annotations

from sluice_core.api.canarysplit_status import ArmFigures
from sluice_core.rollout.counts import EDGES_SECONDS, ArmCounts, Histogram
from sluice_core.rollout.evidence import cut_short, finished, moments_of, quantile_index
from sluice_core.rollout.presets import Metric, MetricRule


def arm_figures(version: str, counts: ArmCounts) -> ArmFigures:
    """Return one arm's figures since the rollout began."""
    cost = counts.cost_usd_micros
    return ArmFigures(
        version=version,
        requests=counts.requests,
        errors=counts.error_count,
        excluded=counts.excluded,
        error_percent=percent(counts.error_count, counts.requests),
        p95_milliseconds=quantile_milliseconds(counts.latency, 0.95),
        first_token_p95_milliseconds=quantile_milliseconds(counts.first_token, 0.95),
        cost_per_request_usd=f"{cost.mean / 1_000_000:.6f}" if cost.n else "",
    )


def percent(part: float, whole: float) -> str:
    """Return a share in percent, two digits, empty without a whole."""
    return f"{100 * part / whole:.2f}" if whole else ""


def quantile_milliseconds(histogram: Histogram, quantile: float) -> int | None:
    """Return a quantile, interpolated within its bucket; None without observations."""
    total = sum(histogram.values())
    if not total:
        return None
    index = quantile_index(histogram, quantile)
    if index >= len(EDGES_SECONDS):
        return round(EDGES_SECONDS[-1] * 1000)
    low = EDGES_SECONDS[index - 1] if index else 0.0
    below = sum(count for bucket, count in histogram.items() if bucket < index)
    part = (quantile * total - below) / histogram[index]
    return round(1000 * (low + part * (EDGES_SECONDS[index] - low)))


def metric_figure(rule: MetricRule, counts: ArmCounts) -> str:
    """Return one arm's figure of one metric, empty without data."""
    match rule.metric:
        case Metric.ERROR_RATE | Metric.ERROR_CEILING:
            return _share(counts.error_count, counts.requests)
        case Metric.FINISH_REASONS:
            return _share(cut_short(counts), finished(counts))
        case Metric.LATENCY | Metric.FIRST_TOKEN:
            histogram = counts.latency if rule.metric is Metric.LATENCY else counts.first_token
            value = quantile_milliseconds(histogram, rule.quantile / 100)
            return "" if value is None else f"p{rule.quantile} {value} ms"
        case Metric.COST | Metric.OUTPUT_TOKENS | Metric.SCORE:
            moments = moments_of(rule.metric, counts)
            if moments is None or not moments.n:
                return ""
            return f"${moments.mean / 1_000_000:.6f}" if rule.metric is Metric.COST else f"{moments.mean:.4g}"


def _share(part: int, whole: int) -> str:
    return f"{percent(part, whole)}% ({part}/{whole})" if whole else ""


def limit_text(rule: MetricRule) -> str:
    """Return a limit as people write it."""
    match rule.metric:
        case Metric.ERROR_CEILING:
            return f"{rule.limit_percent}%"
        case Metric.SCORE:
            return f"-{rule.limit_percent}%"
        case _:
            return f"+{rule.limit_percent}%"


TITLES = {
    Metric.ERROR_RATE: "error rate",
    Metric.ERROR_CEILING: "error rate",
    Metric.LATENCY: "latency",
    Metric.FIRST_TOKEN: "time to first token",
    Metric.COST: "cost per request",
    Metric.OUTPUT_TOKENS: "output tokens per request",
    Metric.FINISH_REASONS: "answers cut short",
    Metric.SCORE: "score",
}
"""Names of the metrics in sentences."""


def p_text(p: float) -> str:
    """Return a p value with two significant digits."""
    return "<0.0001" if p < 0.0001 else f"{p:.2g}"
