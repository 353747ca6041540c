"""No window, over all pods, ever holds more than the limit, whatever becomes of pods, leaders and messages."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sluice_core.api.upstream import Limits, Timeouts
from sluice_core.limits.admission import Admission
from sluice_core.limits.allocator import Allocator
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.limits.queue import Ready, Waiter, WaitingLine
from sluice_core.limits.safe import safe_limits
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy
from sluice_core.sync import Demand, Heard, Lease

UPSTREAM = "team/openai"
SHARES = {"chat": 60, "batch": 30}
PLANNED_PODS = 4  # of each allocation
WINDOW_SECONDS = 60.0
DAY_SECONDS = 86_400.0
HOLD_SECONDS = 20 + 30.0
# For so long a limit that was lowered may still be exceeded: leases run out, then permits leave the window.
CALL_SECONDS = 20
GRACE_SECONDS = 30.0 + 60.25 + HOLD_SECONDS


class Pod:
    """One instance of a sidecar, with a clock of its own."""

    def __init__(self, name: str, allocation: str, clock: float) -> None:
        self.name = name
        self.allocation = allocation
        self.clock = clock
        self.admission = Admission()
        self.line = WaitingLine(self.admission)
        self.sequence = 0
        self.sent_at = 0.0
        self.answer: tuple[str, float, float] | None = None  # the latest one: whose, when on its clock, on the pod's
        self.in_flight: list[Admitted] = []
        self.alive = True
        self.died_at = 0.0


class Fleet(RuleBasedStateMachine):
    """Pods, a leader, and a network that delays, drops, repeats and reorders; an oracle that sees every admission."""

    @initialize(
        tokens=st.integers(500, 5000),
        requests=st.integers(20, 200),
        day=st.integers(20, 300),
        concurrency=st.integers(5, 60),
    )
    def begin(self, tokens: int, requests: int, day: int, concurrency: int) -> None:
        """Start with two pods and a leader that was there from the beginning."""
        self.now = 1000.0
        self.pods: list[Pod] = []
        self.dead: list[Pod] = []
        self.requests_under_way: list[tuple[Pod, int, tuple[Demand, ...], Heard | None, bool]] = []
        self.answers_under_way: list[tuple[Pod, int, tuple[Lease, ...], tuple[str, float]]] = []
        self.limits_log: list[tuple[float, Limits]] = []
        self.admitted: list[list[float]] = []  # time, tokens
        self.admitted_today: list[float] = []
        self.started = 0
        self.leader_clock = 50.0
        self.policy = self._policy(Limits())
        self.leader = Allocator(now=self._leader_now(), fresh=True)
        self._configure(tokens, requests, day, concurrency)
        self._start("chat")
        self._start("batch")

    # --- what happens to the fleet ----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0, 5.0, 15.0, 31.0, 61.0, 900.0, 43_200.0]))
    def time_passes(self, seconds: float) -> None:
        """Everybody's clock moves on: calls end at their deadline, and those that wait get their turn."""
        self.now += seconds
        for pod in self.pods:
            self._end_overdue(pod)
            self._serve(pod)

    @rule(
        index=st.integers(0, 99),
        count=st.integers(1, 40),
        tokens=st.integers(1, 400),
        patience=st.sampled_from([0, 40]),
    )
    def pod_calls(self, index: int, count: int, tokens: int, patience: int) -> None:
        """A pod wants to send a burst of calls."""
        pod = self._pod(index)
        now = self._now(pod)
        for _ in range(count):
            self.started += 1
            waiter = Waiter(id=self.started, upstream=UPSTREAM, ask=Ask(tokens=tokens), deadline=now + patience)
            answer = pod.line.submit(waiter, now)
            if isinstance(answer, Admitted):
                self._record(pod, answer, tokens)

    @rule(index=st.integers(0, 99), count=st.integers(1, 20), percent=st.integers(0, 200))
    def calls_end(self, index: int, count: int, percent: int) -> None:
        """Calls end and used less or more than was reserved."""
        pod = self._pod(index)
        for _ in range(min(count, len(pod.in_flight))):
            admitted = pod.in_flight.pop(0)
            used = admitted.reservation.ask.tokens * percent // 100
            entry = self.entries.pop(id(admitted))
            entry[1] = min(entry[1], used)
            pod.admission.settle(admitted.reservation, tokens=used, usd_micros=None, now=self._now(pod))
        self._serve(pod)

    @rule(index=st.integers(0, 99), rounds=st.integers(1, 3))
    def pod_reports_and_hears(self, index: int, rounds: int) -> None:
        """A pod's report and its answer arrive without delay."""
        pod = self._pod(index)
        for _ in range(rounds):
            sequence, demands, heard = self._report(pod)
            leases = self.leader.exchange(pod.name, sequence, demands, self._leader_now(), heard)
            self._apply(pod, sequence, leases, (self.leader.name, self._leader_now()))

    @rule()
    def all_report_and_hear(self) -> None:
        """A round without trouble."""
        for index in range(len(self.pods)):
            self.pod_reports_and_hears(index, 1)

    @rule(index=st.integers(0, 99))
    def pod_sends(self, index: int) -> None:
        """A pod sends a report, which is under way."""
        pod = self._pod(index)
        self.requests_under_way.append((pod, *self._report(pod), False))

    @precondition(lambda self: self.requests_under_way)
    @rule(index=st.integers(0, 99), keep=st.booleans())
    def report_arrives(self, index: int, keep: bool) -> None:
        """Any report under way arrives; kept, it will arrive once more."""
        index %= len(self.requests_under_way)
        pod, sequence, demands, heard, stopping = self.requests_under_way[index]
        if not keep:
            del self.requests_under_way[index]
        if stopping:
            self.leader.stop(pod.name, sequence, demands, self._leader_now())
            return
        leases = self.leader.exchange(pod.name, sequence, demands, self._leader_now(), heard)
        self.answers_under_way.append((pod, sequence, leases, (self.leader.name, self._leader_now())))

    @precondition(lambda self: self.answers_under_way)
    @rule(index=st.integers(0, 99), keep=st.booleans())
    def answer_arrives(self, index: int, keep: bool) -> None:
        """Any answer under way arrives."""
        index %= len(self.answers_under_way)
        pod, sequence, leases, by = self.answers_under_way[index]
        if not keep:
            del self.answers_under_way[index]
        self._apply(pod, sequence, leases, by)

    @rule()
    def network_fails(self) -> None:
        """All that is under way is lost."""
        self.requests_under_way.clear()
        self.answers_under_way.clear()

    @rule(allocation=st.sampled_from(sorted(SHARES)))
    def pod_joins(self, allocation: str) -> None:
        """A pod starts, unless so many ran lately as the policy was compiled for."""
        self._start(allocation)

    @precondition(lambda self: len(self.pods) > 1)
    @rule(index=st.integers(0, 99), how=st.sampled_from(["killed", "stopped", "seen gone", "restarted"]))
    def pod_leaves(self, index: int, how: str) -> None:
        """A pod ends: without a word, with one, noticed by the API server, or to start anew with empty windows."""
        pod = self._pod(index)
        self.pods.remove(pod)
        pod.alive, pod.died_at = False, self.now
        for admitted in pod.in_flight:
            del self.entries[id(admitted)]
        pod.in_flight.clear()
        self.dead.append(pod)
        match how:
            case "stopped":
                pod.sequence += 1
                demands = pod.admission.last_demands(self._now(pod))
                self.requests_under_way.append((pod, pod.sequence, demands, None, True))
            case "seen gone":
                self.leader.gone(pod.name, self._leader_now())
            case "restarted":
                self._start(pod.allocation)

    @rule(clock=st.floats(0, 1e6))
    def leader_fails_over(self, clock: float) -> None:
        """Another leader takes over, with another clock and no memory."""
        self.started += 1
        self.leader_clock = clock + 1e7 * self.started  # no two leaders are called the same
        self.leader = Allocator(now=self._leader_now())
        self.leader.configure([self._whole()], self._leader_now())

    @rule(
        tokens=st.integers(300, 6000),
        requests=st.integers(10, 250),
        day=st.integers(15, 400),
        concurrency=st.integers(3, 80),
    )
    def limits_change(self, tokens: int, requests: int, day: int, concurrency: int) -> None:
        """New limits are published to everybody."""
        self._configure(tokens, requests, day, concurrency)

    # --- the oracle -------------------------------------------------------------------------------------------------

    @invariant()
    def reservations_stay_within_the_limit(self) -> None:
        """In the window that ends now, and in flight, there is no more than the limits in force allowed."""
        if not hasattr(self, "admitted"):
            return
        self.admitted = [entry for entry in self.admitted if entry[0] > self.now - WINDOW_SECONDS]
        bound = self._bound(WINDOW_SECONDS)
        assert sum(entry[1] for entry in self.admitted) <= (bound.tokens_per_minute or 0)
        assert len(self.admitted) <= (bound.requests_per_minute or 0)
        assert sum(len(pod.in_flight) for pod in self.pods) <= (bound.concurrency or 0)

    @invariant()
    def a_day_holds_no_more_than_the_limit_of_a_day(self) -> None:
        """The same of the requests of any 24 hours."""
        if not hasattr(self, "admitted"):
            return
        self.admitted_today = [at for at in self.admitted_today if at > self.now - DAY_SECONDS]
        assert len(self.admitted_today) <= (self._bound(DAY_SECONDS).requests_per_day or 0)

    def _last_before(self, since: float) -> float:
        return max((at for at, _ in self.limits_log if at <= since), default=0.0)

    def _bound(self, window_seconds: float) -> Limits:
        """Return the largest of the limits that may still show in a window."""
        since = self.now - GRACE_SECONDS - 2 * window_seconds
        recent = [limits for at, limits in self.limits_log if at >= self._last_before(since)]
        return Limits(
            tokens_per_minute=max(each.tokens_per_minute or 0 for each in recent),
            requests_per_minute=max(each.requests_per_minute or 0 for each in recent),
            requests_per_day=max(each.requests_per_day or 0 for each in recent),
            concurrency=max(each.concurrency or 0 for each in recent),
        )

    # --- machinery --------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> dict[int, list[float]]:
        """Log entries of calls in flight, by their admission."""
        if not hasattr(self, "_entries"):
            self._entries: dict[int, list[float]] = {}
        return self._entries

    def _record(self, pod: Pod, admitted: Admitted, tokens: int) -> None:
        entry: list[float] = [self.now, tokens]
        self.admitted.append(entry)
        self.admitted_today.append(self.now)
        self.entries[id(admitted)] = entry
        pod.in_flight.append(admitted)

    def _end_overdue(self, pod: Pod) -> None:
        """No call outlives its deadline; that is what slots that come back by themselves rely on."""
        for admitted in [each for each in pod.in_flight if self.now - self.entries[id(each)][0] >= CALL_SECONDS]:
            pod.in_flight.remove(admitted)
            self.entries.pop(id(admitted))
            tokens = admitted.reservation.ask.tokens
            pod.admission.settle(admitted.reservation, tokens=tokens, usd_micros=None, now=self._now(pod))

    def _serve(self, pod: Pod) -> None:
        for outcome in pod.line.ready(self._now(pod)):
            if isinstance(outcome, Ready):
                admitted = Admitted(reservation=outcome.reservation)
                self._record(pod, admitted, outcome.reservation.ask.tokens)

    def _report(self, pod: Pod) -> tuple[int, tuple[Demand, ...], Heard | None]:
        pod.sequence += 1
        pod.sent_at = now = self._now(pod)
        heard = None
        if pod.answer is not None:
            leader, answered_at, arrived_at = pod.answer
            heard = Heard(leader=leader, answered_at=answered_at, seconds_ago=now - arrived_at)
        return pod.sequence, pod.admission.demands(now), heard

    def _apply(self, pod: Pod, sequence: int, leases: tuple[Lease, ...], by: tuple[str, float]) -> None:
        pod.answer = (*by, self._now(pod))
        if pod.alive and sequence == pod.sequence:
            pod.admission.apply_leases(leases, sent_at=pod.sent_at)
            self._serve(pod)

    def _start(self, allocation: str) -> None:
        recent = [pod for pod in self.dead if pod.died_at > self.now - 2 * GRACE_SECONDS]
        if sum(pod.allocation == allocation for pod in [*self.pods, *recent]) >= PLANNED_PODS:
            return
        self.started += 1
        pod = Pod(f"pod-{self.started}", allocation, clock=float(self.started * 7919 % 100_000))
        pod.admission.configure(self._pod_policy(pod))
        self.pods.append(pod)

    def _configure(self, tokens: int, requests: int, day: int, concurrency: int) -> None:
        limits = Limits(
            tokens_per_minute=tokens, requests_per_minute=requests, requests_per_day=day, concurrency=concurrency
        )
        self.limits_log.append((self.now, limits))
        self.policy = self._policy(limits)
        self.leader.configure([self._whole()], self._leader_now())
        for pod in self.pods:
            pod.admission.configure(self._pod_policy(pod))

    def _policy(self, limits: Limits) -> QuotaPolicy:
        self.limits = limits
        return QuotaPolicy(
            key="team/openai",
            upstream=UPSTREAM,
            allocations=tuple(
                AllocationPolicy(name=name, share_percent=share, safe=safe_limits(limits, share, PLANNED_PODS))
                for name, share in SHARES.items()
            ),
        )

    def _whole(self) -> tuple[UpstreamPolicy, QuotaPolicy]:
        upstream = UpstreamPolicy(
            key=UPSTREAM, base_url="http://x", limits=self.limits, timeouts=Timeouts(total_seconds=CALL_SECONDS)
        )
        return upstream, self.policy

    def _pod_policy(self, pod: Pod) -> PodPolicy:
        upstream, quota = self._whole()
        allocation = next(each for each in quota.allocations if each.name == pod.allocation)
        return PodPolicy(
            namespace="team", revision="1", upstreams={UPSTREAM: upstream}, quotas={UPSTREAM: (quota, allocation)}
        )

    def _pod(self, index: int) -> Pod:
        return self.pods[index % len(self.pods)]

    def _now(self, pod: Pod) -> float:
        return self.now + pod.clock

    def _leader_now(self) -> float:
        return self.now + self.leader_clock


Fleet.TestCase.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestNeverAboveTheLimit = Fleet.TestCase
