"""Judges the candidate against the stable arm: figures in, verdict out. It observes; the rollout acts.

Harm is looked for at every tick and found only by tests that may be looked at that often. Everything else takes time
and data: without enough of either the verdict says so, and decides nothing.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from sluice_core.api.base import Value
from sluice_core.api.canarysplit import MetricMode
from sluice_core.api.canarysplit_status import MetricStatus, Verdict
from sluice_core.rollout.counts import COHORTS, ArmCounts, Cohort
from sluice_core.rollout.discounts import discount_of
from sluice_core.rollout.evidence import (
    MIN_STABLE_LATENCIES,
    Evidence,
    MeanEvidence,
    RateEvidence,
    interval_since,
    moments_of,
    rate_interval_of,
)
from sluice_core.rollout.figures import TITLES, limit_text, metric_figure, p_text
from sluice_core.rollout.presets import Metric, MetricRule, RolloutRules, StepRule
from sluice_core.rollout.stats import mean_p, share_dispersion, share_mismatch

MISMATCH_P: Final = 0.001
MIN_MEAN_REQUESTS: Final = 100
"""The bound of a mean holds for large samples: below this many figures in an arm it is not used."""

DEFAULT_LEAST_RATIO: Final = 1.5
_BASELINE_ALARM: Final = 3.0
_BASELINE_ALARM_MOST: Final = 6.0

_WORST_FIRST: Final = (Verdict.HARM, Verdict.ERROR, Verdict.INSUFFICIENT_DATA, Verdict.INCONCLUSIVE, Verdict.PASS)


class Judgement(Value, frozen=True, kw_only=True):
    """What the figures say: over all, in one sentence, and per metric."""

    verdict: Verdict
    reason: str
    metrics: tuple[MetricStatus, ...] = ()
    discount: float = 1.0
    needed_requests: int = 0
    baseline_degraded: bool = False
    share_mismatch: bool = False


def observe(
    evidence: Evidence,
    rules: RolloutRules,
    totals: tuple[ArmCounts, ArmCounts],
    step: int,
    *,
    converged: bool,
    now: float,
) -> Evidence:
    """Return the evidence after a look at the totals (stable, candidate); the same look twice changes nothing.

    Requests count for the step once every pod runs its weight; evidence of harm counts from the first request. While
    the stable arm itself lies above the ceiling nothing is held against the candidate's own rate.
    """
    if evidence.step != step:
        evidence = msgspec.structs.replace(evidence, step=step, step_requests=(0, 0))
    interval = interval_since(evidence, totals[0], totals[1], now)
    if interval is None:
        return evidence if evidence.closed_at else msgspec.structs.replace(evidence, closed_at=now)
    stable = evidence.stable.plus(interval.stable)
    candidate = evidence.candidate.plus(interval.candidate)
    alarm = _baseline_alarm(evidence.baseline_alarm, rules, interval.stable)
    rates, means = dict(evidence.rates), dict(evidence.means)
    for rule in rules.metrics:
        name = rule.metric.value
        rate = rate_interval_of(rule, evidence.stable, interval)
        if rate is not None and not (rule.metric is Metric.ERROR_CEILING and alarm >= _BASELINE_ALARM):
            discount = discount_of(rule.metric, stable, candidate)
            rates[name] = rates.get(name, RateEvidence()).with_interval(*rate, discount)
        fresh = moments_of(rule.metric, interval.candidate), moments_of(rule.metric, interval.stable)
        if fresh[0] is not None and fresh[1] is not None:
            means[name] = means.get(name, MeanEvidence()).with_interval(fresh[0], fresh[1], _factor(rule))
    on_step = evidence.step_requests
    if converged:
        on_step = (on_step[0] + interval.candidate.requests, on_step[1] + interval.stable.requests)
    return Evidence(
        stable=stable,
        candidate=candidate,
        closed_at=now,
        rates=rates,
        means=means,
        baseline_alarm=alarm,
        step=step,
        step_requests=on_step,
    )


def _factor(rule: MetricRule) -> float:
    change = rule.limit_percent / 100
    return 1 - change if rule.metric is Metric.SCORE else 1 + change


def _baseline_alarm(alarm: float, rules: RolloutRules, stable: ArmCounts) -> float:
    """Return a cumulative sum that rises while the stable arm itself lies above the ceiling, and falls after."""
    ceiling = next((rule.limit_percent for rule in rules.metrics if rule.metric is Metric.ERROR_CEILING), 20) / 100
    ceiling = min(ceiling, 0.99)
    bad = ceiling + 0.2 * (1 - ceiling)
    errors = stable.error_count
    change = errors * math.log(bad / ceiling) + (stable.requests - errors) * math.log((1 - bad) / (1 - ceiling))
    return min(_BASELINE_ALARM_MOST, max(0.0, alarm + change))


def judge(evidence: Evidence, rules: RolloutRules, step: StepRule) -> Judgement:
    """Return the verdict on a step. Harm is harm at once; nothing passes below the step's number of requests."""
    needed = _needed(evidence, step)
    degraded = evidence.baseline_alarm >= _BASELINE_ALARM
    discounts = {rule.metric: discount_of(rule.metric, evidence.stable, evidence.candidate) for rule in rules.metrics}
    metrics = tuple(
        _metric(rule, evidence, rules, discounts[rule.metric], needed, ceiling_applies=not degraded)
        for rule in rules.metrics
    )
    mismatch = _share_mismatch(evidence, step)
    verdict, reason = _combine(metrics, step, needed)
    if verdict in {Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.ERROR} and degraded:
        verdict = Verdict.INCONCLUSIVE
        reason = f"the stable arm fails too: {_arms('error rate', evidence, rules)}; holding until it recovers"
    elif verdict is Verdict.PASS and mismatch:
        verdict = Verdict.INCONCLUSIVE
        got = evidence.step_requests[0], sum(evidence.step_requests)
        reason = f"the candidate got {got[0]} of {got[1]} requests, which does not fit weight {step.weight}%"
    return Judgement(
        verdict=verdict,
        reason=reason,
        metrics=metrics,
        discount=max(discounts.values(), default=1.0),
        needed_requests=needed,
        baseline_degraded=degraded,
        share_mismatch=mismatch,
    )


def _needed(evidence: Evidence, step: StepRule) -> int:
    """Return about how many more candidate requests the step needs for both arms to have enough."""
    candidate, stable = evidence.step_requests
    wanted = max(1, step.min_requests)  # no data decides nothing
    needed = wanted - candidate if step.weight > 0 else 0
    if 0 < step.weight < 100:
        needed = max(needed, math.ceil((wanted - stable) * step.weight / (100 - step.weight)))
    return max(0, needed)


def _share_mismatch(evidence: Evidence, step: StepRule) -> bool:
    if not 0 < step.weight < 100:
        return False
    none = Cohort()
    clusters = [
        (evidence.candidate.cohorts.get(number, none).requests, evidence.stable.cohorts.get(number, none).requests)
        for number in range(COHORTS)
    ]
    dispersion = share_dispersion(clusters)
    counts = [count / dispersion for count in evidence.step_requests]
    share = step.weight / 100
    return share_mismatch(counts, (share, 1 - share)) > -math.log(MISMATCH_P)


def _metric(
    rule: MetricRule,
    evidence: Evidence,
    rules: RolloutRules,
    discount: float,
    needed: int,
    *,
    ceiling_applies: bool,
) -> MetricStatus:
    threshold = -math.log(rules.alpha_each)
    mean = evidence.means.get(rule.metric.value)
    rate = evidence.rates.get(rule.metric.value)
    log_e, leaning = -math.inf, False
    if mean is not None:
        log_e, leaning = _mean_evidence(rule, mean, evidence, rules, discount)
    elif rate is not None:
        log_e = rate.log_e(discount, _least_ratio(rule, rules))
        leaning = log_e > rate.neutral + 1e-6
    of_ceiling = rule.metric is Metric.ERROR_CEILING
    harmful = log_e >= threshold and (ceiling_applies or not of_ceiling)
    figures = metric_figure(rule, evidence.stable), metric_figure(rule, evidence.candidate)
    needed = needed or _needed_figures(rule, evidence)
    return MetricStatus(
        name=rule.metric.value,
        mode=rule.mode,
        stable=figures[0],
        candidate=figures[1],
        limit=limit_text(rule),
        evidence=f"{max(0.0, log_e):.2f} of {threshold:.2f}",
        p=p_text(math.exp(-max(0.0, log_e))),
        n=mean.n if mean is not None else rate.n if rate is not None else 0,
        verdict=_metric_verdict(
            needed, known=bool(figures[1] and (figures[0] or of_ceiling)), harmful=harmful, leaning=leaning
        ),
        needed_requests=needed,
    )


def _metric_verdict(needed: int, *, known: bool, harmful: bool, leaning: bool) -> Verdict:
    if harmful:
        return Verdict.HARM
    if needed:
        return Verdict.INSUFFICIENT_DATA
    if not known:
        return Verdict.ERROR
    return Verdict.INCONCLUSIVE if leaning else Verdict.PASS


def _needed_figures(rule: MetricRule, evidence: Evidence) -> int:
    """Return how many more figures a metric's own test needs, 0 where there is none at all and never may be."""
    stable, candidate = moments_of(rule.metric, evidence.stable), moments_of(rule.metric, evidence.candidate)
    if stable is not None and candidate is not None:
        fewest = min(stable.n, candidate.n)
        return max(0, MIN_MEAN_REQUESTS - fewest) if fewest else 0
    known = {Metric.LATENCY: evidence.stable.latency, Metric.FIRST_TOKEN: evidence.stable.first_token}.get(rule.metric)
    known_stable = sum(known.values()) if known else 0
    return max(0, MIN_STABLE_LATENCIES - known_stable) if known_stable else 0


def _least_ratio(rule: MetricRule, rules: RolloutRules) -> float:
    """Return the ratio of rates that the figures themselves must exceed before evidence counts."""
    if rule.metric in {Metric.LATENCY, Metric.FIRST_TOKEN}:
        return 1.0
    if rule.metric is Metric.ERROR_CEILING:
        relative = next((other for other in rules.metrics if other.metric is Metric.ERROR_RATE), None)
        return DEFAULT_LEAST_RATIO if relative is None else 1 + relative.limit_percent / 100
    return 1 + rule.limit_percent / 100


def _mean_evidence(
    rule: MetricRule, mean: MeanEvidence, evidence: Evidence, rules: RolloutRules, discount: float
) -> tuple[float, bool]:
    """Return the log evidence that a mean is beyond its limit, and whether it leans that way at all."""
    candidate, stable = moments_of(rule.metric, evidence.candidate), moments_of(rule.metric, evidence.stable)
    if candidate is None or stable is None or min(candidate.n, stable.n) < MIN_MEAN_REQUESTS:
        return -math.inf, False
    variance = discount * (
        candidate.variance * mean.candidate_spread + _factor(rule) ** 2 * stable.variance * mean.stable_spread
    )
    gap = -mean.gap if rule.metric is Metric.SCORE else mean.gap
    if gap <= 0:
        return -math.inf, False
    z = gap / math.sqrt(variance) if variance > 0 else math.inf
    p = mean_p(z, (mean.n + mean.stable_n) / discount, rules.alpha_each)
    return (-math.log(p) if p > 0 else math.inf), z > 1


def _combine(metrics: tuple[MetricStatus, ...], step: StepRule, needed: int) -> tuple[Verdict, str]:
    """Return the worst verdict of the metrics that decide, with its sentence."""
    deciding = [metric for metric in metrics if metric.mode is MetricMode.REQUIRED and _judged(metric, step)]
    verdict = next((worst for worst in _WORST_FIRST if any(metric.verdict is worst for metric in deciding)), None)
    if needed and verdict is not Verdict.HARM:
        return Verdict.INSUFFICIENT_DATA, f"needs about {needed} more candidate requests"
    if verdict is None:
        return Verdict.PASS, "no metric is judged on this step"
    metric = next(metric for metric in deciding if metric.verdict is verdict)
    match verdict:
        case Verdict.INSUFFICIENT_DATA:
            return verdict, f"needs about {metric.needed_requests} more figures of {TITLES[Metric(metric.name)]}"
        case Verdict.HARM | Verdict.INCONCLUSIVE:
            return verdict, sentence(metric)
        case Verdict.ERROR:
            return verdict, f"no call has reported a figure for {TITLES[Metric(metric.name)]}, so it cannot be judged"
        case _:
            return verdict, f"{sentence(metric)}: no harm found"


def _judged(metric: MetricStatus, step: StepRule) -> bool:
    """Where one arm has everyone there is nothing to compare: what counts is harm found before, and the ceiling."""
    compared = 0 < step.weight < 100
    ceiling = metric.name == Metric.ERROR_CEILING.value and metric.n > 0
    return compared or ceiling or metric.verdict is Verdict.HARM


def sentence(metric: MetricStatus) -> str:
    """Return a metric in one sentence with its figures."""
    title = TITLES[Metric(metric.name)]
    limit = f"ceiling {metric.limit}" if metric.name == Metric.ERROR_CEILING.value else f"limit {metric.limit}"
    return f"{title} candidate {metric.candidate or '-'} vs stable {metric.stable or '-'}, {limit}, p={metric.p}"


def _arms(title: str, evidence: Evidence, rules: RolloutRules) -> str:
    rule = next((r for r in rules.metrics if r.metric is Metric.ERROR_CEILING), None)
    rule = rule or MetricRule(metric=Metric.ERROR_CEILING, limit_percent=20)
    return f"{title} stable {metric_figure(rule, evidence.stable)}, candidate {metric_figure(rule, evidence.candidate)}"
