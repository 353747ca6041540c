"""What reports change besides leases: pods that are gone, limits that are learned, conditions that are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from sluice_core.api.base import ConditionStatus, LabelSelector, ObjectMeta, UpstreamRef
from sluice_core.api.quotaallocation import (
    Allocation,
    Budget,
    Mode,
    OnExhausted,
    QuotaAllocation,
    QuotaAllocationSpec,
    StoreType,
)
from sluice_core.api.upstream import Limits, ModelLimits, Upstream, UpstreamSpec
from sluice_core.budget import Assessment
from sluice_core.compile import Compiled, ResourceId, compile_namespaces
from sluice_core.enforcement import Finding, enforced, spend_unusual, store_reachable, with_findings, within_budget
from sluice_core.fleet import Fleet
from sluice_core.limits.allocator import LEASE_SECONDS
from sluice_core.limits.keys import Dimension, LimitKey
from sluice_core.limits.learned import with_learned
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, StorePolicy, UpstreamPolicy
from sluice_core.sync import AllocationGauge, Demand, LimitObservation, PodRef, Spend, SyncRequest

UNIX = 1_780_000_000.0  # 2026-05-28, in UTC
QUOTA = "default/openai"
SLOTS = LimitKey(upstream=QUOTA, allocation="chat", dimension=Dimension.CONCURRENCY).text
TOKENS = LimitKey(upstream=QUOTA, allocation="chat", dimension=Dimension.TOKENS).text


def compiled(mode: Mode = Mode.ENFORCE, pods: tuple[dict[str, str], ...] = ({"app": "chat"},)) -> Compiled:
    limits = Limits(concurrency=10, tokens_per_minute=100_000)
    upstream = Upstream(metadata=ObjectMeta(name="openai"), spec=UpstreamSpec(limits=limits))
    chat = Allocation(
        name="chat",
        share_percent=100,
        workloads=LabelSelector(match_labels={"app": "chat"}),
        budget=Budget(daily_usd="10"),
    )
    spec = QuotaAllocationSpec(upstream_ref=UpstreamRef(name="openai"), mode=mode, allocations=(chat,))
    quota = QuotaAllocation(metadata=ObjectMeta(name="openai"), spec=spec)
    return compile_namespaces([upstream, quota], {"default": {}}, {"default": pods})


def a_fleet() -> Fleet:
    fleet = Fleet(now=0.0, fresh=True)
    fleet.adopt(compiled(), 0.0)
    return fleet


def pod(name: str) -> PodRef:
    return PodRef(namespace="default", name=name, uid=f"uid-{name}")


def report(fleet: Fleet, instance: str, now: float, sequence: int = 1, name: str = "", **fields: object) -> int:
    """Report for more slots than there are and return how many were leased."""
    demands = (Demand(limit=SLOTS, held=0, used=0, wanted=100),)
    fields = {"demands": demands, **fields}
    request = SyncRequest(pod=pod(name or instance), instance=instance, sequence=sequence, **fields)  # type: ignore[arg-type]
    return sum(lease.amount for lease in fleet.report(request, now, UNIX + now).leases)


def test_a_restarted_container_takes_over_what_its_pod_held() -> None:
    """The one before it has ended for certain, so its slots are free at once."""
    fleet = a_fleet()
    whole = report(fleet, "a", 0.0, name="chat-1")
    assert whole >= 9

    assert report(fleet, "other", 1.0, name="chat-2") == 0
    assert report(fleet, "b", 2.0, name="chat-1") == whole // 2  # the other one wants as much


def test_a_pod_that_was_deleted_gives_its_slots_back_once_its_lease_is_over() -> None:
    """One removed by force may still run: before its lease is over, and it silent, it is not believed to be gone."""
    fleet = a_fleet()
    whole = report(fleet, "a", 0.0)
    fleet.present([pod("a"), pod("b")], 1.0, UNIX)
    report(fleet, "b", 1.0)
    fleet.present([pod("b")], 2.0, UNIX)
    assert report(fleet, "b", 3.0, 2) < whole

    fleet.present([pod("b")], LEASE_SECONDS + 5.0, UNIX)
    assert report(fleet, "b", LEASE_SECONDS + 6.0, 3) == whole


def test_a_pod_that_was_never_seen_is_not_missed() -> None:
    """A watch that lags must not take from a new pod what it was just given."""
    fleet = a_fleet()
    whole = report(fleet, "a", 0.0)
    for now in (1.0, LEASE_SECONDS + 5.0):
        fleet.present([], now, UNIX)
    assert report(fleet, "b", LEASE_SECONDS + 6.0) < whole


def an_upstream(**limits: int) -> UpstreamPolicy:
    rows = (ModelLimits(model="gpt-4.1*", tokens_per_minute=50_000),)
    return UpstreamPolicy(key=QUOTA, base_url="http://x", limits=Limits(**limits), model_limits=rows)


@pytest.mark.parametrize(
    ("learned", "whole", "row"),
    [
        ({}, 100_000, 50_000),
        ({("o3", "tokens"): 30_000}, 30_000, 50_000),
        ({("o3", "tokens"): 30_000, ("o4", "tokens"): 80_000}, 80_000, 50_000),  # the whole holds the larger one
        ({("o3", "tokens"): 300_000}, 100_000, 50_000),  # never raised
        ({("o3", "project-tokens"): 20_000, ("o3", "tokens"): 70_000}, 20_000, 50_000),
        ({("gpt-4.1-mini", "tokens"): 40_000}, 100_000, 40_000),
        ({("gpt-4.1-mini", "tokens"): 40_000, ("gpt-4.1", "tokens"): 45_000}, 100_000, 45_000),
        ({("o3", "requests"): 5}, 100_000, 50_000),  # nobody declared a limit of requests
    ],
)
def test_limits_are_lowered_to_what_the_account_allows(
    learned: Mapping[tuple[str, str], int], whole: int, row: int
) -> None:
    """Each declared limit by the largest report of the models that it covers."""
    policy = with_learned(an_upstream(tokens_per_minute=100_000, requests_per_minute=0), learned)

    assert policy.limits.tokens_per_minute == whole
    assert policy.model_limits[0].tokens_per_minute == row
    assert policy.limits.requests_per_minute == 0


def test_a_learned_limit_shrinks_what_is_leased_and_shows() -> None:
    """From the next round on, and until nobody has heard of it for an hour."""
    fleet, policy = a_fleet(), compiled()
    fleet.adopt(policy, 0.0)
    said = LimitObservation(upstream=QUOTA, model="gpt-4.1", dimension="tokens", limit=1000, remaining=1000)
    demands = (Demand(limit=TOKENS, held=0, used=0, wanted=50_000),)
    assert report(fleet, "a", 1.0, demands=demands, observations=(said,)) >= 50_000

    fleet.adopt(policy, 2.0)
    limits = fleet.effective_limits(QUOTA)
    assert limits is not None
    assert limits.tokens_per_minute == 1000
    assert 900 <= report(fleet, "a", 3.0, 2, demands=demands) <= 1000

    fleet.adopt(policy, 3700.0)
    assert report(fleet, "a", 3701.0, 3, demands=demands) >= 50_000
    assert fleet.effective_limits("default/none") is None


def a_quota(*modes: Mode) -> QuotaPolicy:
    allocations = tuple(
        AllocationPolicy(name=f"a{index}", mode=mode, budget=Budget(daily_usd="1")) for index, mode in enumerate(modes)
    )
    return QuotaPolicy(key=QUOTA, upstream=QUOTA, allocations=(*allocations, AllocationPolicy(name="unallocated")))


UNPRICED = AllocationGauge(quota=QUOTA, allocation="a0", unpriced=3, unpriced_model="llama")


@pytest.mark.parametrize(
    ("quota", "gauges", "reason", "said"),
    [
        (None, {}, "NotInForce", "Ready"),
        (a_quota(Mode.ENFORCE), {}, "Enforced", "refused"),
        (a_quota(Mode.SHADOW), {}, "Shadow", "all allocations"),
        (a_quota(Mode.ENFORCE, Mode.SHADOW), {}, "Shadow", "a1 only"),
        (a_quota(Mode.ENFORCE), {"a0": [UNPRICED]}, "ModelUnknown", "llama"),
    ],
)
def test_whether_a_quota_is_enforced_is_told(
    quota: QuotaPolicy | None, gauges: dict[str, list[AllocationGauge]], reason: str, said: str
) -> None:
    """With the reason in one word and in a sentence that names names."""
    found = enforced(quota, (), gauges)

    assert (found.reason, found.status is ConditionStatus.TRUE) == (reason, reason == "Enforced")
    assert said in found.message


FAILING = AllocationGauge(quota=QUOTA, allocation="a0", store_error="the store refuses the call")
LEARNING = AllocationGauge(quota=QUOTA, allocation="a1", store_learning=True)
WELL = AllocationGauge(quota=QUOTA, allocation="a0")


@pytest.mark.parametrize(
    ("store", "gauges", "reason", "holds"),
    [
        (StoreType.LEASES, [FAILING], "NotUsed", False),
        (StoreType.REDIS, [], None, None),
        (StoreType.REDIS, [WELL], "Answers", True),
        (StoreType.REDIS, [WELL, LEARNING], "Learning", True),
        (StoreType.REDIS, [WELL, FAILING, LEARNING, FAILING], "StoreFailing", False),
    ],
)
def test_what_is_wrong_with_a_store_is_told(
    store: StoreType, gauges: list[AllocationGauge], reason: str | None, holds: bool | None
) -> None:
    """By any pod that cannot use it, in the words of the pod, each once."""
    quota = msgspec.structs.replace(a_quota(Mode.ENFORCE), store=StorePolicy(type=store))
    found = store_reachable(quota, {"a0": gauges})
    if found is None:
        assert reason is None
        return
    assert (found.reason, found.status is ConditionStatus.TRUE) == (reason, holds)
    assert found.message.count("the store refuses the call") == (reason == "StoreFailing")


def test_a_condition_goes_with_what_it_is_about() -> None:
    """A quota that has no store any more keeps no condition of it; as long as nobody reports it stays as it is."""
    redis = msgspec.structs.replace(a_quota(Mode.ENFORCE), store=StorePolicy(type=StoreType.REDIS))
    enforcing, reachable = enforced(redis, (), {}), store_reachable(redis, {"a0": [WELL]})
    assert reachable is not None
    at: Any = {"now_unix": UNIX, "observed_generation": 1}
    before = with_findings((), [enforcing, reachable], **at)
    assert {each.type for each in before} == {"Enforced", "StoreReachable"}
    assert with_findings(before, [enforcing], **at) == before
    not_used = store_reachable(a_quota(Mode.ENFORCE), {})
    assert not_used is not None
    assert {each.type for each in with_findings(before, [enforcing, not_used], **at)} == {"Enforced"}


def test_a_quota_that_selects_nobody_enforces_nothing() -> None:
    """The compiler has noticed; the condition says so."""
    policy = compiled(pods=({"app": "other"},))
    fleet = Fleet(now=0.0, fresh=True)
    fleet.adopt(policy, 0.0)
    problems = policy.problems[ResourceId("QuotaAllocation", QUOTA)]

    found = {each.type: each for each in fleet.quota_findings(QUOTA, problems, 1.0, UNIX)}

    assert found["Enforced"].reason == "NobodySelected"


def standing(exhausted: float | None = None, runs_out: float | None = None) -> dict[str, Assessment]:
    each = Assessment(
        spent_today_usd_micros=1,
        spent_month_usd_micros=1,
        resets_at=UNIX,
        runs_out_at=runs_out,
        exhausted_until=exhausted,
    )
    return {QUOTA: each}


def test_how_the_money_stands_is_told_without_figures_that_move() -> None:
    """A message that changed with every call would have the status written with every round."""

    def reason(finding: Finding | None) -> str | None:
        return finding.reason if finding is not None else None

    assert within_budget({}) is spend_unusual({}, ()) is None
    assert reason(within_budget(standing())) == "MoneyLeft"
    assert reason(within_budget(standing(runs_out=UNIX))) == "RunsOutEarly"
    assert reason(within_budget(standing(exhausted=UNIX, runs_out=UNIX))) == "BudgetExhausted"
    degrades = within_budget(standing(exhausted=UNIX), {QUOTA: Budget(on_exhausted=OnExhausted.DEGRADE)})
    assert degrades is not None
    assert degrades.message == f"spent until the window ends: {QUOTA} (onExhausted: Degrade)"
    assert within_budget(standing(exhausted=UNIX)) == within_budget(standing(exhausted=UNIX + 1.0))
    assert reason(spend_unusual(standing(), ())) == "Usual"
    unusual = spend_unusual(standing(), {QUOTA})
    assert reason(unusual) == "AboveBaseline"


def test_the_status_says_what_is_spent_and_when_it_starts_anew() -> None:
    """Exact figures for each allocation, one line for the whole."""
    fleet = a_fleet()
    day = "2026-05-28"
    report(fleet, "a", 0.0, spends=(Spend(budget=f"{QUOTA}/chat", window=day, usd_micros=6_000_001),))
    answer = fleet.report(SyncRequest(pod=pod("b"), instance="b", sequence=1), 0.0, UNIX)
    status = fleet.quota_status(QUOTA, 0.0, UNIX)

    assert answer.exhausted == ()
    assert status is not None
    assert status.spent == "6.00/10.00 today"
    chat = status.allocations[0]
    assert (chat.spent_today_usd, chat.spent_month_usd) == ("6.000001", "6.000001")
    assert status.resets_at == chat.resets_at == "2026-05-29T00:00:00Z"
    assert chat.runs_out_at.startswith(day)
