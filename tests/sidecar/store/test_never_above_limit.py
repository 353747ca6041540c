"""No window over all pods of all clusters holds more than the limit, whatever becomes of pods, calls and the store."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sluice_core.api.quotaallocation import StoreType
from sluice_core.api.upstream import Limits, Timeouts
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.limits.demand import left_behind
from sluice_core.limits.redis_slices import SliceCall, slice_answer, slice_call
from sluice_core.limits.safe import reserved_share, safe_limits
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, StorePolicy, UpstreamPolicy

UPSTREAM = "team/openai"
SHARES = {"chat": 60, "batch": 30}
PLANNED_PODS = 2  # of each allocation, in each cluster
CLUSTERS = 2
WINDOW_SECONDS = 60.0
TOTAL_SECONDS = 20  # of a call
FORGOTTEN_SECONDS = 30.0 + 60.25 + 50.0 + 10.0  # no call and no lease of a dead pod counts any more

_accounts = itertools.count()


class Pod:
    """One instance of a sidecar, with a clock of its own."""

    def __init__(self, name: str, allocation: str, cluster: int, clock: float) -> None:
        self.name = name
        self.allocation = allocation
        self.cluster = cluster
        self.clock = clock
        self.admission = Admission()
        self.sequence = 0
        self.in_flight: list[Admitted] = []
        self.died_at = 0.0


class Clusters(RuleBasedStateMachine):
    """Pods of two clusters, one server, and calls that are lost, late or executed without an answer."""

    script: Any

    @initialize(
        tokens=st.integers(500, 5000),
        requests=st.integers(20, 200),
        concurrency=st.sampled_from([5, 40, 1000]),
        learned=st.booleans(),
    )
    def begin(self, tokens: int, requests: int, concurrency: int, learned: bool) -> None:
        """Start with a pod in each cluster, before a server that knows nothing, or has learned that nothing is out."""
        self.now = 1_000.0
        self.run = "a" * 40
        self.account = f"account-{next(_accounts)}"
        self.limits = Limits(
            tokens_per_minute=tokens, requests_per_minute=requests, requests_per_day=0, concurrency=concurrency
        )
        self.pods: list[Pod] = []
        self.dead: list[Pod] = []
        self.late: list[SliceCall] = []
        self.admitted: list[list[float]] = []  # time, tokens
        self.entries: dict[int, list[float]] = {}
        self.started = 0
        self._start("chat", 0)
        self._start("batch", 1)
        if learned:
            self.all_take_slices()
            self.now += 200

    # --- what happens -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0, 15.0, 31.0, 61.0, 150.0]))
    def time_passes(self, seconds: float) -> None:
        """Everybody's clock moves on. A call that takes too long is ended by its deadline."""
        self.now += seconds
        for pod in self.pods:
            late = [each for each in pod.in_flight if self.entries[id(each)][0] < self.now - TOTAL_SECONDS]
            for admitted in late:
                pod.in_flight.remove(admitted)
                del self.entries[id(admitted)]
                pod.admission.settle(admitted.reservation, tokens=None, usd_micros=None, now=self._now(pod))

    @rule(index=st.integers(0, 99), count=st.integers(1, 60), tokens=st.integers(1, 400))
    def pod_calls(self, index: int, count: int, tokens: int) -> None:
        """A pod wants to send a burst of calls."""
        pod = self._pod(index)
        for _ in range(count):
            answer = pod.admission.reserve(UPSTREAM, Ask(tokens=tokens), self._now(pod))
            if isinstance(answer, Admitted):
                entry: list[float] = [self.now, tokens]
                self.admitted.append(entry)
                self.entries[id(answer)] = entry
                pod.in_flight.append(answer)
            else:
                pod.admission.deny(UPSTREAM, Ask(tokens=tokens), self._now(pod))

    @rule(index=st.integers(0, 99), count=st.integers(1, 30), percent=st.integers(0, 100))
    def calls_end(self, index: int, count: int, percent: int) -> None:
        """Calls end and used less than was reserved."""
        pod = self._pod(index)
        for _ in range(min(count, len(pod.in_flight))):
            admitted = pod.in_flight.pop(0)
            used = admitted.reservation.ask.tokens * percent // 100
            self.entries.pop(id(admitted))[1] = used
            pod.admission.settle(admitted.reservation, tokens=used, usd_micros=None, now=self._now(pod))

    @rule(index=st.integers(0, 99), rounds=st.integers(1, 3))
    def pod_takes_slices(self, index: int, rounds: int) -> None:
        """A pod calls the store and gets an answer."""
        for _ in range(rounds):
            pod = self._pod(index)
            call, sent_at = self._call(pod), self._now(pod)
            leases = slice_answer(call, self._execute(call)).leases
            pod.admission.apply_leases(leases, sent_at=sent_at)

    @rule(index=st.integers(0, 99), count=st.integers(20, 120), tokens=st.integers(1, 200))
    def pod_uses_all_it_can_get(self, index: int, count: int, tokens: int) -> None:
        """A pod calls for more than it holds, takes slices, and uses them at once."""
        for _ in range(2):
            self.pod_calls(index, count, tokens)
            self.pod_takes_slices(index, 1)
        self.pod_calls(index, count, tokens)

    @rule()
    def all_take_slices(self) -> None:
        """A round without trouble."""
        for index in range(len(self.pods)):
            self.pod_takes_slices(index, 1)

    @rule(index=st.integers(0, 99), fate=st.sampled_from(["lost", "executed", "late"]))
    def call_gets_no_answer(self, index: int, fate: str) -> None:
        """The pod gave up on a call: it never arrived, or was executed, or lies with a server that is paused."""
        call = self._call(self._pod(index))
        if fate == "executed":
            self._execute(call)
        if fate == "late":
            self.late.append(call)

    @precondition(lambda self: self.late)
    @rule(index=st.integers(0, 99))
    def late_call_is_executed(self, index: int) -> None:
        """The server wakes up and executes what it had received."""
        self._execute(self.late.pop(index % len(self.late)))

    @rule(how=st.sampled_from(["flushed", "restarted with old data", "restarted empty"]))
    def store_forgets(self, how: str) -> None:
        """The server loses what it knew, or comes back with what it knew a while ago."""
        self.late.clear()  # their connections are gone
        if how != "flushed":
            self.run = f"{int(self.run, 16) + 1:040x}"
        if how != "restarted with old data":
            for key in self.script.client.scan_iter(f"sluice:{{{self.account}}}*"):
                self.script.client.delete(key)

    @rule(part=st.sampled_from(["sums", "pods", "order", ""]))
    def store_evicts_a_key(self, part: str) -> None:
        """A server that is short of memory drops a part."""
        key = f"sluice:{{{self.account}}}" + (f":tokens::{part}" if part else "")
        self.late.clear()
        self.script.client.delete(key)

    @rule(allocation=st.sampled_from(sorted(SHARES)), cluster=st.integers(0, CLUSTERS - 1))
    def pod_joins(self, allocation: str, cluster: int) -> None:
        """A pod starts, unless so many ran lately as the policy was compiled for."""
        self._start(allocation, cluster)

    @precondition(lambda self: len(self.pods) > 1)
    @rule(index=st.integers(0, 99), stopping=st.booleans())
    def pod_ends(self, index: int, stopping: bool) -> None:
        """A pod is killed, or stops with a last word."""
        pod = self._pod(index)
        self.pods.remove(pod)
        self.dead.append(pod)
        pod.died_at = self.now
        for admitted in pod.in_flight:
            if stopping:
                pod.admission.settle(admitted.reservation, tokens=None, usd_micros=None, now=self._now(pod))
            del self.entries[id(admitted)]
        pod.in_flight.clear()
        if stopping:
            self._execute(self._call(pod, stopping=True))

    @precondition(lambda self: len(self.pods) > 1)
    @rule(
        index=st.integers(0, 99),
        before=st.sampled_from([5.0, 25.0]),
        after=st.lists(st.sampled_from([1.0, 5.0, 12.0, 25.0]), min_size=2, max_size=5),
        tokens=st.integers(20, 200),
        percent=st.sampled_from([None, 10, 100]),
        end=st.sampled_from(["stopped", "killed", "cut off"]),
    )
    def pod_hands_over(
        self, index: int, before: float, after: list[float], tokens: int, percent: int | None, end: str
    ) -> None:
        """A pod that has used all it could get ends, or is alone from now on; the others use what becomes free of it.

        `percent` is what its calls used of what they had reserved, None for calls that are not over.
        """
        for _ in range(2):
            self.pod_uses_all_it_can_get(index, 60, tokens)
            if percent is not None:
                self.calls_end(index, 60, percent)
            self.time_passes(before)
        self.pod_uses_all_it_can_get(index, 60, tokens)
        pod = self._pod(index)
        self.calls_end(index, 60, percent or 0)  # it may use again what they give back, and nobody hears of it
        self.pod_calls(index, 60, tokens)
        if end != "cut off":
            self.pod_ends(index, stopping=end == "stopped")
        for seconds in [0.1, *after]:
            self.time_passes(seconds)
            for other in range(len(self.pods)):
                if self.pods[other] is pod:
                    self.pod_calls(other, 60, tokens)
                else:
                    self.pod_uses_all_it_can_get(other, 60, tokens)
            self.reservations_stay_within_the_limit()

    # --- the oracle -------------------------------------------------------------------------------------------------

    @invariant()
    def reservations_stay_within_the_limit(self) -> None:
        """In the window that ends now, and in flight, there is no more than the limits allow."""
        if not hasattr(self, "admitted"):
            return
        self.admitted = [entry for entry in self.admitted if entry[0] > self.now - WINDOW_SECONDS]
        assert sum(entry[1] for entry in self.admitted) <= (self.limits.tokens_per_minute or 0)
        assert len(self.admitted) <= (self.limits.requests_per_minute or 0)
        assert sum(len(pod.in_flight) for pod in self.pods) <= (self.limits.concurrency or 0)

    # --- machinery --------------------------------------------------------------------------------------------------

    def _call(self, pod: Pod, *, stopping: bool = False) -> SliceCall:
        pod.sequence += 1
        account = pod.admission.account(UPSTREAM)
        now = self._now(pod)
        demands = left_behind(account, now) if stopping else pod.admission.demands_of(UPSTREAM, now)
        return slice_call(account, demands, server=self.run, pod=pod.name, sequence=pod.sequence, stopping=stopping)

    def _execute(self, call: SliceCall) -> list[int]:
        return self.script.call(call.keys, call.arguments, round(self.now * 1000))

    def _start(self, allocation: str, cluster: int) -> None:
        recent = [pod for pod in self.dead if pod.died_at > self.now - FORGOTTEN_SECONDS]
        alike = [pod for pod in [*self.pods, *recent] if (pod.allocation, pod.cluster) == (allocation, cluster)]
        if len(alike) >= PLANNED_PODS:
            return
        self.started += 1
        pod = Pod(f"pod-{self.started}", allocation, cluster, clock=float(self.started * 7919 % 100_000))
        pod.admission.configure(pod_policy(self.limits, self.account, allocation))
        self.pods.append(pod)

    def _pod(self, index: int) -> Pod:
        return self.pods[index % len(self.pods)]

    def _now(self, pod: Pod) -> float:
        return self.now + pod.clock


def pod_policy(limits: Limits, account: str, allocation: str) -> PodPolicy:
    """The policy of a pod of one cluster."""
    upstream = UpstreamPolicy(
        key=UPSTREAM, base_url="http://x", limits=limits, timeouts=Timeouts(total_seconds=TOTAL_SECONDS)
    )
    allocations = tuple(
        AllocationPolicy(name=name, share_percent=share, safe=safe_limits(limits, share, PLANNED_PODS * CLUSTERS))
        for name, share in SHARES.items()
    )
    quota = QuotaPolicy(
        key="team/openai",
        upstream=UPSTREAM,
        store=StorePolicy(type=StoreType.REDIS, url="redis://x", name=account),
        safe_reserve=reserved_share(SHARES.values()),
        allocations=allocations,
    )
    own = next(each for each in allocations if each.name == allocation)
    return PodPolicy(namespace="team", revision="1", upstreams={UPSTREAM: upstream}, quotas={UPSTREAM: (quota, own)})


@pytest.mark.timeout(60)
def test_never_above_the_limit(timed: Any) -> None:
    """Whatever order things happen in, the script gives out no more than there is."""

    class WithScript(Clusters):
        script = timed

    run_state_machine_as_test(
        WithScript,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("age_seconds", [5.0, 20.0, 35.0, 50.0])
def test_a_pod_that_is_cut_off_may_fill_its_slice_again(timed: Any, age_seconds: float) -> None:
    """What it used when it was last heard leaves the window meanwhile, and others get no more than what it leaves."""

    class WithScript(Clusters):
        script = timed

    clusters = WithScript()
    clusters.begin(tokens=5000, requests=200, concurrency=1000, learned=True)
    for seconds in (0.0, 1.0, age_seconds):
        clusters.time_passes(seconds)
        for pod in range(2):  # so many calls at once that both are short of requests
            clusters.pod_uses_all_it_can_get(pod, 150, 1)
            clusters.calls_end(pod, 150, 100)
    used = 0
    for _ in range(30):
        clusters.time_passes(3.0)
        clusters.pod_calls(0, 150, 1)  # nobody hears of it any more
        clusters.calls_end(0, 150, 100)
        clusters.pod_uses_all_it_can_get(1, 150, 1)
        clusters.calls_end(1, 150, 100)
        clusters.reservations_stay_within_the_limit()
        used = max(used, len(clusters.admitted))
    assert used > 150
