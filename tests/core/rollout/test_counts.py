"""What a sidecar counts, and how the leader adds it up."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.records import Outcome
from sluice_core.rollout.counts import (
    CANDIDATE,
    COHORTS,
    EDGES_SECONDS,
    STABLE,
    ArmCounter,
    ArmCounts,
    Cohort,
    Moments,
)
from sluice_core.rollout.merge import MAX_ARMS, CountLedger
from sluice_core.usage import Usage


def counter(arm: str = STABLE, revision: str = "r-1") -> ArmCounter:
    return ArmCounter("team/chat", revision, arm)


def counted(n: int, arm: str = STABLE, **record: Any) -> ArmCounts:
    arm_counter = counter(arm)
    for number in range(n):
        arm_counter.record(**{"outcome": Outcome.SUCCESS, "latency_seconds": 0.4, "bucket": number} | record)
    return arm_counter.export()


@pytest.mark.parametrize(
    ("outcome", "requests", "errors", "excluded"),
    [
        (Outcome.SUCCESS, 1, 0, 0),
        (Outcome.PROVIDER_ERROR, 1, 1, 0),
        (Outcome.TIMEOUT, 1, 1, 0),
        (Outcome.CONNECTION_ERROR, 1, 1, 0),
        (Outcome.TRUNCATED, 1, 1, 0),
        (Outcome.THROTTLED, 1, 1, 0),
        (Outcome.EXHAUSTED, 1, 1, 0),
        (Outcome.CONFIG_ERROR, 1, 1, 0),
        (Outcome.CREDENTIAL_ERROR, 1, 1, 0),
        (Outcome.CLIENT_ERROR, 0, 0, 1),
        (Outcome.CLIENT_CLOSED, 0, 0, 1),
        (Outcome.REFUSED, 0, 0, 1),
    ],
)
def test_each_outcome_counts_where_it_belongs(outcome: Outcome, requests: int, errors: int, excluded: int) -> None:
    """An arm answers for its failures, not for its callers' or for Sluice's refusals."""
    counts = counted(1, outcome=outcome)

    assert (counts.requests, counts.error_count, counts.excluded) == (requests, errors, excluded)
    assert sum(counts.latency.values()) == (1 if outcome is Outcome.SUCCESS else 0)


def test_every_outcome_is_decided() -> None:
    """A new outcome has to be placed."""
    assert all(counted(1, outcome=outcome).requests + counted(1, outcome=outcome).excluded == 1 for outcome in Outcome)


def test_calls_outside_the_analysis_are_counted_apart() -> None:
    """Forced calls and calls without a key are told, and judged by nobody."""
    counts = counted(3, counted=False)

    assert (counts.requests, counts.excluded, counts.cohorts, counts.latency) == (0, 3, {}, {})


def test_figures_of_a_call() -> None:
    """Latencies fall into buckets, tokens and cost into moments, finish reasons into a bounded set."""
    arm_counter = counter()
    for reason in ("length", "max_output_tokens", "function_call", "who-knows", None):
        arm_counter.record(
            outcome=Outcome.SUCCESS,
            latency_seconds=200.0,
            first_token_seconds=0.05,
            usage=Usage(input_tokens=10, output_tokens=4),
            cost_usd_micros=30,
            finish_reason=reason,
            bucket=57,
        )
    arm_counter.record_score(0.5)
    counts = arm_counter.export()

    assert counts.latency == {len(EDGES_SECONDS): 5}
    assert counts.first_token == {0: 5}
    assert counts.finish_reasons == {"length": 2, "tool_calls": 1, "other": 1}
    assert counts.output_tokens == Moments(n=5, sum=20, sum_squares=80)
    assert counts.cost_usd_micros.mean == 30
    assert counts.score.n == 1
    assert counts.cohorts == {57 % COHORTS: Cohort(5, 0, 1_000_000, 2, 20, 150)}


def test_counts_survive_the_wire_and_leave_zeros_out() -> None:
    """What is decoded equals what was encoded; an idle arm takes few bytes."""
    counts = counted(200)

    assert msgspec.json.decode(msgspec.json.encode(counts), type=ArmCounts) == counts
    assert len(msgspec.json.encode(counter().export())) < 80


@given(st.integers(0, 40), st.integers(0, 40))
def test_what_is_new_and_what_was_known_make_the_whole(before: int, more: int) -> None:
    """since() and plus() undo each other."""
    known, whole = counted(before), counted(before + more)

    assert known.plus(whole.since(known)).requests == whole.requests
    assert known.plus(whole.since(known)).cohorts == whole.cohorts
    assert known.plus(whole.since(known)).latency == whole.latency
    assert known.since(whole).requests == 0


def test_two_arms_of_pods_add_up() -> None:
    """Pods come and go; each report counts what is new in it; a pod that is gone keeps its place in the sum."""
    ledger = CountLedger()
    ledger.report("a", [counted(10), counted(2, CANDIDATE)], first=True)
    ledger.report("b", [counted(5)], first=True)
    ledger.report("a", [counted(15), counted(3, CANDIDATE)], first=False)
    ledger.report("a", [counted(15), counted(3, CANDIDATE)], first=False)  # repeated
    ledger.forget("b")

    stable, candidate = ledger.arms("team/chat", "r-1")

    assert (stable.requests, candidate.requests) == (20, 3)
    assert ledger.instances() == {"a"}


def test_a_counter_that_was_set_back_counts_from_zero() -> None:
    """A total below the last one is all new."""
    ledger = CountLedger()
    ledger.report("a", [counted(10)], first=True)
    ledger.report("a", [counted(4)], first=False)

    assert ledger.arms("team/chat", "r-1")[0].requests == 14


def test_a_new_leader_counts_nothing_twice() -> None:
    """It adds to what status remembers; what a pod did before it is known, a pod that is new counts whole."""
    ledger = CountLedger()
    ledger.report("old", [counted(100)], first=False)
    ledger.report("old", [counted(130)], first=False)
    ledger.report("new", [counted(7)], first=True)

    first, again = (ledger.arms("team/chat", "r-1", known=[counted(90)])[0].requests for _ in range(2))

    assert first == again == 90 + 30 + 7


def test_past_revisions_take_no_memory() -> None:
    """Only the revisions that are kept stay."""
    ledger = CountLedger()
    ledger.report("a", [counted(10), counter(revision="r-0").export()], first=True)
    ledger.keep([("team/chat", "r-2")])

    assert ledger.arms("team/chat", "r-1")[0].requests == 0


def test_a_revision_that_comes_back_is_not_counted_twice() -> None:
    """A split that is out of force for a moment goes on from what its status remembers."""
    ledger = CountLedger()
    ledger.report("a", [counted(10)], first=True)
    remembered = ledger.arms("team/chat", "r-1")
    ledger.keep([])
    ledger.report("a", [counted(12)], first=False)

    assert ledger.arms("team/chat", "r-1", known=remembered)[0].requests == 12


def test_arms_that_are_no_longer_reported_are_forgotten() -> None:
    """The memory of one sidecar is bounded however many rollouts it has seen."""
    ledger = CountLedger()
    for number in range(2000):
        ledger.report("a", [counter(revision=f"r-{number}").export()], first=number == 0)

    assert max(len(known) for known in ledger._last.values()) <= MAX_ARMS


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans()), max_size=30))
def test_the_sum_is_the_work_done_whatever_is_lost_or_repeated(story: list[tuple[str, int, bool]]) -> None:
    """Reports may be lost or repeated: once each pod has reported, the sum is what was served."""
    ledger, pods = CountLedger(), {name: counter() for name in "abc"}
    served, heard = 0, dict.fromkeys("abc", False)
    for name, requests, arrives in [*story, *((name, 0, True) for name in "abc")]:
        for _ in range(requests):
            pods[name].record(outcome=Outcome.SUCCESS, latency_seconds=1.0)
        served += requests
        if arrives:
            ledger.report(name, [pods[name].export()], first=not heard[name])
            heard[name] = True

    assert ledger.arms("team/chat", "r-1")[0].requests == served
