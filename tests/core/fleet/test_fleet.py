"""The leader's memory of the sidecars."""

from __future__ import annotations

from sluice_core.api.base import LabelSelector, ObjectMeta, UpstreamRef
from sluice_core.api.quotaallocation import Allocation, QuotaAllocation, QuotaAllocationSpec
from sluice_core.api.upstream import Limits, Upstream, UpstreamSpec
from sluice_core.compile import Compiled, compile_namespaces
from sluice_core.fleet import FORGET_SECONDS, SILENT_SECONDS, Fleet
from sluice_core.limits.keys import Dimension, LimitKey
from sluice_core.rollout.counts import ArmCounts
from sluice_core.sync import AllocationGauge, Demand, PodRef, SyncRequest

UNIX = 1_780_000_000.0
REQUESTS = LimitKey(upstream="default/openai", allocation="chat", dimension=Dimension.REQUESTS).text


def compiled() -> Compiled:
    upstream = Upstream(metadata=ObjectMeta(name="openai"), spec=UpstreamSpec(limits=Limits(requests_per_minute=1000)))
    quota = QuotaAllocation(
        metadata=ObjectMeta(name="openai"),
        spec=QuotaAllocationSpec(
            upstream_ref=UpstreamRef(name="openai"),
            allocations=(
                Allocation(name="chat", share_percent=60, workloads=LabelSelector(match_labels={"app": "chat"})),
                Allocation(name="rest", share_percent=40),
            ),
        ),
    )
    return compile_namespaces([upstream, quota], {"default": {}}, {"default": ({"app": "chat"},)})


def a_fleet() -> Fleet:
    fleet = Fleet(now=0.0, fresh=True)
    fleet.adopt(compiled(), 0.0)
    return fleet


def a_report(instance: str = "a", sequence: int = 1, **changes: object) -> SyncRequest:
    pod = PodRef(namespace="default", name=f"pod-{instance}")
    return SyncRequest(pod=pod, instance=instance, sequence=sequence, **changes)  # type: ignore[arg-type]


def counts(requests: int) -> tuple[ArmCounts, ...]:
    return (ArmCounts(split="default/chat", revision="r", arm="stable", requests=requests),)


def test_synced_counts_the_sidecars_that_run_a_revision() -> None:
    """One that has fallen silent counts neither way; nobody at all is not the same as none."""
    fleet = a_fleet()
    assert fleet.synced("default", "new", 0.0) is None

    fleet.report(a_report("a", revision="new"), 0.0, UNIX)
    fleet.report(a_report("b", revision="old"), 5.0, UNIX)

    assert fleet.synced("default", "new", 5.0) == (1, 2)
    assert fleet.synced("default", "new", SILENT_SECONDS + 1.0) == (0, 1)
    assert fleet.synced("other", "new", 5.0) is None


def test_a_report_says_which_revision_to_run() -> None:
    """The sidecar sees that it is behind even if it missed the push."""
    fleet, policy = a_fleet(), compiled()

    assert fleet.report(a_report(), 0.0, UNIX).revision == policy.snapshots["default"].revision


def test_late_and_repeated_reports_count_nothing_twice() -> None:
    """Totals are cumulative; an older report must not read as a reset."""
    fleet = a_fleet()
    for sequence, total in ((1, 10), (2, 30), (2, 30), (1, 10), (3, 40)):
        fleet.report(a_report(sequence=sequence, counts=counts(total)), float(sequence), UNIX)

    assert fleet.counts.arms("default/chat", "r")[0].requests == 40


def test_a_restarted_sidecar_is_another_instance() -> None:
    """What the first one counted stays in the sum."""
    fleet = a_fleet()
    fleet.report(a_report("a", 5, counts=counts(100)), 0.0, UNIX)
    fleet.report(a_report("a", 6, counts=counts(110)), 0.0, UNIX)
    fleet.report(a_report("b", 1, counts=counts(7)), 1.0, UNIX)

    assert fleet.counts.arms("default/chat", "r")[0].requests == 17


def test_demand_is_answered_with_a_lease_and_shown_in_the_status() -> None:
    """What is granted, used and waiting is seen per allocation and for the whole."""
    fleet = a_fleet()
    demand = Demand(limit=REQUESTS, held=0, used=50, wanted=200)
    gauge = AllocationGauge(
        quota="default/openai", allocation="chat", used_requests=50, used_tokens=12_345, waiting=2, refused=1
    )
    answer = fleet.report(a_report(demands=(demand,), gauges=(gauge,)), 0.0, UNIX)

    status = fleet.quota_status("default/openai", 1.0, UNIX)

    assert status is not None
    assert answer.leases[0].amount >= 200
    chat = status.allocations[0]
    assert (chat.name, chat.pods, chat.used_requests, chat.waiting, chat.refused) == ("chat", 1, 50, 2, 1)
    assert chat.granted_requests_per_minute == answer.leases[0].amount
    assert status.granted.endswith("/1000 rpm")
    assert status.used == "50 rpm 12k tpm"
    assert fleet.quota_status("default/none", 1.0, UNIX) is None


def test_what_another_store_has_granted_is_shown_from_what_pods_say() -> None:
    """The leader leases nothing of such an account, and knows of its slices by the pods alone."""
    fleet = a_fleet()
    for instance in ("a", "b"):
        gauge = AllocationGauge(quota="default/openai", allocation="chat", granted_requests=120, granted_tokens=9)
        fleet.report(a_report(instance, gauges=(gauge,)), 0.0, UNIX)
    status = fleet.quota_status("default/openai", 1.0, UNIX)
    assert status is not None
    assert status.allocations[0].granted_requests_per_minute == 240
    assert status.allocations[0].granted_tokens_per_minute == 18
    assert status.granted == "240/1000 rpm"


def test_a_pod_that_stops_gives_its_lease_back() -> None:
    """Its counts stay, it no longer counts as synced."""
    fleet = a_fleet()
    demand = Demand(limit=REQUESTS, held=0, used=0, wanted=900)
    fleet.report(a_report("a", 1, demands=(demand,), counts=counts(5)), 0.0, UNIX)
    fleet.report(a_report("a", 2, demands=(demand,), counts=counts(6), stopping=True), 1.0, UNIX)

    answer = fleet.report(a_report("b", 1, demands=(demand,)), 2.0, UNIX)

    assert answer.leases[0].amount >= 900
    assert fleet.counts.arms("default/chat", "r")[0].requests == 6


def test_sidecars_that_are_gone_are_forgotten() -> None:
    """Memory does not grow with the pods that ever were."""
    fleet = a_fleet()
    for number in range(50):
        fleet.report(a_report(f"i{number}"), 0.0, UNIX)

    fleet.adopt(compiled(), FORGET_SECONDS + 1.0)

    assert fleet.counts.instances() == frozenset()


def test_a_new_leader_learns_before_it_grants() -> None:
    """Unless there never was one before it, somebody may still hold what it does not know of."""
    fleet = Fleet(now=0.0)
    fleet.adopt(compiled(), 0.0)
    fleet.lead(True, 0.0)

    answer = fleet.report(a_report(demands=(Demand(limit=REQUESTS, held=10, used=10, wanted=900),)), 1.0, UNIX)

    assert answer.leases[0].amount <= 10
