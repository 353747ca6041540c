"""How sidecars learn whom to trust on the sync channel: with their policy."""

from __future__ import annotations

from typing import Any

from sluice_core.snapshot import Snapshot
from sluice_operator.cluster import Cluster
from sluice_operator.kinds import CONFIG_MAPS
from sluice_operator.publish import PolicyPublisher

SNAPSHOTS = {"shop": Snapshot(namespace="shop", revision="r1")}
NOBODY: frozenset[str] = frozenset()


def _data(api: Any) -> dict[str, str]:
    data: dict[str, str] = api.object(CONFIG_MAPS, "sluice-policy", "shop")["data"]
    return data


async def _round(publisher: PolicyPublisher, authorities: str) -> None:
    publisher.authorities = lambda: authorities
    await publisher.look()
    assert await publisher.publish(SNAPSHOTS, NOBODY) == {}


async def test_the_authority_travels_with_the_policy_and_follows_a_renewal(api: Any, cluster: Cluster) -> None:
    """It is beside the snapshot, is replaced when it changes though the policy does not, and costs no write else."""
    publisher = PolicyPublisher(cluster)
    await _round(publisher, "first")
    assert _data(api)["ca.crt"] == "first"
    await _round(publisher, "second first")
    assert _data(api)["ca.crt"] == "second first"
    before = publisher.writes

    await _round(publisher, "second first")

    assert publisher.writes == before
    assert "snapshot.json" in _data(api)


async def test_a_policy_is_published_without_an_authority_too(api: Any, cluster: Cluster) -> None:
    """With the channel switched off, or before the first certificate, the policy does not wait."""
    await _round(PolicyPublisher(cluster), "")

    assert set(_data(api)) == {"snapshot.json"}
