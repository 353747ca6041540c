"""The judge: what is harm, what is not, and how often it errs."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_core.api.canarysplit import CanarySplitSpec
from sluice_core.api.canarysplit_status import Phase, Verdict
from sluice_core.records import Outcome
from sluice_core.rollout.counts import CANDIDATE, EDGES_SECONDS, STABLE, ArmCounter, ArmCounts
from sluice_core.rollout.evidence import Evidence, begin, decode, edge_at_least, encode, quantile_index
from sluice_core.rollout.judge import Judgement, judge, observe
from sluice_core.rollout.presets import Metric, RolloutRules, StepRule, resolve
from sluice_core.rollout.simulation import Behaviour, Population, Ramp, Run, Traffic, run
from sluice_core.split import bucket_of
from sluice_core.usage import Usage

_calls = itertools.count()
STEP = StepRule(weight=50, bake_seconds=0, min_requests=100)


def rules_for(**spec: Any) -> RolloutRules:
    arms = {"stable": {"version": "v1"}, "candidate": {"version": "v2", "model": "m"}}
    return resolve(msgspec.convert({"routeRef": {"name": "chat"}} | arms | spec, CanarySplitSpec))


def arm(name: str, n: int, errors: int = 0, tokens: Callable[[int], int] = lambda _: 50) -> ArmCounts:
    counter = ArmCounter("sim", "r-1", name)
    for number in range(n):
        call = next(_calls)
        counter.record(
            outcome=Outcome.PROVIDER_ERROR if number < errors else Outcome.SUCCESS,
            latency_seconds=1.0,
            usage=Usage(output_tokens=tokens(number)),
            finish_reason="stop",
            bucket=bucket_of("users", f"{call}"),
        )
    return counter.export()


def look(rules: RolloutRules, stable: ArmCounts, candidate: ArmCounts, step: StepRule = STEP) -> Judgement:
    evidence = observe(begin("sim", "r-1"), rules, (stable, candidate), 1, converged=True, now=100.0)
    return judge(evidence, rules, step)


def test_a_single_interval_gives_the_published_evidence() -> None:
    """20 of 1000 against 90 of 9000 at a limit of +25 %: the log e-value of the whole-rollout window is 0.659."""
    rules = rules_for(analysis={"errorRate": {"maxIncreasePercent": 25}})
    evidence = observe(
        begin("sim", "r-1"), rules, (arm(STABLE, 9000, 90), arm(CANDIDATE, 1000, 20)), 1, converged=True, now=1.0
    )

    error_rate = evidence.rates[Metric.ERROR_RATE.value]
    whole = math.log(sum(math.exp(score) for score in error_rate.whole.scores) / 6)
    assert whole == pytest.approx(0.659412, abs=1e-6)
    assert error_rate.whole.ratio == pytest.approx(2.0)
    assert error_rate.log_e(1.0, 1.25) <= whole


@pytest.mark.parametrize(
    ("stable", "candidate", "verdict"),
    [
        ((0, 0), (0, 0), Verdict.INSUFFICIENT_DATA),
        ((500, 0), (99, 0), Verdict.INSUFFICIENT_DATA),
        ((500, 5), (500, 5), Verdict.PASS),
        ((500, 5), (500, 150), Verdict.HARM),
        ((500, 5), (500, 16), Verdict.INCONCLUSIVE),
        ((500, 250), (500, 250), Verdict.INCONCLUSIVE),  # the stable arm fails too
        ((20, 0), (10, 9), Verdict.HARM),  # far too much, whatever the number
    ],
)
def test_verdicts_are_never_mixed_up(stable: tuple[int, int], candidate: tuple[int, int], verdict: Verdict) -> None:
    """(requests, errors) of both arms, and what they say."""
    assert look(rules_for(), arm(STABLE, *stable), arm(CANDIDATE, *candidate)).verdict is verdict


def test_what_is_missing_is_told() -> None:
    """An insufficient verdict says about how many more candidate requests it takes."""
    judgement = look(rules_for(), arm(STABLE, 40), arm(CANDIDATE, 30))

    assert judgement.needed_requests == 70
    assert judgement.reason == "needs about 70 more candidate requests"


def test_a_ramp_with_a_drifting_base_rate_is_no_harm() -> None:
    """The base rate quadruples while the weight climbs: pooled, the candidate looks 1.6 times worse; it is not."""
    rules = rules_for(analysis={"errorRate": {"maxIncreasePercent": 10}})
    evidence = begin("sim", "r-1")
    stable, candidate = arm(STABLE, 0), arm(CANDIDATE, 0)
    for number, (weight, percent) in enumerate([(5, 1), (20, 2), (50, 4)], 1):
        n = 100 * weight
        candidate = candidate.plus(arm(CANDIDATE, n, n * percent // 100))
        stable = stable.plus(arm(STABLE, 10_000 - n, (10_000 - n) * percent // 100))
        evidence = observe(evidence, rules, (stable, candidate), number, converged=True, now=100.0 * number)

    pooled = (candidate.error_count / candidate.requests) / (stable.error_count / stable.requests)
    assert pooled > 1.5
    assert evidence.rates["errorRate"].whole.ratio == pytest.approx(1.0, abs=0.01)
    assert judge(evidence, rules, STEP).verdict is Verdict.PASS


def test_a_long_healthy_time_does_not_hide_a_late_fault() -> None:
    """After twenty thousand healthy calls 30 % errors are found within 200 candidate calls: there is no credit."""
    rules = rules_for()
    evidence = begin("sim", "r-1")
    stable, candidate = arm(STABLE, 0), arm(CANDIDATE, 0)
    for tick in range(1, 101):
        stable, candidate = stable.plus(arm(STABLE, 200, 2)), candidate.plus(arm(CANDIDATE, 200, 2))
        evidence = observe(evidence, rules, (stable, candidate), 1, converged=True, now=5.0 * tick)
    assert judge(evidence, rules, STEP).verdict is Verdict.PASS
    for tick in range(101, 105):
        stable, candidate = stable.plus(arm(STABLE, 50, 1)), candidate.plus(arm(CANDIDATE, 50, 15))
        evidence = observe(evidence, rules, (stable, candidate), 1, converged=True, now=5.0 * tick)

    assert judge(evidence, rules, STEP).verdict is Verdict.HARM


def test_errors_of_whole_users_are_discounted() -> None:
    """Twelve errors of twelve users speak louder than twelve errors of one."""

    def errors_in(cohorts: int) -> ArmCounts:
        counter = ArmCounter("sim", "r-1", CANDIDATE)
        for number in range(600):
            failed = number < 12
            counter.record(
                outcome=Outcome.TIMEOUT if failed else Outcome.SUCCESS,
                latency_seconds=1.0,
                bucket=number % cohorts if failed else number % 50,
            )
        return counter.export()

    rules, stable = rules_for(), arm(STABLE, 600, 2)

    spread, single = look(rules, stable, errors_in(12)), look(rules, stable, errors_in(1))

    assert spread.discount < 1.5 < 5 < single.discount
    assert float(single.metrics[1].p) > float(spread.metrics[1].p)


def test_arms_out_of_proportion_are_told() -> None:
    """Half of the requests where a tenth belongs is no fit; the step does not pass."""
    judgement = look(
        rules_for(), arm(STABLE, 1000), arm(CANDIDATE, 1000), StepRule(weight=10, bake_seconds=0, min_requests=100)
    )

    assert (judgement.share_mismatch, judgement.verdict) == (True, Verdict.INCONCLUSIVE)
    assert "does not fit weight 10%" in judgement.reason


def test_a_dearer_candidate_is_found_by_its_mean() -> None:
    """Output tokens doubled: harm at +25 %, none at +150 %."""
    double = arm(CANDIDATE, 400, tokens=lambda number: 80 + number % 40)
    single = arm(STABLE, 400, tokens=lambda number: 40 + number % 20)

    tight = look(rules_for(analysis={"outputTokens": {"maxIncreasePercent": 25}}), single, double)
    loose = look(rules_for(analysis={"outputTokens": {"maxIncreasePercent": 150}}), single, double)

    assert (tight.verdict, loose.verdict) == (Verdict.HARM, Verdict.PASS)


def test_a_falling_score_is_harm() -> None:
    """Scores that applications report count downwards."""
    counters = {STABLE: ArmCounter("sim", "r-1", STABLE), CANDIDATE: ArmCounter("sim", "r-1", CANDIDATE)}
    for number in range(300):
        for name, base in ((STABLE, 0.8), (CANDIDATE, 0.5)):
            counters[name].record(outcome=Outcome.SUCCESS, latency_seconds=1.0, bucket=number)
            counters[name].record_score(base + number % 10 / 100)

    judgement = look(rules_for(analysis={"score": {}}), counters[STABLE].export(), counters[CANDIDATE].export())

    assert judgement.verdict is Verdict.HARM


def test_a_few_scores_are_not_enough() -> None:
    """A metric with figures of its own needs enough of them, however many requests there were."""
    counters = {STABLE: ArmCounter("sim", "r-1", STABLE), CANDIDATE: ArmCounter("sim", "r-1", CANDIDATE)}
    for number in range(300):
        for counter in counters.values():
            counter.record(outcome=Outcome.SUCCESS, latency_seconds=1.0, bucket=number)
            if number < 30:
                counter.record_score(0.8)

    judgement = look(rules_for(analysis={"score": {}}), counters[STABLE].export(), counters[CANDIDATE].export())

    assert judgement.verdict is Verdict.INSUFFICIENT_DATA
    assert judgement.reason == "needs about 70 more figures of score"


def test_limits_of_latency_fall_on_edges() -> None:
    """The edge for +20 % is three on; quantiles are the edge that the share does not exceed."""
    assert edge_at_least(10, 1.2) == 13
    assert edge_at_least(len(EDGES_SECONDS) - 1, 1.2) is None
    assert quantile_index({3: 90, 7: 10}, 0.95) == 7
    assert quantile_index({3: 95, 7: 5}, 0.95) == 3


def test_the_memory_survives_its_text() -> None:
    """What status keeps is all there is; a broken text or one of another revision counts as none."""
    evidence = observe(
        begin("sim", "r-1"), rules_for(), (arm(STABLE, 50, 3), arm(CANDIDATE, 50, 9)), 1, converged=True, now=1
    )

    assert decode(encode(evidence), "sim", "r-1") == evidence
    assert decode(encode(evidence), "sim", "r-2") == begin("sim", "r-2")
    assert decode("{", "sim", "r-1") == begin("sim", "r-1")


def test_a_total_that_went_back_is_no_news() -> None:
    """Counts below what is remembered change nothing."""
    rules = rules_for()
    evidence = observe(begin("sim", "r-1"), rules, (arm(STABLE, 50), arm(CANDIDATE, 50)), 1, converged=True, now=1.0)

    assert observe(evidence, rules, (arm(STABLE, 10), arm(CANDIDATE, 10)), 1, converged=True, now=2.0) == evidence


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)), max_size=12))
def test_evidence_is_always_a_number(intervals: list[tuple[int, int, int]]) -> None:
    """Whatever comes in, evidence can be written, read and judged, and no data is never a verdict."""
    analysis = {name: {} for name in ("errorRate", "latency", "cost", "outputTokens", "finishReasons", "score")}
    rules = rules_for(analysis=analysis)
    evidence: Evidence = begin("sim", "r-1")
    stable, candidate = arm(STABLE, 0), arm(CANDIDATE, 0)
    for number, (n_stable, n_candidate, errors) in enumerate(intervals, 1):
        stable = stable.plus(arm(STABLE, n_stable, min(errors, n_stable)))
        candidate = candidate.plus(arm(CANDIDATE, n_candidate, min(errors, n_candidate)))
        evidence = observe(evidence, rules, (stable, candidate), 1, converged=True, now=30.0 * number)
        evidence = decode(encode(evidence), "sim", "r-1")
    judgement = judge(evidence, rules, STEP)

    if not candidate.requests:
        assert judgement.verdict in {Verdict.INSUFFICIENT_DATA, Verdict.INCONCLUSIVE}
    assert all("nan" not in metric.p + metric.evidence for metric in judgement.metrics)


def test_strict_brings_the_strict_figures() -> None:
    """Strict judges errors, latency and cost, a thousand requests, a day a step."""
    rules = rules_for(preset="Strict")

    limits = {rule.metric: rule.limit_percent for rule in rules.metrics}
    assert limits[Metric.ERROR_RATE] == 50
    assert (limits[Metric.LATENCY], limits[Metric.COST]) == (20, 10)
    assert [(step.weight, step.bake_seconds, step.min_requests) for step in rules.steps] == [
        (weight, 86_400, 1000) for weight in (5, 25, 50, 100)
    ]


def test_a_canary_is_watched_as_long_as_it_says() -> None:
    """The watch after the last step has a length of its own; it wants as many requests as that step."""
    steps = [{"weight": 50}, {"weight": 100, "minRequests": 7}]

    told = rules_for(strategy={"steps": steps, "watchSeconds": 2})

    assert (told.watch_seconds, told.watch_requests) == (2, 7)
    assert rules_for().watch_seconds == 600


FULL = {"errorRate": {}, "latency": {}, "cost": {}}


def simulate(population: Population, behaviour: Behaviour, runs: int, ramp: Ramp, *, drift: bool = False) -> list[Run]:
    rules = rules_for(analysis=FULL)
    multipliers = (1.0, 1.0, 3.0, 3.0, 0.5, 2.0) if drift else (1.0,)
    return [
        run(rules, ramp, Traffic(population, behaviour, random.Random(seed * 7919), f"salt-{seed}"), multipliers)
        for seed in range(runs)
    ]


@pytest.mark.parametrize(
    ("population", "drift"),
    [
        (Population(), False),
        (Population(), True),
        (Population(concentration=2.0, error_rate=0.02), False),
        (Population(users=200, concentration=5.0, error_rate=0.03, heavy_share=0.5), False),
        (Population(users=100, spread=0.7), False),
    ],
    ids=[
        "alike users",
        "drifting base rate",
        "users who differ widely",
        "one user with half of the traffic",
        "users with habits",
    ],
)
def test_a_healthy_candidate_is_seldom_rolled_back(population: Population, drift: bool) -> None:
    """Looked at after every interval, at most the promised 5 % of healthy candidates are rolled back (25 runs each:
    more than 3 would happen by chance in less than 4 % of suites if the rate were just 5 %).
    """
    runs = simulate(population, Behaviour(), 25, Ramp(ticks=12), drift=drift)
    false_alarms = sum(result.harm_tick is not None for result in runs)
    threshold = sum(result.threshold_tick is not None for result in runs)
    print(f"healthy candidate rolled back: judge {false_alarms}/25, threshold rule {threshold}/25")

    assert false_alarms <= 3
    assert threshold > 12  # what a fixed threshold does to the same healthy candidates


@pytest.mark.parametrize(
    ("behaviour", "requests"),
    [
        (Behaviour(error_factor=30.0), 80),
        (Behaviour(latency_factor=2.0), 200),
        (Behaviour(cost_factor=2.5), 200),
    ],
    ids=["30 % errors", "twice as slow", "twice as dear"],
)
def test_a_harmful_candidate_is_found_soon(behaviour: Behaviour, requests: int) -> None:
    """Almost every harmful candidate is found, within so many candidate requests in the median."""
    runs = simulate(Population(), behaviour, 15, Ramp(ticks=15))
    found = sorted(result.candidate_requests for result in runs if result.harm_tick is not None)
    print(f"{behaviour}: found {len(found)}/15, median after {found[len(found) // 2]} candidate requests")

    assert len(found) >= 14
    assert found[len(found) // 2] <= requests


def test_a_candidate_that_fails_a_third_of_its_calls_is_off_within_ten_seconds(world: Callable[..., Any]) -> None:
    """Twenty calls a second at a weight of ten percent are traffic enough."""
    rollout = world().run(30, requests=100, stable_errors=0.01, candidate_errors=0.01)

    rollout.run(10, requests=100, stable_errors=0.01, candidate_errors=0.34)

    assert rollout.phase is Phase.ROLLED_BACK
