"""What one pod gets out of its namespace's snapshot. It depends on the snapshot and the pod's labels alone."""

from __future__ import annotations

from collections.abc import Mapping

from sluice_core.api.base import Value
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, RoutePolicy, Snapshot, UpstreamPolicy


class PodPolicy(Value, frozen=True, kw_only=True):
    """The policy of one pod. Two pods of a namespace with equal labels have equal policies.

    `routes` are those that select the pod, in order of precedence: their rules are tried one after the other as if they
    were one list. `quotas` gives, by upstream key, the quota and the one allocation that applies. A call that no rule
    matches goes to `default_upstream`: the Upstream called "default" (one in the pod's own namespace first), else the
    only one there is, else none.
    """

    namespace: str
    revision: str
    routes: tuple[RoutePolicy, ...] = ()
    quotas: dict[str, tuple[QuotaPolicy, AllocationPolicy]] = {}
    upstreams: dict[str, UpstreamPolicy] = {}
    default_upstream: str | None = None


def select(snapshot: Snapshot, labels: Mapping[str, str]) -> PodPolicy:
    """Return the policy of a pod with these labels."""
    own_labels = dict(labels)
    return PodPolicy(
        namespace=snapshot.namespace,
        revision=snapshot.revision,
        routes=tuple(route for route in snapshot.routes if route.workloads.matches(own_labels)),
        quotas=_quotas(snapshot, own_labels),
        upstreams={upstream.key: upstream for upstream in snapshot.upstreams},
        default_upstream=_default_upstream(snapshot),
    )


def _quotas(snapshot: Snapshot, labels: dict[str, str]) -> dict[str, tuple[QuotaPolicy, AllocationPolicy]]:
    chosen: dict[str, tuple[QuotaPolicy, AllocationPolicy]] = {}
    for quota in snapshot.quotas:
        allocation = next((each for each in quota.allocations if each.workloads.matches(labels)), None)
        if allocation is not None:
            chosen.setdefault(quota.upstream, (quota, allocation))
    return chosen


def _default_upstream(snapshot: Snapshot) -> str | None:
    keys = [upstream.key for upstream in snapshot.upstreams]
    own = f"{snapshot.namespace}/default"
    if own in keys:
        return own
    named = [key for key in keys if key.endswith("/default")]
    candidates = named or keys
    return candidates[0] if len(candidates) == 1 else None
