"""A fleet of simulated pods under one limit: use of capacity, fairness, the leader's cost and the worst overshoot.

    python bench/leases.py --pods 1000 --seconds 600

Demand is skewed (a fifth of the pods wants four fifths) and moves every two and a half minutes; pods come and go, half
of them in good order and half killed; some are cut off from the leader for a minute; the leader fails over half way
between two moves. All pods are real admissions and the leader is the real allocator: only time and network are
simulated, with a delay of up to half a second a message.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.allocator import Allocator
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.limits.safe import safe_limits
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy
from sluice_core.sync import Demand, Lease

UPSTREAM = "bench/openai"
SHARES = {"chat": 60, "batch": 30, "tools": 10}
WINDOW_SECONDS = 60.0
REPORT_SECONDS = 5.0
LEAST_GAP_SECONDS = 0.5
BUSY_REPORT_SECONDS = 1.0
LONGEST_GAP_SECONDS = 2.0
MOVE_SECONDS = 150.0
TICK_SECONDS = 0.25
TOKENS_PER_CALL = 100


class Figures(Struct, kw_only=True):
    """What a run shows. Percentages are of the capacity, over windows of a minute."""

    pods: int
    simulated_seconds: float
    demand_percent: float
    use_percent_mean: float
    use_percent_settled: float
    use_percent_from_two_rounds_after_a_move: float
    use_percent_least_after_failover: float
    overshoot_percent: float
    least_share_kept_percent: float
    leader_seconds_per_second: float
    reports: int


class Pod:
    """One sidecar's limits and what its application wants."""

    __slots__ = (
        "admission",
        "alive",
        "allocation",
        "budget",
        "cut_until",
        "gap",
        "granted",
        "interval",
        "name",
        "rate",
        "sent_at",
        "sequence",
        "turn",
    )

    def __init__(self, name: str, allocation: str, policy: PodPolicy) -> None:
        self.name = name
        self.allocation = allocation
        self.admission = Admission()
        self.admission.configure(policy)
        self.rate = 0.0
        self.budget = 0.0
        self.sequence = 0
        self.turn = 0  # counts when it was decided anew when to report
        self.gap = LEAST_GAP_SECONDS
        self.granted = 0
        self.interval = REPORT_SECONDS
        self.sent_at = float("-inf")
        self.cut_until = 0.0
        self.alive = True


class Simulation:
    """The fleet, the leader and the clock."""

    def __init__(self, pods: int, seed: int, *, demand: float = 2.0, churn: float = 0.2, killed: float = 0.5) -> None:
        """`demand` is in multiples of the capacity; `churn` is the part of the pods that is replaced in ten minutes.

        Of these, `killed` leave without a word.
        """
        self.draw = random.Random(seed)
        self.count = pods
        self.demand = demand
        self.churn = churn
        self.killed = killed
        self.capacity = pods * 6_000
        self.now = 0.0
        self.next_name = 0
        self.planned = 1 << (pods - 1).bit_length()
        limits = Limits(tokens_per_minute=self.capacity, requests_per_minute=0, requests_per_day=0, concurrency=0)
        self.upstream = UpstreamPolicy(key=UPSTREAM, base_url="http://x", limits=limits)
        allocations = tuple(
            AllocationPolicy(name=name, share_percent=share, safe=safe_limits(limits, share, self._planned(share)))
            for name, share in SHARES.items()
        )
        self.quota = QuotaPolicy(key="bench/quota", upstream=UPSTREAM, allocations=allocations)
        self.policies = {
            each.name: PodPolicy(
                namespace="bench",
                revision="1",
                upstreams={UPSTREAM: self.upstream},
                quotas={UPSTREAM: (self.quota, each)},
            )
            for each in allocations
        }
        self.leader = Allocator(now=0.0, fresh=True)
        self.leader.configure([(self.upstream, self.quota)], 0.0)
        self.pods: list[Pod] = [self._pod() for _ in range(pods)]
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = 0
        self.admitted: deque[tuple[float, int, str]] = deque()
        self.in_window = 0
        self.worst = 0
        self.leader_cpu = 0.0
        self.reports = 0
        self.skew()
        for pod in self.pods:
            self._report_in(pod, self.draw.uniform(0, REPORT_SECONDS))

    def _planned(self, share: int) -> int:
        return max(1, self.planned * share // 100)

    def _pod(self) -> Pod:
        self.next_name += 1
        # Pods are spread like the shares, so that the planned pods of no allocation are exceeded.
        point, allocation = self.next_name % 10, "tools"
        if point < 6:
            allocation = "chat"
        elif point < 9:
            allocation = "batch"
        return Pod(f"pod-{self.next_name}", allocation, self.policies[allocation])

    def skew(self) -> None:
        """A fifth of the pods, chosen anew, wants four fifths of the demand."""
        hot = set(self.draw.sample(range(len(self.pods)), k=max(1, len(self.pods) // 5)))
        total = self.capacity * self.demand / WINDOW_SECONDS
        for index, pod in enumerate(self.pods):
            part = 0.8 / len(hot) if index in hot else 0.2 / max(1, len(self.pods) - len(hot))
            pod.rate = total * part

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self.serial += 1
        heapq.heappush(self.events, (self.now + seconds, self.serial, action))

    def _send(self, action: Callable[[], None]) -> None:
        """Let a message arrive after a while, or never."""
        if self.draw.random() > 0.01:
            self._after(self.draw.uniform(0.001, 0.5), action)

    def fail_over(self) -> None:
        """Put a new leader in place, which knows nothing."""
        self.leader = Allocator(now=self.now)
        self.leader.configure([(self.upstream, self.quota)], self.now)

    def replace_some(self) -> None:
        """Let pods leave and others start; cut some off."""
        for index in range(len(self.pods)):
            if self.draw.random() < self.churn * TICK_SECONDS / 600:
                old = self.pods[index]
                self._leave(old)
                self.pods[index] = fresh = self._pod()
                fresh.allocation, fresh.rate = old.allocation, old.rate
                fresh.admission.configure(self.policies[old.allocation])
                self._report_in(fresh, 0.1)
            elif self.draw.random() < self.churn * TICK_SECONDS / 600:
                self.pods[index].cut_until = self.now + 60.0

    def _leave(self, pod: Pod) -> None:
        pod.alive = False
        if self.draw.random() >= self.killed:
            sequence, demands, leader = pod.sequence + 1, pod.admission.last_demands(self.now), self.leader
            self._send(lambda: leader.stop(pod.name, sequence, demands, self.now))

    def tick(self) -> None:
        """Let half a second pass."""
        end = self.now + TICK_SECONDS
        while self.events and self.events[0][0] <= end:
            at, _, action = heapq.heappop(self.events)
            self.now = max(self.now, at)
            action()
        self.now = end
        self.replace_some()
        for pod in self.pods:
            self._call(pod)
        while self.admitted and self.admitted[0][0] <= self.now - WINDOW_SECONDS:
            self.in_window -= self.admitted.popleft()[1]
        self.worst = max(self.worst, self.in_window)

    def _report_in(self, pod: Pod, seconds: float) -> None:
        """Decide when the pod reports next, whatever was decided before."""
        pod.turn += 1
        turn = pod.turn
        self._after(seconds, lambda: self._report(pod) if pod.turn == turn and pod.alive else None)

    def _report(self, pod: Pod) -> None:
        self._report_in(pod, REPORT_SECONDS * self.draw.uniform(0.9, 1.1))
        pod.sequence += 1
        pod.sent_at = self.now
        sequence, demands = pod.sequence, pod.admission.demands(self.now)
        if self.now >= pod.cut_until:
            self._send(lambda: self._to_leader(pod, demands, sequence))

    def _to_leader(self, pod: Pod, demands: tuple[Demand, ...], sequence: int) -> None:
        started = time.process_time()
        leases = self.leader.exchange(pod.name, sequence, demands, self.now)
        self.leader_cpu += time.process_time() - started
        self.reports += 1
        interval = self.leader.interval_seconds(pod.name, REPORT_SECONDS, BUSY_REPORT_SECONDS)
        self._send(lambda: self._to_pod(pod, leases, sequence, interval))

    def _to_pod(self, pod: Pod, leases: tuple[Lease, ...], sequence: int, interval: float) -> None:
        if not pod.alive or sequence != pod.sequence:
            return
        pod.interval = interval
        self._report_in(pod, max(0.0, pod.sent_at + interval * self.draw.uniform(0.9, 1.1) - self.now))
        pod.admission.apply_leases(leases, sent_at=pod.sent_at)
        amount = sum(lease.amount for lease in leases)
        pod.gap = LEAST_GAP_SECONDS if amount > pod.granted else min(LONGEST_GAP_SECONDS, 2 * pod.gap)
        pod.granted = amount

    def _call(self, pod: Pod) -> None:
        pod.budget = min(pod.budget + pod.rate * TICK_SECONDS, pod.rate * 2 + TOKENS_PER_CALL)
        while pod.budget >= TOKENS_PER_CALL:
            pod.budget -= TOKENS_PER_CALL
            ask = Ask(tokens=TOKENS_PER_CALL)
            answer = pod.admission.reserve(UPSTREAM, ask, self.now)
            if not isinstance(answer, Admitted):
                pod.admission.deny(UPSTREAM, ask, self.now)
                while pod.budget >= TOKENS_PER_CALL:  # nor would any other of these
                    pod.budget -= TOKENS_PER_CALL
                    pod.admission.deny(UPSTREAM, ask, self.now)
                self._report_in(pod, max(0.0, pod.sent_at + pod.gap - self.now))
                return
            self.admitted.append((self.now, TOKENS_PER_CALL, pod.allocation))
            self.in_window += TOKENS_PER_CALL

    def use_percent(self) -> float:
        """Return the use within the last minute."""
        return 100.0 * self.in_window / self.capacity

    def least_kept_percent(self) -> float:
        """Return the smallest part that an allocation got in the last minute of what it was promised and wanted."""
        used, wanted = dict.fromkeys(SHARES, 0), dict.fromkeys(SHARES, 0.0)
        for _, tokens, allocation in self.admitted:
            used[allocation] += tokens
        for pod in self.pods:
            wanted[pod.allocation] += pod.rate * WINDOW_SECONDS
        due = {name: min(wanted[name], self.capacity * share / 100) for name, share in SHARES.items()}
        return min(100.0 * used[name] / due[name] for name in SHARES)


def run(pods: int, seconds: float, seed: int, demand: float = 2.0, churn: float = 0.2, killed: float = 0.5) -> Figures:
    """Simulate and return the figures. Failover happens half way, so ten minutes show something.

    "Settled" is what is measured from two rounds and a window after the last move of demand; the 100 s after the
    failover are not in it. What is used from two rounds after a move until then is a figure of its own.
    """
    simulation = Simulation(pods, seed, demand=demand, churn=churn, killed=killed)
    use: list[float] = []
    settled: list[float] = []
    moving: list[float] = []
    kept: list[float] = []
    after_failover = 100.0
    failed_over_at, moved_at, moves = float("inf"), 0.0, 0
    while simulation.now < seconds:
        simulation.tick()
        now = simulation.now
        if now - moved_at >= MOVE_SECONDS:
            simulation.skew()
            moved_at, moves = now, moves + 1
        if failed_over_at > now and now >= seconds / 2 and now - moved_at >= MOVE_SECONDS / 3:
            simulation.fail_over()
            failed_over_at = now
        if now <= WINDOW_SECONDS:
            continue
        use.append(simulation.use_percent())
        if failed_over_at <= now <= failed_over_at + 100.0:
            after_failover = min(after_failover, use[-1])
        elif now - moved_at > WINDOW_SECONDS + 2 * REPORT_SECONDS:
            settled.append(use[-1])
            kept.append(simulation.least_kept_percent())
        elif moves and now - moved_at > 2 * REPORT_SECONDS:
            moving.append(use[-1])
    return Figures(
        pods=pods,
        simulated_seconds=seconds,
        demand_percent=100.0 * demand,
        use_percent_mean=sum(use) / len(use),
        use_percent_settled=sum(settled) / len(settled),
        use_percent_from_two_rounds_after_a_move=sum(moving) / len(moving),
        use_percent_least_after_failover=after_failover,
        overshoot_percent=max(0.0, 100.0 * simulation.worst / simulation.capacity - 100.0),
        least_share_kept_percent=min(kept),
        leader_seconds_per_second=simulation.leader_cpu / seconds,
        reports=simulation.reports,
    )


def main() -> int:
    """Print the figures; fail if the limit was exceeded."""
    parser = argparse.ArgumentParser(description="Simulate leases among many pods.")
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--demand", type=float, default=2.0, help="in multiples of the capacity")
    parser.add_argument("--churn", type=float, default=0.2, help="part of the pods replaced in ten minutes")
    parser.add_argument("--killed", type=float, default=0.5, help="part of these that leaves without a word")
    given = parser.parse_args()
    figures = run(given.pods, given.seconds, given.seed, given.demand, given.churn, given.killed)
    for name in figures.__struct_fields__:
        value = getattr(figures, name)
        print(f"{name.replace('_', ' '):36} {value:.3f}" if isinstance(value, float) else f"{name:36} {value}")
    return 1 if figures.overshoot_percent > 0 else 0


if __name__ == "__main__":
    sys.exit(main())
