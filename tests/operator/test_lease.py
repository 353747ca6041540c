"""Leadership by a Lease."""

from __future__ import annotations

import asyncio

import pytest
from kubernetes.aio.client import Configuration

from sluice_operator.cluster import Cluster
from sluice_operator.kinds import LEASES, RELEASE_LABELS
from sluice_operator.lease import Leadership


@pytest.fixture
def campaigner(cluster: Cluster, clock):
    def make(identity: str) -> Leadership:
        return Leadership(cluster, "sluice-system", "sluice-operator", identity, clock=clock, wall=clock)

    return make


async def test_the_first_replica_leads_and_the_second_stands_by(campaigner, api):
    """One of two replicas leads; the Lease names it."""
    first, second = campaigner("a"), campaigner("b")
    await first.campaign()
    await second.campaign()
    assert (first.leading, second.leading) == (True, False)
    lease = api.object(LEASES, "sluice-operator", "sluice-system")
    assert (lease["spec"]["holderIdentity"], lease["metadata"]["labels"]) == ("a", RELEASE_LABELS)


async def test_a_standby_takes_over_within_twenty_seconds_of_silence(campaigner, clock, api):
    """A leader that is killed is replaced after its Lease has run out, never before."""
    first, second = campaigner("a"), campaigner("b")
    await first.campaign()
    await second.campaign()
    silence = 0.0
    while not second.leading:
        clock.advance(2.0)
        silence += 2.0
        await second.campaign()
    assert 15.0 <= silence <= 20.0
    assert not first.leading
    assert api.object(LEASES, "sluice-operator", "sluice-system")["spec"]["leaseTransitions"] == 1


async def test_two_replicas_never_lead_at_once(campaigner, clock):
    """A leader cut off from the API server stops writing before a standby can take over."""
    first, second = campaigner("a"), campaigner("b")
    await first.campaign()
    unreachable = Cluster(Configuration(host="http://127.0.0.1:1"), timeout_seconds=0.5)
    first._cluster = unreachable
    for _ in range(10):
        clock.advance(2.0)
        await first.campaign()
        leading_without_renewal = first.leading
        await second.campaign()
        assert not (leading_without_renewal and second.leading)
    assert (first.leading, second.leading) == (False, True)
    await unreachable.close()


async def test_a_leader_that_exits_hands_over_at_once(campaigner):
    """Release empties the Lease, so the standby's next look takes it."""
    first, second = campaigner("a"), campaigner("b")
    running = asyncio.create_task(first.run())
    await first.changed.wait()
    await second.campaign()
    assert first.leading
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not first.leading
    await second.campaign()
    assert second.leading


async def test_a_stopped_process_learns_before_it_writes_that_it_was_replaced(campaigner, clock, cluster):
    """confirm() asks the API server when the last renewal is not fresh, and believes what it finds."""
    first = campaigner("a")
    await first.campaign()
    lease = await cluster.get(LEASES, "sluice-system", "sluice-operator")
    lease["spec"]["holderIdentity"] = "b"
    await cluster.replace(LEASES, "sluice-system", "sluice-operator", lease)
    clock.advance(3.0)
    assert first.leading
    assert not await first.confirm()
    assert not first.leading


async def test_a_process_that_was_stopped_while_others_led_begins_another_term(campaigner, clock):
    """What it remembers of the fleet is older than what they granted; a term that is only renewed stays the same."""
    first, second = campaigner("a"), campaigner("b")
    await first.campaign()
    term = first.term
    clock.advance(12.0)
    await first.campaign()
    assert (first.leading, first.term) == (True, term)
    await second.campaign()
    clock.advance(20.0)  # the first one is stopped
    await second.campaign()
    assert second.leading
    await second.release()
    await first.campaign()
    assert first.leading
    assert first.term > term > 0


async def test_the_loser_of_a_race_for_the_lease_does_not_lead(campaigner, api):
    """A 409 on creation or renewal means that another one was faster."""
    api.fail(409, "AlreadyExists", method="post")
    first = campaigner("a")
    await first.campaign()
    assert not first.leading


async def test_an_unreachable_api_server_does_not_end_a_fresh_lease(campaigner, clock, api):
    """One failed renewal costs nothing; leadership lasts until the renewal deadline."""
    first = campaigner("a")
    await first.campaign()
    api.fail(500, "InternalError", path="/leases/")
    clock.advance(2.0)
    await first.campaign()
    assert first.leading
    clock.advance(8.0)
    assert not first.leading


async def test_times_have_the_six_digits_that_the_api_server_demands(campaigner, api):
    """MicroTime without exactly six fractional digits is refused by a real API server."""
    await campaigner("a").campaign()
    spec = api.object(LEASES, "sluice-operator", "sluice-system")["spec"]
    assert spec["renewTime"] == "2027-01-15T08:00:00.000000Z"
    assert spec["leaseDurationSeconds"] == 15
