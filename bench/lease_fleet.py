"""A simulated fleet under one limit: real admissions, the real allocator; only time and network are simulated.

Demand is skewed: a fifth of the pods wants four fifths, and which ones changes. Messages take up to half a second, one
in a hundred is lost. Pods come and go, in good order or killed, and some are cut off from the leader for a minute.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.allocator import Allocator
from sluice_core.limits.decisions import Admitted, Ask, Reservation
from sluice_core.limits.safe import rounded_up, safe_limits
from sluice_core.limits.shares import Share, plan
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy
from sluice_core.sync import Demand, Heard, Lease

UPSTREAM: Final = "bench/openai"
SHARES: Final = {"chat": 60, "batch": 30, "tools": 10}
WINDOW_SECONDS: Final = 60.0
REPORT_SECONDS: Final = 5.0
ANSWER_TIMEOUT_SECONDS: Final = 6.0
LEAST_GAP_SECONDS: Final = 0.5
BUSY_REPORT_SECONDS: Final = 1.0
LONGEST_GAP_SECONDS: Final = 2.0
TICK_SECONDS: Final = 0.25
CUT_OFF_SECONDS: Final = 60.0
CALL_SECONDS: Final = 5.0
CHURN_SECONDS: Final = 600.0
TOKENS_PER_CALL: Final = 100
TOKENS_PER_POD: Final = 6_000
_CALL: Final = Ask(tokens=TOKENS_PER_CALL)


class Pod:
    """One sidecar's limits and what its application wants."""

    __slots__ = (
        "admission",
        "alive",
        "allocation",
        "budget",
        "cut_until",
        "due",
        "gap",
        "granted",
        "heard",
        "heard_at",
        "hears_until",
        "hurried",
        "in_window",
        "name",
        "rate",
        "refused_at",
        "sent_at",
        "sequence",
        "started_at",
        "turn",
    )

    def __init__(self, name: str, allocation: str, policy: PodPolicy, now: float) -> None:
        self.name = name
        self.allocation = allocation
        self.admission = Admission()
        self.admission.configure(policy)
        self.started_at = now
        self.rate = 0.0
        """Tokens a second that its application wants."""
        self.due = 0.0
        """Tokens a minute that it should get, if everything were known and nothing took time."""
        self.in_window = 0
        """Tokens that it was admitted within the last minute."""
        self.budget = 0.0
        self.hurried = False  # somebody was refused since the last report
        self.hears_until = 0.0  # how long it waits for an answer before it reports again
        self.heard_at = 0.0
        self.heard: tuple[str, float] | None = None  # the leader of the latest answer, and when it gave it
        self.sequence = 0
        self.turn = 0  # counts when it was decided anew when to report
        self.gap = LEAST_GAP_SECONDS
        self.granted = 0
        self.sent_at = float("-inf")
        self.refused_at = float("-inf")
        self.cut_until = 0.0
        self.alive = True


class Simulation:
    """The fleet, the leader and the clock."""

    def __init__(self, pods: int, seed: int, *, demand: float = 2.0, churn: float = 0.2, killed: float = 0.5) -> None:
        """`demand` is in multiples of the capacity; `churn` is the part of the pods that is replaced in ten minutes.

        Of these, `killed` leave without a word. As many as are replaced are cut off for a minute.
        """
        self.draw = random.Random(seed)
        self.demand = demand
        self.churn = churn
        self.killed = killed
        self.capacity = pods * TOKENS_PER_POD
        self.now = 0.0
        self.next_name = 0
        limits = Limits(tokens_per_minute=self.capacity, requests_per_minute=0, requests_per_day=0, concurrency=0)
        self.upstream = UpstreamPolicy(key=UPSTREAM, base_url="http://x", limits=limits)
        planned = rounded_up(pods)
        allocations = tuple(
            AllocationPolicy(
                name=name, share_percent=share, safe=safe_limits(limits, share, max(1, planned * share // 100))
            )
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
        self.admitted: deque[tuple[float, list[tuple[Pod, int]]]] = deque()  # by tick
        self.in_flight: deque[tuple[float, list[tuple[Admission, Reservation]]]] = deque()  # by tick
        self.in_window = 0
        self.worst = 0
        self.leader_cpu = 0.0
        self.reports = 0
        self.skew()
        for pod in self.pods:
            self._report_in(pod, self.draw.uniform(0, REPORT_SECONDS))

    def _pod(self, allocation: str = "") -> Pod:
        self.next_name += 1
        # Pods are spread like the shares, so that the planned pods of no allocation are exceeded.
        name = allocation or _spread(self.next_name % 10)
        return Pod(f"pod-{self.next_name}", name, self.policies[name], self.now)

    # --- what happens to the fleet ----------------------------------------------------------------------------------

    def skew(self) -> None:
        """A fifth of the pods, chosen anew, wants four fifths of the demand."""
        hot = set(self.draw.sample(range(len(self.pods)), k=max(1, len(self.pods) // 5)))
        total = self.capacity * self.demand / WINDOW_SECONDS
        for index, pod in enumerate(self.pods):
            part = 0.8 / len(hot) if index in hot else 0.2 / max(1, len(self.pods) - len(hot))
            pod.rate = total * part
            pod.budget = self.draw.uniform(0, TOKENS_PER_CALL)  # or all would call at once
        self._reckon_due()

    def _reckon_due(self) -> None:
        wants: dict[str, list[int]] = {name: [] for name in SHARES}
        for pod in self.pods:
            wants[pod.allocation].append(int(pod.rate * WINDOW_SECONDS))
        shares = [Share(name=name, percent=share) for name, share in SHARES.items()]
        levels = plan(self.capacity, shares, wants)
        for pod in self.pods:
            pod.due = min(pod.rate * WINDOW_SECONDS, levels[pod.allocation].level)

    def fail_over(self) -> None:
        """Put a new leader in place, which knows nothing."""
        self.leader = Allocator(now=self.now)
        self.leader.configure([(self.upstream, self.quota)], self.now)

    def _replace_some(self) -> None:
        """Let pods leave and others start; cut some off."""
        chance = self.churn * TICK_SECONDS / CHURN_SECONDS
        for index in self._chosen(chance):
            old = self.pods[index]
            self._leave(old)
            self.pods[index] = fresh = self._pod(old.allocation)
            fresh.rate, fresh.due = old.rate, old.due
            self._report_in(fresh, 0.1)
        for index in self._chosen(chance):
            self.pods[index].cut_until = self.now + CUT_OFF_SECONDS

    def _chosen(self, chance: float) -> Iterable[int]:
        """Choose each pod with the same chance, in as many steps as are chosen."""
        index = -1
        while chance > 0.0:
            index += 1 + int(min(self.draw.expovariate(chance), len(self.pods)))
            if index >= len(self.pods):
                return
            yield index

    def _leave(self, pod: Pod) -> None:
        pod.alive = False
        if self.draw.random() >= self.killed:
            sequence, demands, leader = pod.sequence + 1, pod.admission.last_demands(self.now), self.leader
            self._send(lambda: leader.stop(pod.name, sequence, demands, self.now))

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let a quarter of a second pass."""
        end = self.now + TICK_SECONDS
        while self.events and self.events[0][0] <= end:
            at, _, action = heapq.heappop(self.events)
            self.now = max(self.now, at)
            action()
        self.now = end
        self._replace_some()
        calls = []
        self.in_flight.append((end, []))
        while self.in_flight[0][0] <= end - CALL_SECONDS:
            for admission, reservation in self.in_flight.popleft()[1]:
                admission.settle(reservation, tokens=None, usd_micros=None, now=end)
        for pod in self.pods:
            rate = pod.rate
            pod.budget = budget = min(pod.budget + rate * TICK_SECONDS, rate * 2 + TOKENS_PER_CALL)
            if budget >= TOKENS_PER_CALL and (tokens := self._call(pod)):
                calls.append((pod, tokens))
                pod.in_window += tokens
                self.in_window += tokens
        self.admitted.append((end, calls))
        while self.admitted[0][0] <= end - WINDOW_SECONDS:
            for pod, tokens in self.admitted.popleft()[1]:
                pod.in_window -= tokens
                self.in_window -= tokens
        self.worst = max(self.worst, self.in_window)

    def _call(self, pod: Pod) -> int:
        """Let a pod make all the calls that it wants to; return the tokens that it was admitted."""
        admission, now, tokens = pod.admission, self.now, 0
        in_flight = self.in_flight[-1][1]
        calls = int(pod.budget // TOKENS_PER_CALL)
        pod.budget -= calls * TOKENS_PER_CALL
        while calls and isinstance(answer := admission.reserve(UPSTREAM, _CALL, now), Admitted):
            in_flight.append((admission, answer.reservation))
            tokens += TOKENS_PER_CALL
            calls -= 1
        if calls:
            pod.refused_at = now
            for _ in range(calls):
                admission.deny(UPSTREAM, _CALL, now)
            if not pod.hurried and now >= pod.hears_until:
                self._report_in(pod, max(0.0, pod.heard_at + pod.gap - now))
            pod.hurried = True
        return tokens

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self.serial += 1
        heapq.heappush(self.events, (self.now + seconds, self.serial, action))

    def _send(self, action: Callable[[], None]) -> None:
        """Let a message arrive after a while, or never."""
        if self.draw.random() > 0.01:
            self._after(self.draw.uniform(0.001, 0.5), action)

    # --- reports ----------------------------------------------------------------------------------------------------

    def _report_in(self, pod: Pod, seconds: float) -> None:
        """Decide when the pod reports next, whatever was decided before."""
        pod.turn += 1
        turn = pod.turn
        self._after(seconds, lambda: self._report(pod) if pod.turn == turn and pod.alive else None)

    def _report(self, pod: Pod) -> None:
        self._report_in(pod, ANSWER_TIMEOUT_SECONDS)
        pod.hears_until = self.now + ANSWER_TIMEOUT_SECONDS
        pod.hurried = False
        pod.sequence += 1
        pod.sent_at = self.now
        sequence, demands = pod.sequence, pod.admission.demands(self.now)
        heard = None
        if pod.heard is not None:
            heard = Heard(leader=pod.heard[0], answered_at=pod.heard[1], seconds_ago=self.now - pod.heard_at)
        if self.now >= pod.cut_until:
            self._send(lambda: self._to_leader(pod, demands, sequence, heard))

    def _to_leader(self, pod: Pod, demands: tuple[Demand, ...], sequence: int, heard: Heard | None) -> None:
        started = time.process_time()
        leases = self.leader.exchange(pod.name, sequence, demands, self.now, heard)
        self.leader_cpu += time.process_time() - started
        self.reports += 1
        interval = self.leader.interval_seconds(pod.name, REPORT_SECONDS, BUSY_REPORT_SECONDS)
        by = (self.leader.name, self.now)
        self._send(lambda: self._to_pod(pod, leases, sequence, interval, by))

    def _to_pod(self, pod: Pod, leases: Sequence[Lease], sequence: int, interval: float, by: tuple[str, float]) -> None:
        if not pod.alive or sequence != pod.sequence:
            return
        pod.heard, pod.heard_at, pod.hears_until = by, self.now, self.now
        pod.admission.apply_leases(leases, sent_at=pod.sent_at, interval_seconds=interval)
        amount = sum(lease.amount for lease in leases)
        pod.gap = LEAST_GAP_SECONDS if amount > pod.granted else min(LONGEST_GAP_SECONDS, 2 * pod.gap)
        pod.granted = amount
        self._report_in(pod, min(interval, pod.gap) if pod.hurried else interval * self.draw.uniform(0.9, 1.1))


def _spread(point: int) -> str:
    """Return the allocation that the share at a point from 0 to 9 belongs to."""
    by_reach = zip(itertools.accumulate(SHARES.values()), SHARES, strict=True)
    return next(name for reach, name in by_reach if point * 10 < reach)
