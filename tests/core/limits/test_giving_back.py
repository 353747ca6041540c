"""What a pod does not need, it gives back with its next report; what it left behind is free as soon as it is over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.allocator import Allocator
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.limits.window import SlidingWindow
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy

UPSTREAM = "team/openai"
CAPACITY = 10_000
GRANTABLE = 9_500  # the rest is kept for pods that nobody has heard of
WINDOW_SECONDS = 60.0


class Fleet:
    """Pods of one allocation without safe shares, their leader, and a network without delay."""

    def __init__(self) -> None:
        limits = Limits(tokens_per_minute=CAPACITY, requests_per_minute=0, requests_per_day=0, concurrency=0)
        self.allocation = AllocationPolicy(name="chat", share_percent=100)
        self.upstream = UpstreamPolicy(key=UPSTREAM, base_url="http://x", limits=limits)
        self.quota = QuotaPolicy(key="team/quota", upstream=UPSTREAM, allocations=(self.allocation,))
        self.pods: dict[str, Admission] = {}
        self.sequences: dict[str, int] = {}
        self.leader = self._leader(0.0, fresh=True)
        self.admitted: list[tuple[float, int]] = []

    def _leader(self, now: float, *, fresh: bool) -> Allocator:
        leader = Allocator(now=now, fresh=fresh)
        leader.configure([(self.upstream, self.quota)], now)
        return leader

    def fail_over(self, now: float) -> None:
        """Put a leader in place that knows nothing."""
        self.leader = self._leader(now, fresh=False)

    def pod(self, name: str) -> Admission:
        """Return a pod, a new one under a new name."""
        if name not in self.pods:
            self.pods[name] = admission = Admission()
            quotas = {UPSTREAM: (self.quota, self.allocation)}
            policy = PodPolicy(namespace="team", revision="1", upstreams={UPSTREAM: self.upstream}, quotas=quotas)
            admission.configure(policy)
        return self.pods[name]

    def report(self, name: str, now: float, interval_seconds: float | None = None) -> int:
        """Let a pod report and hear; return its lease."""
        demands = self.pod(name).demands(now)
        self.sequences[name] = self.sequences.get(name, 0) + 1
        leases = self.leader.exchange(name, self.sequences[name], demands, now)
        self.pod(name).apply_leases(leases, sent_at=now, interval_seconds=interval_seconds)
        return leases[0].amount

    def stop(self, name: str, now: float) -> None:
        """Let a pod end in good order."""
        demands = self.pod(name).last_demands(now)
        self.sequences[name] += 1
        self.leader.stop(name, self.sequences[name], demands, now)

    def call(self, name: str, calls: int, now: float, tokens: int = 100) -> int:
        """Let a pod make calls; return how many were admitted."""
        count = 0
        for _ in range(calls):
            if isinstance(self.pod(name).reserve(UPSTREAM, Ask(tokens=tokens), now), Admitted):
                self.admitted.append((now, tokens))
                count += 1
            else:
                self.pod(name).deny(UPSTREAM, Ask(tokens=tokens), now)
        return count

    def use(self, now: float) -> int:
        """Return what all pods used within the window."""
        return sum(tokens for at, tokens in self.admitted if at > now - WINDOW_SECONDS)


QUIET_AT = 66.0


def one_that_went_quiet() -> Fleet:
    """Two pods that wanted everything; of the one nothing is within the window any more, and it wants nothing."""
    fleet = Fleet()
    fleet.report("quiet", 0.0)
    fleet.call("quiet", 200, 1.0)
    for now in range(5, 61, 5):
        fleet.call("eager", 200, float(now))
        fleet.report("eager", float(now))
        fleet.report("quiet", float(now))
    fleet.call("eager", 200, QUIET_AT)
    assert fleet.pod("quiet").limits(QUIET_AT)[0].held >= GRANTABLE // 3
    return fleet


def test_what_is_not_wanted_any_more_is_others_with_the_next_report() -> None:
    """One report of the one and one of the other, and what the first will not need is used."""
    fleet = one_that_went_quiet()
    before = fleet.pod("eager").limits(QUIET_AT)[0].held
    fleet.report("quiet", QUIET_AT)
    assert fleet.report("eager", QUIET_AT) >= before + GRANTABLE // 3


def test_what_was_given_back_is_not_used_until_the_answer_comes() -> None:
    """Between its report and the answer a pod keeps to what it said: others may have the rest already."""
    fleet = one_that_went_quiet()
    demand = fleet.pod("quiet").demands(QUIET_AT)[0]
    assert demand.held == 0
    assert demand.returned >= GRANTABLE // 3
    assert fleet.call("quiet", 200, QUIET_AT) == 0


def test_looking_at_limits_gives_nothing_back() -> None:
    """What is shown to people is no report."""
    fleet = one_that_went_quiet()
    for _ in range(2):
        assert fleet.pod("quiet").limits(QUIET_AT)[0].held >= GRANTABLE // 3


def test_headroom_is_kept_where_there_is_enough_for_all() -> None:
    """Nothing is given back that nobody misses: should the leader fall silent now, there is room to grow."""
    fleet = Fleet()
    fleet.report("only", 0.0)
    assert fleet.pod("only").demands(5.0)[0].held == GRANTABLE // 2


def test_a_new_leader_may_grant_what_is_given_back_to_it_and_no_more() -> None:
    """What a pod gives back with its first report to a new leader, no other leader can have granted."""
    fleet = Fleet()
    for now in (0.0, 5.0):
        fleet.call("quiet", 30, now)
        fleet.call("eager", 30, now)
        fleet.report("quiet", now)
        fleet.report("eager", now)
    out = sum(fleet.pod(name).limits(5.0)[0].held for name in fleet.pods)
    assert out <= CAPACITY
    fleet.fail_over(12.0)
    fleet.call("eager", 200, 12.0)
    fleet.report("quiet", 12.0)
    lease = fleet.report("eager", 12.0)
    quiet = fleet.pod("quiet").limits(12.0)[0].held
    assert lease > out // 2
    assert lease + quiet <= out


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 8.0), st.integers(0, 12)), min_size=1, max_size=30),
    st.lists(st.floats(0.1, 20.0), min_size=1, max_size=12),
)
def test_a_pod_that_ended_is_counted_for_no_less_than_it_used(
    steps: list[tuple[float, int]], pauses: list[float]
) -> None:
    """Whoever takes what a stopped pod leaves never brings the window above the limit, at any moment."""
    fleet, now = Fleet(), 0.0
    for pause, calls in steps:
        now += pause
        fleet.report("first", now)
        fleet.call("first", calls, now)
    fleet.stop("first", now)
    for pause in pauses:
        now += pause
        fleet.report("second", now)
        fleet.call("second", 200, now)
        assert fleet.use(now) <= CAPACITY


def test_what_a_stopped_pod_used_comes_back_in_parts() -> None:
    """Half a window after a steady pod has ended, others have about half of what it used."""
    fleet = Fleet()
    for second in range(60):
        fleet.report("first", float(second))
        assert fleet.call("first", 1, float(second)) == 1
    fleet.stop("first", 60.0)
    leases = {}
    for second in range(60, 125):
        fleet.call("second", 200, float(second))
        leases[second] = fleet.report("second", float(second))
    assert leases[61] == GRANTABLE - 6_000
    assert GRANTABLE - 3_500 <= leases[94] <= GRANTABLE - 2_500
    assert leases[124] == GRANTABLE


@pytest.mark.parametrize("scarce", [False, True])
def test_whoever_holds_much_reports_more_often_while_others_are_short(scarce: bool) -> None:
    """At most twice as many reports as at rest, and only while there is not enough for all."""
    fleet = Fleet()
    for now in (0.0, 5.0, 10.0):
        for number in range(10):
            fleet.call(f"pod-{number}", 2 if number else 200 if scarce else 3, now)
            fleet.report(f"pod-{number}", now)
    intervals = [fleet.leader.interval_seconds(f"pod-{number}", 5.0, 1.0) for number in range(10)]
    assert intervals[0] == pytest.approx(1.0 if scarce else 5.0, abs=0.5)
    assert intervals[1:] == [5.0] * 9
    assert sum(1 / each for each in intervals) <= 2 * 10 / 5.0


def test_a_pod_that_reports_often_asks_for_no_more_than_until_its_next_report() -> None:
    """What it cannot use until then others can."""
    asked = []
    for interval in (5.0, 1.0):
        fleet = Fleet()
        for step in range(16):
            fleet.call("pod", 2, step / 2)
            fleet.report("pod", step / 2, interval_seconds=interval)
        asked.append(fleet.pod("pod").demands(7.5)[0].wanted - fleet.use(7.5))
    assert asked == [2_000, 600]


times = st.lists(st.tuples(st.floats(0.0, 4.0), st.integers(0, 50)), max_size=40)


@given(times, st.integers(1, 8))
def test_fading_foretells_what_is_left(steps: list[tuple[float, int]], parts: int) -> None:
    """After each part of the window exactly as much is left as was said."""
    window, now = SlidingWindow(10.0, 0.25), 0.0
    for pause, amount in steps:
        now += pause
        window.take(amount, now)
    foretold = window.fading(parts, now)
    assert foretold == tuple(window.expire(now // 0.25 * 0.25 + 10.0 * part / parts) for part in range(1, parts))


@given(times, st.integers(0, 500), st.integers(1, 40))
def test_the_peak_is_what_even_arrivals_lead_to(steps: list[tuple[float, int]], arrivals: int, slots: int) -> None:
    """It is the largest use of any moment ahead, as a clock that runs on shows."""
    window, now = SlidingWindow(10.0, 0.25), 0.0
    for pause, amount in steps:
        now += pause
        window.take(amount, now)
    peak = window.peak(arrivals, slots, now)
    most = window.used
    for step in range(1, slots + 1):
        most = max(most, window.used + arrivals * step // slots)  # just before the oldest slot is over
        window.expire(now // 0.25 * 0.25 + 0.25 * step)
    assert peak == max(most, window.used + arrivals)
