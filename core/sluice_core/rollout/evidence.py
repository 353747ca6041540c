"""What the judge remembers: both arms' totals and, per metric, how strongly the figures speak of harm.

Counts come in as totals. What is new since the last look makes an interval, in which the arms are compared with each
other alone: neither a ramp nor a bad hour that hits both can look like harm. The memory is one short text in status, so
that another leader goes on where this one stopped.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from sluice_core.api.base import Value
from sluice_core.rollout.counts import CANDIDATE, CUT_SHORT, EDGES_SECONDS, STABLE, ArmCounts, Histogram, Moments
from sluice_core.rollout.presets import Metric, MetricRule
from sluice_core.rollout.stats import NO_SCORES, Scores, ceiling_scores, log_evidence, log_sum_exp, plus, ratio_scores

STALE_SECONDS: Final = 60.0
"""An interval that saw no candidate for this long is closed: what stable did then has no counterpart."""

LONE_REQUESTS: Final = 5
"""An interval with this many candidate requests is closed although stable had none."""

RESTART_ALTERNATIVE: Final = 3
RESTART_BELOW: Final = -2.0
"""When the recent window speaks this clearly against a gross fault (the fourth alternative, a ratio of 3) it restarts,
so that a late fault is seen soon: a long healthy time is no credit. Chosen by simulation among five such rules."""

MIN_STABLE_LATENCIES: Final = 20
"""Stable latencies needed before the slow end of its distribution is known."""

Pair = tuple[int, int]
"""(candidate, stable)"""


class Window(Value, frozen=True, kw_only=True):
    """Evidence of a stretch of time. `excess` / `base` is the Mantel-Haenszel ratio of the rates."""

    scores: Scores = NO_SCORES
    excess: float = 0.0
    base: float = 0.0

    @property
    def ratio(self) -> float:
        """Return candidate's rate over stable's, compared within intervals; infinite if only the candidate's shows."""
        if self.base > 0:
            return self.excess / self.base
        return math.inf if self.excess > 0 else 0.0

    @property
    def alone(self) -> bool:
        """Tell whether no error of either arm had the other arm beside it."""
        return self.base == 0 and self.excess == 0

    def with_interval(self, scores: Scores, events: Pair, n: Pair) -> Window:
        """Return the window with one more interval."""
        total = n[0] + n[1]
        return Window(
            scores=plus(self.scores, scores),
            excess=self.excess + (events[0] * n[1] / total if total else 0.0),
            base=self.base + (events[1] * n[0] / total if total else 0.0),
        )


class RateEvidence(Value, frozen=True, kw_only=True):
    """Evidence about a share of requests.

    A mixture of e-processes is one again: half of the weight lies on the whole rollout, half on windows that begin at
    stopping times, the j-th with weight 1 / (2 j (j + 1)).
    """

    whole: Window = Window()
    recent: Window = Window()
    windows: int = 1
    n: int = 0

    def with_interval(self, scores: Scores, events: Pair, n: Pair, discount: float) -> RateEvidence:
        """Return the evidence after one more interval."""
        recent, windows = self.recent.with_interval(scores, events, n), self.windows
        if recent.scores[RESTART_ALTERNATIVE] / discount < RESTART_BELOW:
            recent, windows = Window(), windows + 1
        return RateEvidence(
            whole=self.whole.with_interval(scores, events, n),
            recent=recent,
            windows=windows,
            n=self.n + n[0],
        )

    @property
    def neutral(self) -> float:
        """Return the log e-value of no evidence at all: below 0, as weight is set aside for windows to come."""
        return math.log(0.5 + 1 / (2 * self.windows * (self.windows + 1)))

    def log_e(self, discount: float, least_ratio: float) -> float:
        """Return the log e-value of harm, from the windows in which the ratio itself exceeds `least_ratio`.

        Leaving a window out only ever lowers the evidence. So a fault of both arms is never held against one, and no
        difference is acted on that lies within the limit.
        """
        parts = [
            log_evidence(window.scores, discount) - log_weight
            for window, log_weight in (
                (self.whole, math.log(2)),
                (self.recent, math.log(2 * self.windows * (self.windows + 1))),
            )
            if window.alone or window.ratio > least_ratio
        ]
        return log_sum_exp(parts) if parts else -math.inf


class MeanEvidence(Value, frozen=True, kw_only=True):
    """Evidence about a mean per request: the weighted sum of `candidate - limit * stable` over intervals.

    With weights w = n_c n_s / (n_c + n_s), the sums of w, w times gap, w^2 / n_c and w^2 / n_s give the gap and its
    variance.
    """

    weight: float = 0.0
    gap: float = 0.0
    candidate_spread: float = 0.0
    stable_spread: float = 0.0
    n: int = 0
    stable_n: int = 0

    def with_interval(self, candidate: Moments, stable: Moments, factor: float) -> MeanEvidence:
        """Return the evidence after one more interval; `factor` times stable's mean is the limit."""
        if not candidate.n or not stable.n:
            return self
        weight = candidate.n * stable.n / (candidate.n + stable.n)
        return MeanEvidence(
            weight=self.weight + weight,
            gap=self.gap + weight * (candidate.mean - factor * stable.mean),
            candidate_spread=self.candidate_spread + weight * weight / candidate.n,
            stable_spread=self.stable_spread + weight * weight / stable.n,
            n=self.n + candidate.n,
            stable_n=self.stable_n + stable.n,
        )


class Evidence(Value, frozen=True, kw_only=True):
    """Everything that the judge remembers of one rollout."""

    stable: ArmCounts
    candidate: ArmCounts
    closed_at: float = 0.0
    rates: dict[str, RateEvidence] = {}
    means: dict[str, MeanEvidence] = {}
    baseline_alarm: float = 0.0
    step: int = 0
    step_requests: Pair = (0, 0)


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Evidence)


def encode(evidence: Evidence) -> str:
    """Return the evidence as the text that status keeps."""
    return _encoder.encode(evidence).decode()


def begin(split: str, revision: str) -> Evidence:
    """Return the empty evidence of a new rollout."""
    return Evidence(
        stable=ArmCounts(split=split, revision=revision, arm=STABLE),
        candidate=ArmCounts(split=split, revision=revision, arm=CANDIDATE),
    )


def decode(text: str, split: str, revision: str) -> Evidence:
    """Return the evidence kept in `text`; a text that is no evidence of this revision counts as none."""
    try:
        evidence = _decoder.decode(text)
    except msgspec.DecodeError:
        return begin(split, revision)
    return evidence if evidence.stable.revision == revision else begin(split, revision)


def totals_in(text: str, split: str, revision: str) -> tuple[ArmCounts, ArmCounts]:
    """Return the totals (stable, candidate) that a rollout's status remembers."""
    evidence = decode(text, split, revision)
    return evidence.stable, evidence.candidate


class Interval(Value, frozen=True, kw_only=True):
    """What both arms did since the last look."""

    stable: ArmCounts
    candidate: ArmCounts


def interval_since(evidence: Evidence, stable: ArmCounts, candidate: ArmCounts, now: float) -> Interval | None:
    """Return what is new, or None as long as it is too little to compare.

    When an interval closes depends on the numbers of requests and on time alone, never on how the requests ended.
    """
    fresh = Interval(stable=stable.since(evidence.stable), candidate=candidate.since(evidence.candidate))
    n_candidate, n_stable = fresh.candidate.requests, fresh.stable.requests
    if (n_candidate and n_stable) or n_candidate >= LONE_REQUESTS:
        return fresh
    stale = evidence.closed_at > 0 and now - evidence.closed_at >= STALE_SECONDS
    return fresh if stale and (n_candidate or n_stable or _scored(fresh)) else None


def _scored(interval: Interval) -> bool:
    return interval.stable.score.n + interval.candidate.score.n > 0


def rate_interval_of(rule: MetricRule, before: ArmCounts, interval: Interval) -> tuple[Scores, Pair, Pair] | None:
    """Return scores, events and exposure of one rate metric in an interval, or None where it cannot be told."""
    candidate, stable = interval.candidate, interval.stable
    limit = 1 + rule.limit_percent / 100
    match rule.metric:
        case Metric.ERROR_RATE:
            events, n = (candidate.error_count, stable.error_count), (candidate.requests, stable.requests)
            return ratio_scores(events, n, limit), events, n
        case Metric.ERROR_CEILING:
            events, n = (candidate.error_count, stable.error_count), (candidate.requests, stable.requests)
            ceiling = min(rule.limit_percent / 100, 0.99)
            return ceiling_scores(events[0], n[0], ceiling), events, n
        case Metric.FINISH_REASONS:
            events, n = (cut_short(candidate), cut_short(stable)), (finished(candidate), finished(stable))
            return ratio_scores(events, n, limit), events, n
        case Metric.LATENCY:
            return _slow(rule, before.latency, candidate.latency, stable.latency)
        case Metric.FIRST_TOKEN:
            return _slow(rule, before.first_token, candidate.first_token, stable.first_token)
        case _:
            return None


def _slow(
    rule: MetricRule, known: Histogram, candidate: Histogram, stable: Histogram
) -> tuple[Scores, Pair, Pair] | None:
    """Compare slow shares: candidate's beyond the limit times T with stable's beyond T, T being stable's quantile.

    If the candidate is nowhere more than the limit times slower, its share beyond limit * T is at most stable's beyond
    T, whatever T is, as long as T was chosen before the interval. So the ratio test with limit 1 applies, and a slow
    hour that hits both arms cancels out.
    """
    if sum(known.values()) < MIN_STABLE_LATENCIES:
        return None
    slow_stable = quantile_index(known, rule.quantile / 100)
    slow_candidate = edge_at_least(slow_stable, 1 + rule.limit_percent / 100)
    if slow_candidate is None:
        return None
    events = (_beyond(candidate, slow_candidate), _beyond(stable, slow_stable))
    n = (sum(candidate.values()), sum(stable.values()))
    return ratio_scores(events, n, 1.0), events, n


def quantile_index(histogram: Histogram, quantile: float) -> int:
    """Return the index of the smallest edge that at least this share of the observations does not exceed."""
    wanted, seen = quantile * sum(histogram.values()), 0
    for index in sorted(histogram):
        seen += histogram[index]
        if seen >= wanted:
            return index
    return len(EDGES_SECONDS)


def edge_at_least(index: int, factor: float) -> int | None:
    """Return the first edge that is at least `factor` times the edge at `index`, or None beyond the last one."""
    if index >= len(EDGES_SECONDS):
        return None
    wanted = EDGES_SECONDS[index] * factor * (1 - 1e-3)  # edges are rounded
    return next((other for other in range(index, len(EDGES_SECONDS)) if EDGES_SECONDS[other] >= wanted), None)


def _beyond(histogram: Histogram, index: int) -> int:
    return sum(count for bucket, count in histogram.items() if bucket > index)


def finished(counts: ArmCounts) -> int:
    """Return the answers whose finish reason is known."""
    return sum(counts.finish_reasons.values())


def cut_short(counts: ArmCounts) -> int:
    """Return the answers that ended by length or by a content filter."""
    return sum(counts.finish_reasons.get(reason.value, 0) for reason in CUT_SHORT)


def moments_of(metric: Metric, counts: ArmCounts) -> Moments | None:
    """Return the moments behind a mean metric, None for another metric."""
    match metric:
        case Metric.COST:
            return counts.cost_usd_micros
        case Metric.OUTPUT_TOKENS:
            return counts.output_tokens
        case Metric.SCORE:
            return counts.score
        case _:
            return None
