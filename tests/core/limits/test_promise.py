"""A promise that is kept whatever the neighbours do: real admissions and a real leader, second by second."""

from __future__ import annotations

from collections import deque

import pytest

from sluice_core.api.quotaallocation import Priority, Queue
from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.allocator import Allocator
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.limits.queue import Ready, Waiter, WaitingLine
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy

UP = "team/openai"
LIMIT = 600
PER_SECOND = 5  # half of the limit, which is what the steady one was promised
SECONDS = 360
STEP = 0.25
PATIENCE = 10.0
REPORT_SECONDS = 1.0


class Pod:
    """One pod of an allocation, and when it used what."""

    def __init__(self, name: str, quota: QuotaPolicy, allocation: AllocationPolicy, upstream: UpstreamPolicy) -> None:
        self.name = name
        self.admission = Admission()
        policy = PodPolicy(namespace="team", revision="1", upstreams={UP: upstream}, quotas={UP: (quota, allocation)})
        self.admission.configure(policy)
        self.line = WaitingLine(self.admission)
        self.admitted: deque[float] = deque()
        self._sequence = self._calls = 0

    def call(self, now: float, patience: float) -> bool:
        """Make a call; tell whether it goes at once."""
        self._calls += 1
        waiter = Waiter(id=self._calls, upstream=UP, ask=Ask(), priority=Priority.STANDARD, deadline=now + patience)
        if isinstance(answer := self.line.submit(waiter, now), Admitted):
            self._goes(answer, now)
        return isinstance(answer, Admitted)

    def turn(self, now: float) -> None:
        """Let those go whose turn has come."""
        for outcome in self.line.ready(now):
            if isinstance(outcome, Ready):
                self._goes(outcome, now)

    def report(self, leader: Allocator, now: float) -> None:
        """Report, and take the answer."""
        self._sequence += 1
        leases = leader.exchange(self.name, self._sequence, self.admission.demands(now), now)
        self.admission.apply_leases(leases, sent_at=now)

    def _goes(self, answer: Admitted | Ready, now: float) -> None:
        self.admitted.append(now)
        self.admission.settle(answer.reservation, tokens=0, usd_micros=None, now=now)


@pytest.mark.parametrize("priority", [Priority.STANDARD, Priority.CRITICAL])
def test_who_takes_all_at_once_does_not_keep_others_from_what_they_were_promised(priority: Priority) -> None:
    """A neighbour that tries again at once, refused or not, takes what others do not want, and no more for long."""
    limits = Limits(requests_per_minute=LIMIT, tokens_per_minute=0, requests_per_day=0, concurrency=0)
    upstream = UpstreamPolicy(key=UP, base_url="http://x", limits=limits)
    steady, greedy = (
        AllocationPolicy(name=name, share_percent=50, priority=rank, queue=Queue(max_wait_seconds=wait))
        for name, rank, wait in (("steady", priority, 10), ("greedy", Priority.STANDARD, 0))
    )
    quota = QuotaPolicy(key="q", upstream=UP, allocations=(steady, greedy))
    leader = Allocator(now=0.0, fresh=True)
    leader.configure([(upstream, quota)], 0.0)
    pods = [Pod("steady", quota, steady, upstream), Pod("greedy", quota, greedy, upstream)]
    for step in range(int(SECONDS / STEP)):
        now = step * STEP
        if now % REPORT_SECONDS == 0:
            for pod in reversed(pods):
                pod.report(leader, now)
        for pod in pods:
            pod.turn(now)
        while pods[1].call(now, 0.0):
            pass
        if now >= 1.0 and step % 4 < 2:
            for _ in range(PER_SECOND * 2 // 4 + step % 2):
                pods[0].call(now, PATIENCE)
        assert sum(at > now - 60.0 for pod in pods for at in pod.admitted) <= LIMIT

    served = sum(at >= SECONDS - 120.0 for at in pods[0].admitted)
    assert served >= 0.9 * PER_SECOND * 120
