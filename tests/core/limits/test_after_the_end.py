"""What a pod leaves that ended without a word: counted for no less than it used, and free as soon as that is over."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.allocator import Allocator
from sluice_core.limits.decisions import Admitted, Ask, Reservation
from sluice_core.limits.keys import Dimension
from sluice_core.limits.window import SlidingWindow
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy
from sluice_core.sync import Demand, Heard, Lease

UPSTREAM = "team/openai"
CAPACITY = 10_000
GRANTABLE = 9_500  # the rest is kept for pods that nobody has heard of
TOKENS = 100
WINDOW_SECONDS = 60.0


class Pod:
    """A sidecar that may answer late, with all its calls."""

    def __init__(self, name: str, policy: PodPolicy) -> None:
        self.name = name
        self.admission = Admission()
        self.admission.configure(policy)
        self.sequence = 0
        self.answer: tuple[str, float, float] | None = None
        self.open: list[tuple[list[float], Reservation]] = []
        self.alive = True


class Fleet:
    """Two pods of one allocation, their leader, a slow network, and all that was admitted."""

    def __init__(self) -> None:
        limits = Limits(tokens_per_minute=CAPACITY, requests_per_minute=0, requests_per_day=0, concurrency=0)
        allocation = AllocationPolicy(name="chat", share_percent=100)
        upstream = UpstreamPolicy(key=UPSTREAM, base_url="http://x", limits=limits)
        quota = QuotaPolicy(key="team/quota", upstream=UPSTREAM, allocations=(allocation,))
        policy = PodPolicy(
            namespace="team", revision="1", upstreams={UPSTREAM: upstream}, quotas={UPSTREAM: (quota, allocation)}
        )
        self.now = 0.0
        self.leader = Allocator(now=0.0, fresh=True)
        self.leader.configure([(upstream, quota)], 0.0)
        self.mortal, self.eager = Pod("mortal", policy), Pod("eager", policy)
        self.admitted: list[list[float]] = []
        self.messages: list[tuple[float, int, Callable[[], None]]] = []
        self.sent = 0

    def call(self, pod: Pod, calls: int) -> None:
        """Let a pod make calls, which stay open."""
        for number in range(calls):
            answer = pod.admission.reserve(UPSTREAM, Ask(tokens=TOKENS), self.now)
            if not isinstance(answer, Admitted):
                for _ in range(calls - number):
                    pod.admission.deny(UPSTREAM, Ask(tokens=TOKENS), self.now)
                return
            entry = [self.now, float(TOKENS)]
            self.admitted.append(entry)
            pod.open.append((entry, answer.reservation))

    def end(self, pod: Pod, calls: int, tokens: int = TOKENS) -> None:
        """Let the oldest calls of a pod end, which have used so much."""
        for entry, reservation in pod.open[:calls]:
            pod.admission.settle(reservation, tokens=tokens, usd_micros=None, now=self.now)
            entry[1] = min(entry[1], tokens)
        del pod.open[:calls]

    def report(self, pod: Pod, up_seconds: float = 0.0, down_seconds: float = 0.0) -> None:
        """Let a pod report; the report and the answer each take a while."""
        pod.sequence += 1
        sequence, sent_at, demands = pod.sequence, self.now, pod.admission.demands(self.now)
        heard = None
        if pod.answer is not None:
            heard = Heard(leader=pod.answer[0], answered_at=pod.answer[1], seconds_ago=self.now - pod.answer[2])
        self._after(up_seconds, lambda: self._arrive(pod, sequence, sent_at, demands, heard, down_seconds))

    def _arrive(
        self, pod: Pod, sequence: int, sent_at: float, demands: Iterable[Demand], heard: Heard | None, seconds: float
    ) -> None:
        leases, at = self.leader.exchange(pod.name, sequence, tuple(demands), self.now, heard), self.now
        self._after(seconds, lambda: self._hear(pod, sequence, sent_at, leases, at))

    def _hear(self, pod: Pod, sequence: int, sent_at: float, leases: tuple[Lease, ...], answered_at: float) -> None:
        pod.answer = (self.leader.name, answered_at, self.now)
        if sequence == pod.sequence:
            pod.admission.apply_leases(leases, sent_at=sent_at)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self.sent += 1
        heapq.heappush(self.messages, (self.now + seconds, self.sent, action))
        self._deliver()

    def _deliver(self) -> None:
        while self.messages and self.messages[0][0] <= self.now:
            heapq.heappop(self.messages)[2]()

    def pass_time(self, seconds: float) -> None:
        """Let time pass; whatever is free the eager one takes."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0, *(at for at, _, _ in self.messages[:1]))
            self._deliver()
            self.report(self.eager)
            self.call(self.eager, 30)
            self.admitted = [entry for entry in self.admitted if entry[0] > self.now - WINDOW_SECONDS]
            assert self.use() <= GRANTABLE

    def use(self) -> float:
        """Return what all used within the window."""
        return sum(tokens for _, tokens in self.admitted)

    def lease(self, pod: Pod) -> int:
        """Return what a pod holds."""
        return next(each.held for each in pod.admission.limits(self.now))


def one_that_called_evenly(*, ended: bool = True) -> Fleet:
    """A pod that called evenly for 40 seconds and reported every second, and an eager one that took the rest."""
    fleet = Fleet()
    for second in range(40):
        fleet.call(fleet.mortal, 2)
        if ended:
            fleet.end(fleet.mortal, 99)
        fleet.report(fleet.mortal)
        fleet.pass_time(1.0 if second else 0.1)
    return fleet


actions = st.sampled_from(["call", "call", "end", "refund", "report", "report"])
delays = st.sampled_from([0.0, 0.0, 0.4, 6.0, 25.0])
steps = st.tuples(st.sampled_from([0.0, 0.3, 1.0, 4.0, 9.0]), actions, st.integers(1, 60), delays, delays)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=8, max_size=40), st.booleans())
def test_whoever_takes_what_a_killed_pod_leaves_stays_within_the_limit(
    life: list[tuple[float, str, int, float, float]], seen: bool
) -> None:
    """Whatever it did, whatever was refunded, however late its reports were: at no moment more than the limit."""
    fleet = Fleet()
    fleet.report(fleet.mortal)
    fleet.call(fleet.mortal, 60)
    fleet.report(fleet.mortal)
    for pause, action, number, up_seconds, down_seconds in life:
        match action:
            case "call":
                fleet.call(fleet.mortal, number)
            case "end":
                fleet.end(fleet.mortal, number)
            case "refund":
                fleet.end(fleet.mortal, number, tokens=0)
            case _:
                fleet.report(fleet.mortal, up_seconds, down_seconds)
        fleet.pass_time(pause)
    if seen:
        fleet.leader.gone("mortal", fleet.now)
    fleet.pass_time(25.0 + 95.0)  # the last report may be under way for so long
    assert fleet.lease(fleet.eager) == GRANTABLE


def test_what_a_killed_pod_used_comes_back_as_it_leaves_the_window() -> None:
    """Of a pod that is seen gone, what it had used for certain is not held until all of it is over."""
    fleet = one_that_called_evenly()
    killed_at, held = fleet.now, fleet.lease(fleet.mortal)
    fleet.leader.gone("mortal", killed_at)
    left = {}
    for second in (10, 30, 45, 63):
        fleet.pass_time(killed_at + second - fleet.now)
        left[second] = GRANTABLE - fleet.lease(fleet.eager)
    assert left[10] >= held - 500
    assert left[30] <= held - 500
    assert left[45] <= held // 2
    assert left[63] == 0


@pytest.mark.parametrize("late", [False, True], ids=["open calls", "an old report"])
def test_what_may_have_been_given_back_is_held_to_the_end(late: bool) -> None:
    """What was reserved may have been refunded, and what is told late may be over: it may have been used again."""
    fleet = one_that_called_evenly(ended=late)
    if late:
        fleet.report(fleet.mortal, 50.0)
        fleet.pass_time(51.0)
    fleet.leader.gone("mortal", fleet.now)
    held = fleet.leader.exposures(UPSTREAM, Dimension.TOKENS)["mortal"]
    fleet.pass_time(55.0)
    assert held > 1_500
    assert GRANTABLE - fleet.lease(fleet.eager) == held


USED_AGAIN = {
    "refunded and used again": [(20.0, "report", 0.0), (20.1, "refund", 0.0), (20.2, "call", 0.0), (21.0, "gone", 0.0)],
    "left the window while the report was under way": [
        (47.5, "report", 14.5),
        (60.5, "call", 0.0),
        (62.5, "gone", 0.0),
    ],
    "left the window between the last report and the end": [
        (58.0, "report", 0.0),
        (61.0, "call", 0.0),
        (62.0, "gone", 0.0),
    ],
}


@pytest.mark.parametrize("case", USED_AGAIN)
def test_what_was_used_again_is_counted(case: str) -> None:
    """What a report told as used may not be the same any more when the pod ends: the eager one does not get it."""
    fleet = Fleet()
    fleet.report(fleet.mortal)
    fleet.call(fleet.mortal, 47)
    if case.startswith("left"):
        fleet.end(fleet.mortal, 47)
    last_report = max(at for at, action, _ in USED_AGAIN[case] if action == "report")
    for at, action, delay in USED_AGAIN[case]:
        while fleet.now + 2.0 < min(at, last_report):
            fleet.pass_time(2.0)
            fleet.report(fleet.mortal)
        fleet.pass_time(at - fleet.now)
        match action:
            case "report":
                fleet.report(fleet.mortal, delay)
            case "refund":
                fleet.end(fleet.mortal, 47, tokens=0)
            case "call":
                before = fleet.use()
                fleet.call(fleet.mortal, 47)
                assert fleet.use() >= before + 4_000
            case "gone":
                fleet.leader.gone("mortal", fleet.now)
    fleet.pass_time(100.0)


times = st.lists(st.tuples(st.floats(0.0, 4.0), st.integers(0, 50)), max_size=40)


@given(times, st.sampled_from([1, 2, 4, 12, 16]))
def test_certain_foretells_what_is_left(taken: list[tuple[float, int]], parts: int) -> None:
    """After each part of the window exactly as much is left as was said, if nothing is uncertain."""
    window, now = SlidingWindow(60.0, 0.25), 0.0
    for pause, amount in taken:
        now += pause
        window.take(amount, now)
    foretold = window.certain(parts, {}, now)
    assert foretold == (window.expire(now), *window.fading(parts, now))
    slot = window.newest
    uncertain = {slot: 10**6}
    without = window.used - window.amounts.get(slot, 0)
    assert window.certain(parts, uncertain, now)[0] == without
