"""What is tried after a failure, and what never is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.upstream import Retry as RetryPolicy
from sluice_core.classify import Failure, Scope
from sluice_core.records import Outcome
from sluice_core.retry import (
    FLOOR_RETRIES,
    WISHES,
    Fallback,
    GiveUp,
    NextFallback,
    Retry,
    RetryBudget,
    RotateKey,
    ShrinkAndRetry,
    Situation,
    Step,
    client_retry,
    deadline_seconds,
    delay_seconds,
    next_step,
)

POLICY = RetryPolicy(attempts=3, base_delay_milliseconds=500, max_delay_seconds=30, budget_percent=20)
UPSTREAM, STATIC = NextFallback.UPSTREAM, NextFallback.STATIC


def step(outcome: Outcome, failure: dict[str, Any] | None = None, **situation: Any) -> Step:
    fields = {"attempt": 1, "elapsed_seconds": 0.0, "deadline_seconds": 600.0, **situation}
    what = Failure(outcome=outcome, **(failure or {}))
    return next_step(what, Situation(**fields), POLICY, RetryBudget(20), 0.5, 0.0)


@pytest.mark.parametrize(
    ("outcome", "failure", "situation", "expected"),
    [
        (Outcome.PROVIDER_ERROR, {}, {}, Retry(delay_seconds=0.5)),
        (Outcome.PROVIDER_ERROR, {}, {"attempt": 2}, Retry(delay_seconds=1.0)),
        (Outcome.PROVIDER_ERROR, {}, {"attempt": 3}, GiveUp(reason="attempts")),
        (Outcome.PROVIDER_ERROR, {}, {"attempt": 3, "next_fallback": UPSTREAM}, GiveUp(reason="attempts")),
        (Outcome.PROVIDER_ERROR, {}, {"attempt": 3, "next_fallback": STATIC}, Fallback()),
        (Outcome.PROVIDER_ERROR, {}, {"attempt": 1, "next_fallback": UPSTREAM}, Retry(delay_seconds=0.5)),
        (Outcome.PROVIDER_ERROR, {}, {"attempt": 2, "next_fallback": UPSTREAM}, Fallback()),
        (Outcome.PROVIDER_ERROR, {"should_retry": False}, {}, GiveUp(reason="no_fallback")),
        (Outcome.PROVIDER_ERROR, {}, {"content_seen": True, "next_fallback": STATIC}, GiveUp(reason="content_sent")),
        (Outcome.TIMEOUT, {}, {"elapsed_seconds": 600.0}, GiveUp(reason="deadline")),
        (Outcome.TIMEOUT, {}, {"elapsed_seconds": 599.8}, GiveUp(reason="deadline")),
        (Outcome.CONNECTION_ERROR, {}, {}, Retry(delay_seconds=0.5)),
        (Outcome.TRUNCATED, {}, {}, Retry(delay_seconds=0.5)),
        (Outcome.THROTTLED, {"retry_after_seconds": 7.0}, {}, Retry(delay_seconds=7.025)),
        (Outcome.THROTTLED, {"retry_after_seconds": 30.0}, {}, Retry(delay_seconds=30.0)),
        (Outcome.THROTTLED, {"retry_after_seconds": 30.1}, {}, GiveUp(reason="retry_after")),
        (Outcome.THROTTLED, {"retry_after_seconds": 45.0}, {"next_fallback": UPSTREAM}, Fallback()),
        (Outcome.THROTTLED, {"retry_after_seconds": 9.0}, {"deadline_seconds": 8.0}, GiveUp(reason="deadline")),
        (Outcome.EXHAUSTED, {"scope": Scope.PROJECT}, {"keys_left": 1}, RotateKey()),
        (Outcome.EXHAUSTED, {"scope": Scope.ACCOUNT}, {"keys_left": 1}, GiveUp(reason="no_fallback")),
        (Outcome.EXHAUSTED, {"scope": Scope.ACCOUNT}, {"next_fallback": UPSTREAM}, Fallback()),
        (Outcome.CREDENTIAL_ERROR, {"scope": Scope.KEY}, {"keys_left": 1}, RotateKey()),
        (Outcome.CREDENTIAL_ERROR, {"scope": Scope.KEY}, {}, GiveUp(reason="no_fallback")),
        (Outcome.CONFIG_ERROR, {"code": "model_not_found"}, {"next_fallback": UPSTREAM}, Fallback()),
        (Outcome.CONFIG_ERROR, {"code": "context_length_exceeded"}, {"can_shrink": True}, ShrinkAndRetry()),
        (Outcome.CONFIG_ERROR, {"code": "context_length_exceeded"}, {"next_fallback": UPSTREAM}, Fallback()),
        (Outcome.CONFIG_ERROR, {"code": "context_length_exceeded"}, {}, GiveUp(reason="no_fallback")),
        (Outcome.CLIENT_ERROR, {}, {"next_fallback": STATIC, "keys_left": 1}, GiveUp(reason="not_retriable")),
        (Outcome.CLIENT_CLOSED, {}, {"next_fallback": STATIC}, GiveUp(reason="not_retriable")),
        (Outcome.REFUSED, {}, {"next_fallback": STATIC}, GiveUp(reason="not_retriable")),
    ],
)
def test_the_next_step(outcome: Outcome, failure: dict[str, Any], situation: dict[str, Any], expected: Step) -> None:
    """Billing and credentials are never retried with the same key, content is never regenerated (P15, P16)."""
    assert step(outcome, failure, **situation) == expected


def test_every_outcome_has_a_next_step() -> None:
    """A new outcome needs a decision."""
    assert set(WISHES) == set(Outcome)


@given(st.sampled_from(list(Outcome)), st.floats(0, 1, exclude_max=True), st.floats(0, 60), st.booleans())
def test_a_call_ends_after_its_attempts(outcome: Outcome, draw: float, asked: float, has_fallback: bool) -> None:
    """Whatever fails, attempts never exceed the policy's, and the waits fit into the deadline."""
    budget, attempt, elapsed = RetryBudget(100), 1, 0.0
    for _ in range(200):
        budget.count_call(0.0)
    failure = Failure(outcome=outcome, scope=Scope.KEY, retry_after_seconds=asked)
    while True:
        situation = Situation(
            attempt=attempt,
            elapsed_seconds=elapsed,
            deadline_seconds=90.0,
            keys_left=9,
            next_fallback=UPSTREAM if has_fallback else NextFallback.NONE,
        )
        match next_step(failure, situation, POLICY, budget, draw, 0.0):
            case Retry(delay_seconds=delay):
                assert asked <= delay <= POLICY.max_delay_seconds
                elapsed += delay
            case GiveUp():
                break
            case _:
                pass
        attempt += 1
    assert attempt <= POLICY.attempts
    assert elapsed < 90.0


@given(st.integers(1, 10), st.floats(0, 1, exclude_max=True))
def test_delays_double_are_spread_and_capped(attempt: int, draw: float) -> None:
    """Without a `Retry-After` the delay lies within half and one and a half of its mean, up to the cap."""
    delay = delay_seconds(Failure(outcome=Outcome.TIMEOUT), attempt, POLICY, draw)
    mean = min(30.0, 0.5 * 2 ** (attempt - 1))
    assert delay is not None
    assert mean * 0.5 <= delay <= min(30.0, mean * 1.5)


@given(st.integers(0, 100), st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=300))
def test_retries_never_exceed_their_share(percent: int, events: list[tuple[bool, float]]) -> None:
    """Within any window, retries stay within the share of calls, or the small floor of a quiet pod (P15)."""
    budget, now = RetryBudget(percent, window_seconds=100.0), 0.0
    calls, retries = [], []
    for is_call, passed in events:
        now += passed
        if is_call:
            budget.count_call(now)
            calls.append(now)
        elif budget.take(now):
            retries.append(now)
            recent = sum(1 for each in retries if each > now - 90.0)
            live = sum(1 for each in calls if each > now - 100.0)
            assert recent <= max(FLOOR_RETRIES, live * percent / 100)
    assert percent > 0 or not retries


def test_a_quiet_pod_may_retry() -> None:
    """The first call of all may be tried again, and after an outage the budget comes back."""
    budget = RetryBudget(20, window_seconds=100.0)
    budget.count_call(0.0)
    assert [budget.take(0.0) for _ in range(5)] == [True] * FLOOR_RETRIES + [False] * (5 - FLOOR_RETRIES)
    assert budget.take(101.0)


def test_a_busy_pod_retries_exactly_its_share() -> None:
    """Of a hundred calls, twenty may be tried again."""
    budget = RetryBudget(20)
    for _ in range(100):
        budget.count_call(0.0)
    assert sum(budget.take(0.0) for _ in range(100)) == 20


def test_an_empty_retry_budget_falls_back_or_gives_up() -> None:
    """Without budget there is no retry; another upstream is no burden to this one."""
    budget = RetryBudget(0)
    failure, situation = Failure(outcome=Outcome.TIMEOUT), {"attempt": 1, "elapsed_seconds": 0.0}
    alone = Situation(**situation, deadline_seconds=60.0)
    assert next_step(failure, alone, POLICY, budget, 0.5, 0.0) == GiveUp(reason="retry_budget")
    backed = Situation(**situation, deadline_seconds=60.0, next_fallback=UPSTREAM)
    assert next_step(failure, backed, POLICY, budget, 0.5, 0.0) == Fallback()


@pytest.mark.parametrize(
    ("header", "deadline"), [("30", 30.0), ("30.5", 30.5), ("900", 600.0), ("0", 600.0), ("x", 600.0), ("nan", 600.0)]
)
def test_the_clients_own_time_out_bounds_the_call(header: str, deadline: float) -> None:
    """Nobody reads an answer that comes after the SDK has given up."""
    assert deadline_seconds(600.0, {"x-stainless-read-timeout": header}) == deadline
    assert deadline_seconds(600.0, {}) == 600.0


@pytest.mark.parametrize(("header", "count"), [("2", 2), ("0", 0), ("-1", 0), ("x", 0), ("9" * 30, 0), ("²", 0)])
def test_the_clients_own_retries_are_counted(header: str, count: int) -> None:
    """The SDKs number their retries; nonsense counts as none."""
    assert client_retry({"x-stainless-retry-count": header}) == count
