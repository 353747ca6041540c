"""Cumulative counts of one arm of one split in one sidecar: what the judge sees of the calls.

Everything is a sum, so that counts of many pods add up, and cumulative since the process started, so that a report may
be lost or repeated. Zeros are left out on the wire.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from sluice_core.api.base import Value
from sluice_core.records import Outcome
from sluice_core.split import Arm
from sluice_core.usage import Usage

_Key = TypeVar("_Key", int, str)

STABLE: Final = "stable"
CANDIDATE: Final = "candidate"

COHORTS: Final = 50
"""Users fall into this many cohorts; how much they differ says how far calls of one user are alike."""

_EDGE_RATIO: Final = 1.2 ** (1 / 3)  # three edges make +20 %, so that such a limit falls on an edge
EDGES_SECONDS: Final = tuple(round(0.05 * _EDGE_RATIO**step, 4) for step in range(129))
"""Upper edges of the latency histogram, 0.05 s to 120 s and a little more; one further bucket takes what is slower."""

ERRORS: Final = frozenset(
    {
        Outcome.PROVIDER_ERROR,
        Outcome.TIMEOUT,
        Outcome.CONNECTION_ERROR,
        Outcome.TRUNCATED,
        Outcome.THROTTLED,
        Outcome.EXHAUSTED,
        Outcome.CONFIG_ERROR,
        Outcome.CREDENTIAL_ERROR,
    }
)
"""Outcomes that count against an arm. The caller's own errors and Sluice's refusals say nothing about it."""


class FinishReason(StrEnum):
    """Why an answer ended, as far as the judge distinguishes."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    TOOL_CALLS = "tool_calls"
    OTHER = "other"


CUT_SHORT: Final = frozenset({FinishReason.LENGTH, FinishReason.CONTENT_FILTER})
"""Finish reasons of answers that are not whole."""

_OTHER_REASON: Final = FinishReason.OTHER.value
_FINISH_REASONS: Final = {
    "function_call": FinishReason.TOOL_CALLS.value,
    "max_output_tokens": FinishReason.LENGTH.value,
    "completed": FinishReason.STOP.value,
    **{reason.value: reason.value for reason in FinishReason},
}


class Moments(Value, frozen=True, kw_only=True):
    """Number, sum and sum of squares of a figure: enough for its mean and variance."""

    n: Annotated[int, Meta(ge=0)] = 0
    sum: float = 0.0
    sum_squares: Annotated[float, Meta(ge=0)] = 0.0

    @property
    def mean(self) -> float:
        """Return the mean, 0 without observations."""
        return self.sum / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """Return the variance with n - 1 in the denominator, 0 with fewer than two observations."""
        if self.n < 2:
            return 0.0
        return max(0.0, (self.sum_squares - self.sum * self.sum / self.n) / (self.n - 1))

    def plus(self, other: Moments) -> Moments:
        """Return the moments of both samples together."""
        return Moments(n=self.n + other.n, sum=self.sum + other.sum, sum_squares=self.sum_squares + other.sum_squares)

    def since(self, before: Moments) -> Moments:
        """Return the moments of what came after `before`."""
        if self.n < before.n:
            return Moments()
        return Moments(
            n=self.n - before.n,
            sum=self.sum - before.sum,
            sum_squares=max(0.0, self.sum_squares - before.sum_squares),
        )


class Cohort(msgspec.Struct, frozen=True, array_like=True):
    """Sums over the calls of one cohort of users; `cut` answers ended by length or by a content filter."""

    requests: int = 0
    errors: int = 0
    latency_milliseconds: int = 0
    cut: int = 0
    output_tokens: int = 0
    cost_usd_micros: int = 0

    def plus(self, other: Cohort) -> Cohort:
        """Return both together."""
        return Cohort(
            self.requests + other.requests,
            self.errors + other.errors,
            self.latency_milliseconds + other.latency_milliseconds,
            self.cut + other.cut,
            self.output_tokens + other.output_tokens,
            self.cost_usd_micros + other.cost_usd_micros,
        )

    def since(self, before: Cohort) -> Cohort:
        """Return what came after `before`."""
        return Cohort(
            self.requests - before.requests,
            max(0, self.errors - before.errors),
            max(0, self.latency_milliseconds - before.latency_milliseconds),
            max(0, self.cut - before.cut),
            max(0, self.output_tokens - before.output_tokens),
            max(0, self.cost_usd_micros - before.cost_usd_micros),
        )


_NO_COHORT: Final = Cohort()

_NO_MOMENTS: Final = Moments()
"""Shared, so that the wire leaves it out."""

Histogram = dict[int, int]
"""Observations by index of the first edge that is not below them; `len(EDGES_SECONDS)` is the last, open bucket."""


class ArmCounts(Value, frozen=True, kw_only=True):
    """What one sidecar process has seen of one arm of one revision since it started.

    `requests` are the calls that count: answered or failed, of users whom the split assigned. `errors` are by outcome,
    `excluded` calls were forced to the arm, had no key, or ended by the caller or by a refusal. `cohorts` holds
    sums by cohort of users. Latencies are those of successful calls; cost is in micro-dollars.
    """

    split: Annotated[str, Meta(max_length=512)]
    revision: Annotated[str, Meta(max_length=128)]
    arm: Annotated[str, Meta(max_length=16)]
    requests: Annotated[int, Meta(ge=0)] = 0
    errors: Annotated[dict[str, int], Meta(max_length=16)] = {}
    excluded: Annotated[int, Meta(ge=0)] = 0
    cohorts: Annotated[dict[int, Cohort], Meta(max_length=COHORTS)] = {}
    latency: Annotated[Histogram, Meta(max_length=len(EDGES_SECONDS) + 1)] = {}
    first_token: Annotated[Histogram, Meta(max_length=len(EDGES_SECONDS) + 1)] = {}
    finish_reasons: Annotated[dict[str, int], Meta(max_length=len(FinishReason))] = {}
    input_tokens: Moments = _NO_MOMENTS
    output_tokens: Moments = _NO_MOMENTS
    cost_usd_micros: Moments = _NO_MOMENTS
    score: Moments = _NO_MOMENTS

    @property
    def error_count(self) -> int:
        """Return the errors of all classes."""
        return sum(self.errors.values())

    def plus(self, other: ArmCounts) -> ArmCounts:
        """Return both counts together, under this one's name."""
        return ArmCounts(
            split=self.split,
            revision=self.revision,
            arm=self.arm,
            requests=self.requests + other.requests,
            errors=_plus(self.errors, other.errors),
            excluded=self.excluded + other.excluded,
            cohorts=_cohorts_plus(self.cohorts, other.cohorts),
            latency=_plus(self.latency, other.latency),
            first_token=_plus(self.first_token, other.first_token),
            finish_reasons=_plus(self.finish_reasons, other.finish_reasons),
            input_tokens=self.input_tokens.plus(other.input_tokens),
            output_tokens=self.output_tokens.plus(other.output_tokens),
            cost_usd_micros=self.cost_usd_micros.plus(other.cost_usd_micros),
            score=self.score.plus(other.score),
        )

    def since(self, before: ArmCounts) -> ArmCounts:
        """Return what came after `before`; a sum that went back counts as nothing new."""
        return ArmCounts(
            split=self.split,
            revision=self.revision,
            arm=self.arm,
            requests=max(0, self.requests - before.requests),
            errors=_minus(self.errors, before.errors),
            excluded=max(0, self.excluded - before.excluded),
            cohorts=_cohorts_minus(self.cohorts, before.cohorts),
            latency=_minus(self.latency, before.latency),
            first_token=_minus(self.first_token, before.first_token),
            finish_reasons=_minus(self.finish_reasons, before.finish_reasons),
            input_tokens=self.input_tokens.since(before.input_tokens),
            output_tokens=self.output_tokens.since(before.output_tokens),
            cost_usd_micros=self.cost_usd_micros.since(before.cost_usd_micros),
            score=self.score.since(before.score),
        )


def _plus(first: dict[_Key, int], second: dict[_Key, int]) -> dict[_Key, int]:
    total = dict(first)
    for key, count in second.items():
        total[key] = total.get(key, 0) + count
    return total


def _minus(after: dict[_Key, int], before: dict[_Key, int]) -> dict[_Key, int]:
    return {key: count - before.get(key, 0) for key, count in after.items() if count > before.get(key, 0)}


def _cohorts_plus(first: dict[int, Cohort], second: dict[int, Cohort]) -> dict[int, Cohort]:
    total = dict(first)
    for number, cohort in second.items():
        total[number] = total[number].plus(cohort) if number in total else cohort
    return total


def _cohorts_minus(after: dict[int, Cohort], before: dict[int, Cohort]) -> dict[int, Cohort]:
    return {
        number: cohort.since(before.get(number, _NO_COHORT))
        for number, cohort in after.items()
        if cohort.requests > before.get(number, _NO_COHORT).requests
    }


class _Sums:
    """Moments in the making."""

    __slots__ = ("n", "sum", "sum_squares")

    def __init__(self) -> None:
        self.n = 0
        self.sum = 0.0
        self.sum_squares = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        self.sum += value
        self.sum_squares += value * value

    def export(self) -> Moments:
        if not self.n:
            return _NO_MOMENTS
        return Moments(n=self.n, sum=self.sum, sum_squares=self.sum_squares)


class ArmCounter:
    """The counts of one arm in the making: one per (split, revision, arm) in a sidecar, of fixed size."""

    __slots__ = (
        "_cohorts",
        "_cost",
        "_errors",
        "_excluded",
        "_finish_reasons",
        "_first_token",
        "_input_tokens",
        "_latency",
        "_output_tokens",
        "_requests",
        "_score",
        "arm",
        "rollout",
    )

    def __init__(self, split: str, revision: str, arm: Arm) -> None:
        self.rollout = split, revision
        self.arm: Arm = arm
        self._requests = 0
        self._excluded = 0
        self._errors: dict[str, int] = {}
        self._finish_reasons: dict[str, int] = {}
        self._cohorts = [[0] * len(Cohort.__struct_fields__) for _ in range(COHORTS)]
        self._latency = [0] * (len(EDGES_SECONDS) + 1)
        self._first_token = [0] * (len(EDGES_SECONDS) + 1)
        self._input_tokens = _Sums()
        self._output_tokens = _Sums()
        self._cost = _Sums()
        self._score = _Sums()

    def record(
        self,
        *,
        outcome: Outcome,
        latency_seconds: float,
        first_token_seconds: float | None = None,
        usage: Usage | None = None,
        cost_usd_micros: int | None = None,
        finish_reason: str | None = None,
        bucket: int = 0,
        counted: bool = True,
    ) -> None:
        """Count one settled call.

        `outcome` is that of the whole call, after retries. `bucket` and `counted` are the assignment's.
        """
        failed = outcome in ERRORS
        if not counted or not (failed or outcome is Outcome.SUCCESS):
            self._excluded += 1
            return
        cohort = self._cohorts[bucket % COHORTS]
        self._requests += 1
        cohort[0] += 1
        if failed:
            cohort[1] += 1
            self._errors[outcome.value] = self._errors.get(outcome.value, 0) + 1
            return
        cohort[2] += round(latency_seconds * 1000)
        self._latency[bisect_left(EDGES_SECONDS, latency_seconds)] += 1
        if first_token_seconds is not None:
            self._first_token[bisect_left(EDGES_SECONDS, first_token_seconds)] += 1
        if finish_reason is not None:
            reason = _FINISH_REASONS.get(finish_reason, _OTHER_REASON)
            self._finish_reasons[reason] = self._finish_reasons.get(reason, 0) + 1
            cohort[3] += reason in CUT_SHORT
        if usage is not None:
            self._input_tokens.add(usage.input_tokens)
            self._output_tokens.add(usage.output_tokens)
            cohort[4] += usage.output_tokens
        if cost_usd_micros is not None:
            self._cost.add(cost_usd_micros)
            cohort[5] += cost_usd_micros

    def record_score(self, value: float) -> None:
        """Count a score that an application reports for a call of this arm, 0 to 1."""
        self._score.add(value)

    def export(self) -> ArmCounts:
        """Return the counts so far."""
        split, revision = self.rollout
        return ArmCounts(
            split=split,
            revision=revision,
            arm=self.arm,
            requests=self._requests,
            errors=dict(self._errors),
            excluded=self._excluded,
            cohorts={number: Cohort(*sums) for number, sums in enumerate(self._cohorts) if sums[0]},
            latency=_sparse(self._latency),
            first_token=_sparse(self._first_token),
            finish_reasons=dict(self._finish_reasons),
            input_tokens=self._input_tokens.export(),
            output_tokens=self._output_tokens.export(),
            cost_usd_micros=self._cost.export(),
            score=self._score.export(),
        )


def _sparse(buckets: list[int]) -> Histogram:
    return {index: count for index, count in enumerate(buckets) if count}
