"""The last of a budget's money is watched more closely: its pods report more often, but no leader drowns in that."""

from __future__ import annotations

from sluice_core.api.base import ObjectMeta, UpstreamRef
from sluice_core.api.quotaallocation import Allocation, Budget, QuotaAllocation, QuotaAllocationSpec
from sluice_core.api.upstream import Upstream
from sluice_core.compile import compile_namespaces
from sluice_core.fleet import BUSY_REPORT_SECONDS, REPORT_SECONDS, Fleet
from sluice_core.sync import PodRef, Spend, SyncRequest

NOON = 1_780_056_000.0  # 2026-05-29
TODAY = "2026-05-29"


class Spender:
    """A fleet whose first pod spends."""

    def __init__(self, pods: int = 1) -> None:
        quota = QuotaAllocation(
            metadata=ObjectMeta(name="openai"),
            spec=QuotaAllocationSpec(
                upstream_ref=UpstreamRef(name="openai"),
                allocations=(Allocation(name="all", share_percent=100, budget=Budget(daily_usd="100")),),
            ),
        )
        compiled = compile_namespaces([Upstream(metadata=ObjectMeta(name="openai")), quota], {"default": {}}, {})
        self.fleet, self.now, self.sequence = Fleet(now=0.0, fresh=True), 0.0, 0
        self.fleet.adopt(compiled, 0.0)
        for number in range(1, pods):
            pod = PodRef(namespace="default", name=f"pod-{number}")
            self.fleet.report(SyncRequest(pod=pod, instance=f"i-{number}", sequence=1), 0.0, NOON)

    def report(self, usd: float, seconds: float = 5.0) -> float:
        """Report what was spent today; return when to report again."""
        self.now += seconds
        self.sequence += 1
        spend = Spend(budget="default/openai/all", window=TODAY, usd_micros=round(usd * 1e6))
        pod = PodRef(namespace="default", name="pod-0")
        request = SyncRequest(pod=pod, instance="i-0", sequence=self.sequence, spends=(spend,))
        return self.fleet.report(request, self.now, NOON + self.now).interval_seconds


def test_pods_report_every_second_before_the_money_ends() -> None:
    """At a dollar a second from about half a minute before; not while it is far, and not when it is spent."""
    spender = Spender()
    told = {usd: spender.report(usd) for usd in range(0, 110, 5)}
    assert [usd for usd, seconds in told.items() if seconds == BUSY_REPORT_SECONDS] == [75, 80, 85, 90, 95]
    assert {told[usd] for usd in (5, 40, 65, 100, 105)} == {REPORT_SECONDS}


def test_slow_spending_is_not_watched_more_closely() -> None:
    """Not even at 99 percent: the rest lasts for long enough."""
    spender = Spender()
    assert {spender.report(99.0 + step / 100) for step in range(10)} == {REPORT_SECONDS}


def test_a_leader_of_many_pods_is_not_asked_for_more_than_it_can_take() -> None:
    """At 600 pods every three seconds, and never more rarely than always."""
    many = Spender(600)
    assert min(many.report(usd) for usd in range(0, 100, 5)) == 3.0
    most = Spender(3000)
    assert {most.report(usd) for usd in range(0, 100, 5)} == {REPORT_SECONDS}
