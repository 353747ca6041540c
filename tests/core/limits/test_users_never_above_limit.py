"""No user ever has more than its limit over all pods, whatever becomes of pods, leaders and messages."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sluice_core.api.base import KeySource
from sluice_core.api.quotaallocation import PerUser
from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask, Reservation
from sluice_core.limits.user_leases import UserLeases
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy
from sluice_core.sync import UserAnswer, UserReport

UPSTREAM = "team/openai"
REQUESTS, TOKENS = 12, 900
PODS = 3  # as the policy says; never more run at once, those that ended lately included
SHARERS = 4  # PODS as the next power of two
WINDOW_SECONDS = 60.0
AFTERLIFE_SECONDS = 62.0
NONE = Limits(requests_per_minute=0, tokens_per_minute=0, requests_per_day=0, concurrency=0)
PER_USER = PerUser(key=KeySource(header="x-user-id"), requests_per_minute=REQUESTS, tokens_per_minute=TOKENS)


def policy(pods: int) -> tuple[UpstreamPolicy, QuotaPolicy, AllocationPolicy]:
    """An account without limits of its own, whose users have some."""
    allocation = AllocationPolicy(name="chat", share_percent=100, per_user=PER_USER, pods=pods)
    quota = QuotaPolicy(key="team/quota", upstream=UPSTREAM, allocations=(allocation,))
    return UpstreamPolicy(key=UPSTREAM, base_url="http://x", limits=NONE), quota, allocation


class Pod:
    """One instance of a sidecar, with a clock of its own."""

    def __init__(self, name: str, clock: float) -> None:
        self.name = name
        self.clock = clock
        self.admission = Admission()
        upstream, quota, allocation = policy(SHARERS)
        self.admission.configure(
            PodPolicy(
                namespace="team", revision="1", upstreams={UPSTREAM: upstream}, quotas={UPSTREAM: (quota, allocation)}
            )
        )
        self.sequence = 0
        self.sent_at = 0.0
        self.alive = True
        self.ended_at = 0.0
        self.open_calls: list[tuple[Reservation, list[float]]] = []


class Users(RuleBasedStateMachine):
    """Pods, a leader, a network that delays, drops, repeats and reorders; an oracle that sees every admission."""

    @initialize(pods=st.integers(1, PODS))
    def begin(self, pods: int) -> None:
        """Start with some pods and a leader that was there from the beginning."""
        self.now = 1000.0
        self.started = 0
        self.pods: list[Pod] = []
        self.ended: list[Pod] = []
        self.reports: list[tuple[Pod, int, tuple[UserReport, ...], bool]] = []
        self.answers: list[tuple[Pod, int, tuple[UserAnswer, ...]]] = []
        self.admitted: dict[str, list[list[float]]] = {"a": [], "b": []}
        self.leader_clock = 50.0
        self.leader = UserLeases(now=self.now + self.leader_clock, fresh=True)
        self.leader.configure([policy(PODS)[1]], self.now + self.leader_clock)
        for _ in range(pods):
            self._start()

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 10.0, 20.0, 31.0, 61.0, 95.0, 125.0]))
    def time_passes(self, seconds: float) -> None:
        """Everybody's clock moves on."""
        self.now += seconds

    @precondition(lambda self: self.pods)
    @rule(
        index=st.integers(0, 99),
        user=st.sampled_from(["a", "a", "a", "b"]),
        count=st.integers(1, 14),
        tokens=st.sampled_from([1, 1, 60, 200, 850]),
    )
    def user_calls(self, index: int, user: str, count: int, tokens: int) -> None:
        """A user sends a burst of calls through one pod."""
        pod = self._pod(index)
        for _ in range(count):
            ask = Ask(user=user, tokens=tokens)
            answer = pod.admission.reserve(UPSTREAM, ask, self._now(pod))
            if isinstance(answer, Admitted):
                entry = [self.now, float(tokens)]
                self.admitted[user].append(entry)
                pod.open_calls.append((answer.reservation, entry))
            else:
                pod.admission.deny(UPSTREAM, ask, self._now(pod))

    @precondition(lambda self: self.pods)
    @rule(index=st.integers(0, 99), percent=st.integers(0, 100))
    def calls_end(self, index: int, percent: int) -> None:
        """All calls of a pod end, and used less than was reserved."""
        pod = self._pod(index)
        for reservation, entry in pod.open_calls:
            used = int(entry[1]) * percent // 100
            pod.admission.settle(reservation, tokens=used, usd_micros=None, now=self._now(pod))
            entry[1] = used
        pod.open_calls.clear()

    @rule(rounds=st.integers(1, 3), seconds=st.sampled_from([0.0, 1.0, 5.0]))
    def all_report_and_hear(self, rounds: int, seconds: float) -> None:
        """Rounds without trouble."""
        for _ in range(rounds):
            for pod in self.pods:
                self._round(pod)
            self.now += seconds

    @precondition(lambda self: self.pods)
    @rule(index=st.integers(0, 99))
    def pod_reports_and_hears(self, index: int) -> None:
        """A pod's report and its answer arrive without delay."""
        self._round(self._pod(index))

    @precondition(lambda self: self.pods)
    @rule(index=st.integers(0, 99))
    def pod_sends(self, index: int) -> None:
        """A pod sends a report, which is under way."""
        pod = self._pod(index)
        self.reports.append((pod, *self._report(pod), False))

    @precondition(lambda self: self.reports)
    @rule(index=st.integers(0, 99), keep=st.booleans())
    def report_arrives(self, index: int, keep: bool) -> None:
        """Any report under way arrives; kept, it will arrive once more."""
        index %= len(self.reports)
        pod, sequence, report, stopping = self.reports[index]
        if not keep:
            del self.reports[index]
        if stopping:
            self.leader.stop(pod.name, report, self._leader_now())
        else:
            answer = self.leader.exchange(pod.name, sequence, report, self._leader_now())
            self.answers.append((pod, sequence, answer))

    @precondition(lambda self: self.answers)
    @rule(index=st.integers(0, 99), keep=st.booleans())
    def answer_arrives(self, index: int, keep: bool) -> None:
        """Any answer under way arrives; it counts if it is that to the latest report."""
        index %= len(self.answers)
        pod, sequence, answer = self.answers[index]
        if not keep:
            del self.answers[index]
        self._apply(pod, sequence, answer)

    @rule()
    def network_fails(self) -> None:
        """All that is under way is lost, and pods that just began notice that there is no leader."""
        self.reports.clear()
        self.answers.clear()
        for pod in self.pods:
            pod.admission.open_users()

    @rule()
    def pod_joins(self) -> None:
        """A pod starts, unless so many ran lately as the leader knows of."""
        self._start()

    @precondition(lambda self: self.pods)
    @rule(index=st.integers(0, 99), how=st.sampled_from(["killed", "stopped", "seen gone"]))
    def pod_leaves(self, index: int, how: str) -> None:
        """A pod ends: without a word, with one, or noticed by the API server."""
        pod = self._pod(index)
        self.pods.remove(pod)
        pod.alive, pod.ended_at = False, self.now
        self.ended.append(pod)
        if how == "stopped":
            self.reports.append((pod, *self._report(pod), True))
        elif how == "seen gone":
            self.leader.gone(pod.name, self._leader_now())

    @rule(clock=st.floats(0, 1e6))
    def leader_fails_over(self, clock: float) -> None:
        """Another leader takes over, with another clock and no memory."""
        self.leader_clock = clock
        self.leader = UserLeases(now=self._leader_now())
        self.leader.configure([policy(PODS)[1]], self._leader_now())

    @invariant()
    def users_stay_within_their_limits(self) -> None:
        """In the window that ends now there is no more of any user than its limit."""
        for user, entries in self.admitted.items() if hasattr(self, "admitted") else ():
            entries = self.admitted[user] = [entry for entry in entries if entry[0] > self.now - WINDOW_SECONDS]
            assert len(entries) <= REQUESTS
            assert sum(entry[1] for entry in entries) <= TOKENS

    # --- machinery --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.ended = [pod for pod in self.ended if pod.ended_at > self.now - AFTERLIFE_SECONDS]
        if len(self.pods) + len(self.ended) < PODS:
            self.started += 1
            self.pods.append(Pod(f"pod-{self.started}", clock=float(self.started * 7919 % 100_000)))

    def _round(self, pod: Pod) -> None:
        sequence, report = self._report(pod)
        self._apply(pod, sequence, self.leader.exchange(pod.name, sequence, report, self._leader_now()))

    def _report(self, pod: Pod) -> tuple[int, tuple[UserReport, ...]]:
        pod.sequence += 1
        pod.sent_at = self._now(pod)
        return pod.sequence, pod.admission.user_reports(self._now(pod))

    def _apply(self, pod: Pod, sequence: int, answer: tuple[UserAnswer, ...]) -> None:
        if pod.alive and sequence == pod.sequence:
            pod.admission.apply_users(answer, sequence=sequence, sent_at=pod.sent_at, now=self._now(pod))

    def _pod(self, index: int) -> Pod:
        return self.pods[index % len(self.pods)]

    def _now(self, pod: Pod) -> float:
        return self.now + pod.clock

    def _leader_now(self) -> float:
        return self.now + self.leader_clock


Users.TestCase.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestUsersNeverAboveTheirLimit = Users.TestCase
