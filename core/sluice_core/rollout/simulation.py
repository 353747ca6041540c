"""Simulated traffic for the judge: users with their own habits, split as the sidecars split them.

Used by the tests and the benchmark that measure false and missed rollbacks, and good for trying limits out before use.
Randomness comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sluice_core.api.base import Value
from sluice_core.records import Outcome
from sluice_core.rollout.counts import CANDIDATE, STABLE, ArmCounter, ArmCounts
from sluice_core.rollout.evidence import Evidence, begin
from sluice_core.rollout.judge import Judgement, judge, observe
from sluice_core.rollout.presets import RolloutRules, StepRule
from sluice_core.split import bucket_of
from sluice_core.usage import Usage


class Draws(Protocol):
    """The part of `random.Random` that a simulation uses."""

    def random(self) -> float: ...
    def betavariate(self, alpha: float, beta: float) -> float: ...
    def lognormvariate(self, mu: float, sigma: float) -> float: ...
    def randrange(self, start: int, /) -> int: ...


class Population(Value, frozen=True, kw_only=True):
    """Who calls: each user fails with a probability of its own, Beta with this mean and concentration.

    `spread` is how much users differ in the length and duration of their answers (sigma of a lognormal factor).
    `heavy_share` of the requests come from one user.
    """

    users: int = 600
    error_rate: float = 0.01
    concentration: float = 50.0
    spread: float = 0.0
    heavy_share: float = 0.0


class Behaviour(Value, frozen=True, kw_only=True):
    """How the candidate differs from stable."""

    error_factor: float = 1.0
    latency_factor: float = 1.0
    cost_factor: float = 1.0


class Ramp(Value, frozen=True, kw_only=True):
    """Weights one after another, each for so many ticks of so many requests."""

    weights: tuple[int, ...] = (5, 25, 50)
    ticks: int = 20
    requests: int = 100
    tick_seconds: float = 5.0


class Traffic:
    """A population and the counters of both arms."""

    __slots__ = ("_arms", "_behaviour", "_buckets", "_draws", "_habits", "_heavy_share", "_propensity")

    def __init__(self, population: Population, behaviour: Behaviour, draws: Draws, salt: str) -> None:
        mean, concentration = population.error_rate, population.concentration
        self._propensity = [
            draws.betavariate(mean * concentration, (1 - mean) * concentration) for _ in range(population.users)
        ]
        self._habits = [draws.lognormvariate(0.0, population.spread) for _ in range(population.users)]
        self._buckets = [bucket_of(salt, f"user-{user}") for user in range(population.users)]
        self._heavy_share = population.heavy_share
        self._behaviour = behaviour
        self._draws = draws
        self._arms = {arm: ArmCounter("sim", "r-1", arm) for arm in (STABLE, CANDIDATE)}

    def serve(
        self, requests: int, weight: int, error_multiplier: float = 1.0, outage: float = 0.0
    ) -> tuple[ArmCounts, ArmCounts]:
        """Serve some requests at a weight and return the totals (stable, candidate).

        In an outage everyone fails with that probability at least.
        """
        draws = self._draws
        for _ in range(requests):
            user = 0 if draws.random() < self._heavy_share else draws.randrange(len(self._propensity))
            candidate = self._buckets[user] < weight * 100
            behaviour = self._behaviour if candidate else Behaviour()
            failed = draws.random() < max(outage, self._propensity[user] * error_multiplier * behaviour.error_factor)
            habit = self._habits[user]
            tokens = draws.lognormvariate(5.0, 0.8) * behaviour.cost_factor * habit
            self._arms[CANDIDATE if candidate else STABLE].record(
                outcome=Outcome.PROVIDER_ERROR if failed else Outcome.SUCCESS,
                latency_seconds=draws.lognormvariate(0.3, 0.5) * behaviour.latency_factor * habit,
                usage=Usage(input_tokens=500, output_tokens=round(tokens)),
                cost_usd_micros=round(200 + tokens * 1.6),
                finish_reason="stop",
                bucket=self._buckets[user],
            )
        return self._arms[STABLE].export(), self._arms[CANDIDATE].export()


class Run(Value, frozen=True, kw_only=True):
    """What one simulated rollout came to: the tick and the candidate requests at which harm was found, if it was."""

    harm_tick: int | None
    candidate_requests: int
    threshold_tick: int | None
    last: Judgement


def run(
    rules: RolloutRules,
    ramp: Ramp,
    traffic: Traffic,
    multipliers: Sequence[float] = (1.0,),
    outages: Sequence[float] = (0.0,),
) -> Run:
    """Look at every tick until harm is found or the ramp ends.

    Args:
        rules: what is judged, and how strictly.
        ramp: the weights and the traffic.
        traffic: who calls.
        multipliers: factors on everyone's error rate, one per tick and repeated: a drifting base rate.
        outages: least error rates of everyone, one per tick and repeated.

    Beside the judge a threshold rule looks on, as pod-rollout tools apply it: an interval above 1 % errors is a failed
    check, the fifth one rolls back.
    """
    evidence: Evidence = begin("sim", "r-1")
    judgement = judge(evidence, rules, StepRule(weight=0, bake_seconds=0, min_requests=0))
    tick, failed_checks, threshold_tick, before = 0, 0, None, (0, 0)
    for number, weight in enumerate(ramp.weights, 1):
        step = StepRule(weight=weight, bake_seconds=0, min_requests=100)
        for _ in range(ramp.ticks):
            tick += 1
            totals = traffic.serve(
                ramp.requests, weight, multipliers[tick % len(multipliers)], outages[tick % len(outages)]
            )
            after = totals[1].requests, totals[1].error_count
            if after[1] - before[1] > 0.01 * (after[0] - before[0]):
                failed_checks += 1
            before = after
            if failed_checks >= 5 and threshold_tick is None:
                threshold_tick = tick
            evidence = observe(evidence, rules, totals, number, converged=True, now=1 + tick * ramp.tick_seconds)
            judgement = judge(evidence, rules, step)
            if judgement.verdict.value == "Harm":
                return Run(harm_tick=tick, candidate_requests=after[0], threshold_tick=threshold_tick, last=judgement)
    return Run(harm_tick=None, candidate_requests=before[0], threshold_tick=threshold_tick, last=judgement)
