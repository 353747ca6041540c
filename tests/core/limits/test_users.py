"""Limits of single users over several pods: who gets how much where, with a leader and without one."""

from __future__ import annotations

from typing import Any

import pytest

from sluice_core.api.base import KeySource
from sluice_core.api.quotaallocation import Budget, Mode, PerUser, UserClass
from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask, Refused, Wait
from sluice_core.limits.keys import Layer
from sluice_core.limits.user_leases import MAX_LISTED, UserLeases
from sluice_core.limits.users import MAX_REPORTED
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy

UPSTREAM = "team/openai"
NONE = Limits(requests_per_minute=0, tokens_per_minute=0, requests_per_day=0, concurrency=0)
PER_USER = PerUser(
    key=KeySource(header="x-user-id"),
    requests_per_minute=20,
    tokens_per_minute=4000,
    class_header="x-class",
    classes=(UserClass(value="paid", requests_per_minute=100),),
)


class World:
    """Some pods of one allocation and a leader, all on one clock."""

    def __init__(self, pods: int, per_user: PerUser = PER_USER, **allocation: Any) -> None:
        self.now = 1000.0
        chosen = AllocationPolicy(**({"name": "chat", "per_user": per_user, "pods": pods} | allocation))
        quota = QuotaPolicy(key="team/quota", upstream=UPSTREAM, allocations=(chosen,))
        self.policy = PodPolicy(
            namespace="team",
            revision="1",
            upstreams={UPSTREAM: UpstreamPolicy(key=UPSTREAM, base_url="http://x", limits=NONE)},
            quotas={UPSTREAM: (quota, chosen)},
        )
        self.leader = UserLeases(now=self.now, fresh=True)
        self.leader.configure([quota], self.now)
        self.pods = [self.start() for _ in range(pods)]
        self.sequence = 0

    def start(self) -> Admission:
        """A pod that has just begun."""
        admission = Admission()
        admission.configure(self.policy)
        return admission

    def round(self, seconds: float = 1.0) -> None:
        """Let every pod report and hear, then time pass."""
        self.sequence += 1
        for index, pod in enumerate(self.pods):
            answers = self.leader.exchange(f"pod-{index}", self.sequence, pod.user_reports(self.now), self.now)
            pod.apply_users(answers, sequence=self.sequence, sent_at=self.now, now=self.now)
        self.now += seconds

    def calls(self, pod: Admission, count: int, **ask: Any) -> int:
        """How many of so many calls of a user are admitted; the others are refused."""
        admitted = 0
        for _ in range(count):
            wanted = Ask(**({"user": "a"} | ask))
            if isinstance(pod.reserve(UPSTREAM, wanted, self.now), Admitted):
                admitted += 1
            else:
                pod.deny(UPSTREAM, wanted, self.now)
        return admitted


def test_a_user_of_one_pod_gets_all_of_its_limit_within_two_rounds() -> None:
    """The safe share at once, the whole limit after two rounds; another user is not touched by it."""
    world = World(4)
    world.round()
    first = world.calls(world.pods[0], 30)
    assert first == 5
    world.round()
    world.round()
    world.round(0.0)
    assert first + world.calls(world.pods[0], 30) == 20
    assert world.calls(world.pods[0], 30, user="b") == 5


def test_a_user_of_all_pods_gets_its_limit_once() -> None:
    """However its calls are spread, they are twenty in all, and each pod that wants some gets some."""
    world = World(4)
    admitted = [0] * 4
    for _ in range(20):
        for index, pod in enumerate(world.pods):
            admitted[index] += world.calls(pod, 2)
        world.round()
    assert sum(admitted) == 20
    assert min(admitted) >= 2


def test_a_lease_moves_to_the_pod_that_the_user_moves_to() -> None:
    """A minute after its last call in one pod, a user has nearly all of its limit in another."""
    world = World(4)
    for _ in range(3):
        world.calls(world.pods[0], 30)
        world.round()
    for _ in range(62):
        world.round()
    admitted = 0
    for _ in range(4):
        admitted += world.calls(world.pods[1], 30)
        world.round()
    assert admitted >= 18


def test_classes_keep_their_limits_over_pods() -> None:
    """The limit that is shared is that of the user's class."""
    world = World(4)
    admitted = 0
    for _ in range(5):
        admitted += sum(world.calls(pod, 60, user_class="paid") for pod in world.pods[:2])
        world.round()
    assert 90 <= admitted <= 100


@pytest.mark.parametrize("mode", list(Mode))
def test_large_calls_wait_for_a_lease(mode: Mode) -> None:
    """A call larger than the safe share goes once the other pods have given up theirs. In Shadow it goes at once."""
    world = World(4, mode=mode)
    world.round()
    refused = world.pods[0].reserve(UPSTREAM, Ask(user="a", tokens=3900), world.now)
    if mode is Mode.SHADOW:
        assert isinstance(refused, Admitted)
        assert refused.would_refuse is not None
        assert refused.would_refuse.layer is Layer.USER
        return
    assert isinstance(refused, Wait)
    world.pods[0].deny(UPSTREAM, Ask(user="a", tokens=3900), world.now)
    for _ in range(3):
        world.round()
    assert world.calls(world.pods[0], 1, tokens=3900) == 1
    assert [world.calls(pod, 1, tokens=200) for pod in world.pods[1:]] == [0, 0, 0]


def test_without_a_leader_each_pod_has_its_part() -> None:
    """The limit divided by the pods, and one call larger than that if there is nothing else of its user."""
    world = World(4)
    for pod in world.pods:
        pod.open_users(alone=True)
    assert [world.calls(pod, 30) for pod in world.pods] == [5] * 4
    assert world.calls(world.pods[0], 2, user="b", tokens=3900) == 1
    too_large = world.pods[0].reserve(UPSTREAM, Ask(user="c", tokens=5000), world.now)
    assert isinstance(too_large, Refused)
    again = world.pods[0].reserve(UPSTREAM, Ask(user="b", tokens=3900), world.now)
    assert isinstance(again, Wait)
    world.now = again.earliest
    assert world.calls(world.pods[0], 1, user="b", tokens=3900) == 1


def test_where_pods_outnumber_a_limit_each_may_make_one_call() -> None:
    """The bound is one call per pod then, and says so; a user is never shut out."""
    world = World(32)
    world.round()
    assert sum(world.calls(pod, 3) for pod in world.pods) == 32


def test_a_pod_that_begins_asks_before_it_lets_users_call() -> None:
    """Another may hold all of a limit; if nobody answers, it has its safe share."""
    world = World(2)
    for _ in range(3):
        world.calls(world.pods[0], 30)
        world.round()
    fresh = world.start()
    assert world.calls(fresh, 1) == 0
    fresh.open_users()
    assert world.calls(fresh, 1, tokens=3900) == 0
    assert world.calls(fresh, 30) == 10


def test_when_the_leader_is_gone_users_fall_back_to_the_safe_share() -> None:
    """In the pod that had the lease as soon as it has run out, elsewhere once the list has."""
    world = World(4)
    for _ in range(3):
        world.calls(world.pods[0], 30)
        world.round()
    world.now += 65.0
    assert world.calls(world.pods[0], 30) == 5
    assert world.calls(world.pods[1], 30) == 0
    world.now += 61.0
    assert [world.calls(pod, 30) for pod in world.pods] == [5] * 4


def test_what_is_said_and_remembered_of_users_is_bounded() -> None:
    """A report names the hundred that want most, the list has an end, and who finds no place has the safe share."""
    world = World(2)
    world.round()
    for number in range(2 * MAX_LISTED):
        world.calls(world.pods[0], 11 + number % 7, user=f"user-{number}")
    (report,) = world.pods[0].user_reports(world.now)
    assert len(report.demands) == MAX_REPORTED
    for _ in range(8):
        world.round()
        for number in range(2 * MAX_LISTED):
            world.calls(world.pods[0], 3, user=f"user-{number}")
    (answer,) = world.leader.exchange("pod-0", 99, world.pods[0].user_reports(world.now), world.now)
    assert len(answer.listed) == MAX_LISTED
    for _ in range(200):
        world.round()
    assert world.leader.exchange("pod-0", 999, world.pods[0].user_reports(world.now), world.now)[0].listed == ()


NOON = 1_800_014_400.0  # 2027-01-15 12:00 in UTC
MONEY = PerUser(key=KeySource(header="x-user-id"), daily_usd="2")


@pytest.mark.parametrize(("zone", "seconds"), [("UTC", 12 * 3600), ("Asia/Tokyo", 3 * 3600)])
def test_money_of_a_user_is_counted_by_calendar_days(zone: str, seconds: float) -> None:
    """It is back at midnight in the zone of the budget, and the refusal says so."""
    world = World(1, MONEY, budget=Budget(daily_usd="100", time_zone=zone))
    pod = world.pods[0]
    pod.begin_days(world.now, NOON)
    assert world.calls(pod, 3, usd_micros=1_000_000) == 2
    refused = pod.reserve(UPSTREAM, Ask(user="a", usd_micros=1), world.now)
    assert isinstance(refused, Wait)
    assert refused.earliest == pytest.approx(world.now + seconds)
    world.now = refused.earliest + 1.0
    pod.begin_days(world.now, NOON + seconds + 1.0)
    assert world.calls(pod, 3, usd_micros=1_000_000) == 2


def test_what_a_call_cost_replaces_what_was_reserved_for_it() -> None:
    """To the micro-dollar; and what becomes known after midnight counts for the new day."""
    world = World(1, MONEY)
    pod = world.pods[0]
    pod.begin_days(world.now, NOON)
    first, second = (pod.reserve(UPSTREAM, Ask(user="a", usd_micros=900_000), world.now) for _ in range(2))
    assert isinstance(first, Admitted)
    assert isinstance(second, Admitted)
    pod.settle(first.reservation, tokens=0, usd_micros=100_001, now=world.now)
    assert pod.user_reports(world.now)[0].spends[0].usd_micros == 1_000_001
    pod.begin_days(world.now, NOON + 86_400.0)
    pod.settle(second.reservation, tokens=0, usd_micros=900_300, now=world.now)
    assert pod.user_reports(world.now)[0].spends[0].usd_micros == 300
