"""Leases: who gets how much, and what the leader may rely on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.quotaallocation import Priority, StoreType
from sluice_core.api.upstream import Limits, ModelLimits
from sluice_core.limits.allocator import Allocator, Granted
from sluice_core.limits.keys import Dimension, LimitKey
from sluice_core.limits.safe import safe_limits, safe_model_limits, safe_part
from sluice_core.limits.shares import Share, draw_of, plan, water_level
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, StorePolicy, UpstreamPolicy
from sluice_core.sync import Demand

UP = "team/openai"
SHARES = {"chat": 60, "batch": 30, "tools": 10}


def key(allocation: str, dimension: Dimension = Dimension.TOKENS, model: str = "") -> str:
    """A limit's key."""
    return LimitKey(upstream=UP, allocation=allocation, dimension=dimension, model=model).text


def allocator(capacity: int, *, fresh: bool = True, shares: Mapping[str, int] = SHARES) -> Allocator:
    """A leader of one limit, tokens per minute."""
    leader = Allocator(now=0.0, fresh=fresh)
    configure(leader, capacity, 0.0, shares=shares)
    return leader


def configure(leader: Allocator, capacity: int, now: float, shares: Mapping[str, int] = SHARES) -> None:
    """Set the limit."""
    limits = Limits(tokens_per_minute=capacity, requests_per_minute=0, requests_per_day=0, concurrency=0)
    quota = QuotaPolicy(
        key="q",
        upstream=UP,
        allocations=tuple(AllocationPolicy(name=name, share_percent=share) for name, share in shares.items()),
    )
    leader.configure([(UpstreamPolicy(key=UP, base_url="http://x", limits=limits), quota)], now)


class Pods:
    """Pods that use what they get at once, as far as they want it, and report in turn."""

    def __init__(self, leader: Allocator, wants: Mapping[str, tuple[str, int]]) -> None:
        self.leader = leader
        self.wants = dict(wants)
        self.leases = dict.fromkeys(wants, 0)
        self._sequences = itertools.count()

    def round(self, now: float, used: Mapping[str, int] | None = None) -> dict[str, int]:
        """Let every pod report once; return the leases."""
        for name, (allocation, wanted) in self.wants.items():
            use = (used or {}).get(name, 0)
            demand = Demand(limit=key(allocation), held=max(use, self.leases[name]), used=use, wanted=max(wanted, use))
            (lease,) = self.leader.exchange(name, next(self._sequences), [demand], now)
            self.leases[name] = lease.amount
        return self.leases


@given(st.floats(0, 10_000), st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_the_water_level_is_max_min_fair(amount: float, demands: list[int]) -> None:
    """All is given out as long as anybody wants it, and whoever gets less than wanted gets as much as anybody."""
    level = water_level(amount, demands)
    given_out = sum(min(demand, level) for demand in demands)
    assert given_out == pytest.approx(min(amount, sum(demands)))


@given(
    st.integers(0, 100_000),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(st.integers(0, 20_000), max_size=8)),
    st.permutations([60, 30, 10]),
)
def test_a_plan_keeps_promises_and_wastes_nothing(
    capacity: int, demands: dict[str, list[int]], percents: list[int]
) -> None:
    """Nobody with demand gets less than its share, nothing is left while somebody wants it, all fits."""
    shares = [Share(name=name, percent=percent) for name, percent in zip("abc", percents, strict=True)]
    levels = plan(capacity, shares, demands)
    met = {name: sum(min(each, levels[name].level) for each in demands.get(name, ())) for name in "abc"}
    wanted = {name: sum(demands.get(name, ())) for name in "abc"}
    for share in shares:
        promised = capacity * share.percent // 100
        assert met[share.name] >= min(wanted[share.name], promised) - 1e-6
    assert sum(met.values()) == pytest.approx(min(capacity, sum(wanted.values())), abs=1e-3)
    targets = [levels[name].target(each, 0, 1.0) for name in "abc" for each in demands.get(name, ())]
    assert sum(targets) <= capacity + 1e-6


def test_idle_share_is_lent_by_priority() -> None:
    """What one allocation leaves idle goes to those who want it, more of it to the higher class."""
    shares = [
        Share(name="idle", percent=50),
        Share(name="live", percent=25, priority=Priority.REALTIME),
        Share(name="batch", percent=25, priority=Priority.BATCH),
    ]
    levels = plan(1000, shares, {"idle": [0], "live": [10_000], "batch": [10_000]})
    assert levels["live"].level == pytest.approx(250 + 400)
    assert levels["batch"].level == pytest.approx(250 + 100)


def test_a_flood_leaves_realtime_room_to_grow() -> None:
    """An eighth of its demand, as far as that was promised to it; what was not promised is lent as before."""
    shares = [
        Share(name="live", percent=70, priority=Priority.REALTIME),
        Share(name="batch", percent=30, priority=Priority.BATCH),
    ]
    levels = plan(1000, shares, {"live": [400, 200], "batch": [10_000]})
    assert sum(levels["live"].target(each, 0, 0.5) for each in (400, 200)) >= 674
    assert levels["batch"].level == pytest.approx(1000 - 600 - 75)
    full = plan(1000, shares, {"live": [690], "batch": [10_000]})
    assert full["batch"].level == pytest.approx(1000 - 700)


@given(
    st.integers(0, 100_000),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(st.integers(0, 20_000), max_size=8)),
    st.tuples(*(st.sampled_from(list(Priority)) for _ in range(3))),
)
def test_whatever_the_priorities_a_plan_fits(
    capacity: int, demands: dict[str, list[int]], priorities: tuple[Priority, ...]
) -> None:
    """Promises are kept, and all targets together are no more than there is."""
    shares = [
        Share(name=name, percent=percent, priority=priority)
        for name, percent, priority in zip("abc", (50, 30, 20), priorities, strict=True)
    ]
    levels = plan(capacity, shares, demands)
    for share in shares:
        wanted = demands.get(share.name, ())
        met = sum(min(each, levels[share.name].level) for each in wanted)
        assert met >= min(sum(wanted), capacity * share.percent // 100) - 1e-6
    targets = [levels[name].target(each, 0, 1.0) for name in "abc" for each in demands.get(name, ())]
    assert sum(targets) <= capacity + 1e-6


def test_a_level_too_low_to_be_of_use_goes_round() -> None:
    """With 3 requests a minute and ten pods some get one and the others none, and not always the same ones."""
    levels = plan(3, [Share(name="a", percent=100)], {"a": [5] * 10})
    got = {epoch: [levels["a"].target(5, 0, draw_of(f"pod-{pod}", epoch)) for pod in range(10)] for epoch in range(200)}
    assert all(set(each) <= {0, 1} for each in got.values())
    assert 2.5 < sum(map(sum, got.values())) / 200 < 3.5
    assert all(any(each[pod] for each in got.values()) for pod in range(10))


def test_a_call_larger_than_the_level_gets_a_whole_lease_in_turn() -> None:
    """Where every pod's part is smaller than its calls, some pods get enough for one call instead of all too little."""
    levels = plan(40_000, [Share(name="a", percent=100)], {"a": [10_000] * 50})
    targets = [levels["a"].target(10_000, 2_000, draw_of(f"pod-{pod}", 1)) for pod in range(50)]
    assert set(targets) == {0, 2_000}
    assert 20_000 <= sum(targets) <= 60_000


def test_demand_is_met_within_two_rounds_and_headroom_is_spread() -> None:
    """A single pod with demand gets nearly all; idle ones get a little, to begin with."""
    pods = Pods(allocator(100_000), {"hot": ("chat", 90_000), **{f"idle-{n}": ("batch", 0) for n in range(9)}})
    pods.round(0.0)
    assert pods.round(1.0)["hot"] >= 90_000
    leases = pods.round(2.0)
    assert leases["hot"] >= 90_000
    assert all(0 < leases[f"idle-{n}"] < 1_000 for n in range(9))
    assert sum(leases.values()) <= 100_000


def test_a_guaranteed_share_comes_back_as_lent_permits_leave_the_window() -> None:
    """Batch has borrowed everything; when chat wakes, batch gets no more, and chat gets what batch gives back."""
    leader = allocator(10_000)
    pods = Pods(leader, {"batch": ("batch", 20_000), "chat": ("chat", 0)})
    for now in range(3):
        pods.round(float(now))
    borrowed = pods.leases["batch"]
    assert borrowed >= 9_000
    pods.wants["chat"] = ("chat", 20_000)
    pods.round(5.0, used={"batch": borrowed})
    pods.round(6.0, used={"batch": borrowed})
    assert pods.leases["batch"] <= 4_000  # shrinks before anybody grows
    pods.round(10.0, used={"batch": borrowed})
    assert pods.leases["chat"] <= 1_000
    for now in (30.0, 50.0, 65.0):
        pods.round(now, used={"batch": borrowed if now < 65.0 else 3_000})
    assert pods.leases["chat"] >= 5_500


def test_a_lease_that_shrank_frees_nothing_until_the_pod_says_so() -> None:
    """The answer that takes capacity away may be lost; only the pod's next report proves that it holds less."""
    leader = allocator(1_000, shares={"a": 100})
    first = Demand(limit=key("a"), held=0, used=0, wanted=950)
    (lease,) = leader.exchange("one", 1, [first], 0.0)
    assert lease.amount >= 900
    shrunk = Demand(limit=key("a"), held=lease.amount, used=0, wanted=0)
    leader.exchange("one", 2, [shrunk], 5.0)
    other = Demand(limit=key("a"), held=0, used=0, wanted=900)
    (lease_of_two,) = leader.exchange("two", 1, [other], 6.0)
    assert lease_of_two.amount <= 1_000 - lease.amount
    leader.exchange("one", 3, [Demand(limit=key("a"), held=10, used=10, wanted=10)], 7.0)
    (lease_of_two,) = leader.exchange("two", 2, [other], 8.0)
    assert lease_of_two.amount >= 400


@pytest.mark.parametrize(("silence", "free"), [(30.0, False), (90.0, False), (95.0, True)])
def test_a_silent_pod_is_counted_for_a_lease_and_a_window(silence: float, free: bool) -> None:
    """What it held may be used until its lease ends and counts a window longer."""
    leader = allocator(1_000, shares={"a": 100})
    demand = Demand(limit=key("a"), held=0, used=0, wanted=950)
    leader.exchange("dead", 1, [demand], 0.0)
    (lease,) = leader.exchange("new", 1, [demand], silence)
    assert (lease.amount > 800) is free


def test_a_pod_that_is_gone_frees_slots_at_once_and_rates_after_a_window() -> None:
    """Connections end with the pod; what it used within the minute stays used."""
    leader = Allocator(now=0.0, fresh=True)
    limits = Limits(tokens_per_minute=1_000, requests_per_minute=0, requests_per_day=0, concurrency=100)
    quota = QuotaPolicy(key="q", upstream=UP, allocations=(AllocationPolicy(name="a", share_percent=100),))
    leader.configure([(UpstreamPolicy(key=UP, base_url="http://x", limits=limits), quota)], 0.0)
    demands = [
        Demand(limit=key("a"), held=0, used=0, wanted=950),
        Demand(limit=key("a", Dimension.CONCURRENCY), held=0, used=0, wanted=95),
    ]
    leader.exchange("old", 1, demands, 0.0)
    leader.gone("old", 1.0)
    tokens, slots = leader.exchange("new", 1, demands, 2.0)
    assert tokens.amount < 200
    assert slots.amount >= 90
    tokens, _ = leader.exchange("new", 2, demands, 70.0)
    assert tokens.amount >= 900


def test_a_new_leader_gives_out_only_what_it_was_told_of() -> None:
    """For a lease and a window it moves around what pods report; after that the whole limit is its own."""
    leader = allocator(1_000, fresh=False, shares={"a": 100})
    rich = Demand(limit=key("a"), held=300, used=100, wanted=100)
    poor = Demand(limit=key("a"), held=0, used=0, wanted=900)
    (lease,) = leader.exchange("poor", 1, [poor], 0.0)
    assert lease.amount == 0
    leader.exchange("rich", 1, [rich], 1.0)
    leader.exchange("rich", 2, [Demand(limit=key("a"), held=110, used=100, wanted=100)], 2.0)
    (lease,) = leader.exchange("poor", 2, [poor], 3.0)
    assert 100 <= lease.amount <= 200
    assert leader.learning(91.0)
    (lease,) = leader.exchange("poor", 3, [poor], 93.0)
    assert not leader.learning(93.0)
    assert lease.amount > 700


def test_what_is_declared_late_is_learnt_too() -> None:
    """A new leader may learn of an upstream after its start, and a limit may be dropped and declared again."""
    leader = allocator(1_000, fresh=False, shares={"a": 100})
    wanted = Demand(limit=key("a"), held=0, used=0, wanted=900)
    leader.configure([], 10.0)
    configure(leader, 1_000, 20.0, shares={"a": 100})
    assert leader.learning(20.0)
    (lease,) = leader.exchange("pod", 1, [wanted], 20.0)
    assert lease.amount == 0
    fresh = allocator(1_000, fresh=True, shares={"a": 100})
    (lease,) = fresh.exchange("pod", 1, [wanted], 0.0)
    assert lease.amount >= 900
    fresh.configure([], 500.0)
    configure(fresh, 1_000, 510.0, shares={"a": 100})
    (lease,) = fresh.exchange("other", 1, [wanted], 510.0)
    assert lease.amount == 0
    (lease,) = fresh.exchange("other", 2, [wanted], 600.0)
    assert lease.amount >= 900


def test_repeated_reports_get_the_same_answer_and_older_ones_none() -> None:
    """Messages may come twice and out of order."""
    leader = allocator(1_000)
    demand = Demand(limit=key("chat"), held=0, used=0, wanted=500)
    leases = leader.exchange("pod", 5, [demand], 0.0)
    assert leader.exchange("pod", 5, [demand], 1.0) == leases
    assert leader.exchange("pod", 4, [demand], 2.0) == ()


def test_a_limit_that_falls_takes_leases_back() -> None:
    """After the next reports nobody is leased more than the new limit allows."""
    pods = Pods(allocator(10_000), {"one": ("chat", 5_000), "two": ("batch", 5_000)})
    pods.round(0.0)
    pods.round(1.0)
    configure(pods.leader, 1_000, 2.0)
    for now in (3.0, 4.0, 5.0):
        pods.round(now)
    assert sum(pods.leases.values()) <= 1_000
    assert pods.leader.granted(UP, Dimension.TOKENS)["chat"] == Granted(
        granted=pods.leases["one"], used=0, wanted=5_000, pods=1
    )


def test_what_has_no_limit_is_leased_without_one_and_what_is_unknown_not_at_all() -> None:
    """A pod with an older policy may ask for a dimension whose limit is no more, or for a model that is not known."""
    leader = allocator(1_000)
    demands = [
        Demand(limit=key("chat", Dimension.CONCURRENCY), held=0, used=0, wanted=5),
        Demand(limit=key("chat", model="gpt-x"), held=0, used=0, wanted=5),
        Demand(limit="nonsense", held=0, used=0, wanted=5),
    ]
    (lease,) = leader.exchange("pod", 1, demands, 0.0)
    assert lease.limit == demands[0].limit
    assert lease.amount > 10**12


@given(st.integers(1, 10**9), st.integers(0, 100), st.integers(0, 3000))
def test_safe_shares_of_all_pods_fit_into_what_is_kept(capacity: int, share: int, pods: int) -> None:
    """The pods of an allocation together stay within their part of the five percent."""
    limits = Limits(tokens_per_minute=capacity, requests_per_minute=0, requests_per_day=None, concurrency=1)
    safe = safe_limits(limits, share, pods)
    assert (safe.tokens_per_minute or 0) * pods <= safe_part(capacity, share)
    assert (safe.requests_per_minute, safe.requests_per_day) == (0, 0)
    row = ModelLimits(model="m*", tokens_per_minute=capacity)
    assert safe_model_limits((row,), share, pods)[0].tokens_per_minute == safe.tokens_per_minute


def test_safe_shares_of_all_allocations_fit_into_five_percent() -> None:
    """Together they keep five percent of the limit back, and half a percent for those without a share."""
    kept = sum(safe_part(1_000_000, share) for share in SHARES.values())
    assert kept == 50_000
    assert safe_part(1_000_000, 0) == 5_000


def test_limits_that_another_store_leases_are_not_leased_here_and_learned_on_return() -> None:
    """What the other store gave out is unknown to the leader: it begins with what pods say that they hold."""
    limits = Limits(tokens_per_minute=1000, requests_per_minute=0, requests_per_day=0, concurrency=0)
    upstream = UpstreamPolicy(key=UP, base_url="http://x", limits=limits)
    allocations = (AllocationPolicy(name="chat", share_percent=100),)
    here = QuotaPolicy(key="q", upstream=UP, allocations=allocations)
    elsewhere = QuotaPolicy(key="q", upstream=UP, allocations=allocations, store=StorePolicy(type=StoreType.REDIS))
    leader = Allocator(now=0.0, fresh=True)
    leader.configure([(upstream, elsewhere)], 0.0)
    demand = Demand(limit=key("chat"), held=100, used=0, wanted=900)
    assert leader.exchange("pod", 1, [demand], 1.0) == ()
    leader.configure([(upstream, here)], 1000.0)
    (lease,) = leader.exchange("pod", 2, [demand], 1001.0)
    assert lease.amount == 100
    assert leader.learning(1001.0)
    (lease,) = leader.exchange("pod", 3, [demand], 1200.0)
    assert lease.amount >= 900


def test_a_limit_that_is_too_small_for_all_pods_is_one_pods() -> None:
    """In every epoch exactly one of them has the one permit that there is, and not always the same."""
    leader = allocator(1, shares={"chat": 100})
    having: list[set[str]] = []
    held = dict.fromkeys([f"pod-{number}" for number in range(5)], 0)
    for number in range(400):
        now = number * 5.0
        for pod in held:
            demand = Demand(limit=key("chat"), held=0, returned=held[pod], used=0, wanted=1, least=1)
            (lease,) = leader.exchange(pod, number, [demand], now)
            held[pod] = lease.amount
        having.append({pod for pod, amount in held.items() if amount})
    assert all(len(each) <= 1 for each in having)
    assert sum(len(each) for each in having) > 0.9 * len(having)
    assert len(set[str]().union(*having)) == len(held)
