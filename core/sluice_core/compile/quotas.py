"""Quotas as policy. Every upstream has exactly one: that of its QuotaAllocation, or one that shares nothing out."""

from __future__ import annotations

import zoneinfo
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from sluice_core.api.base import UpstreamRef
from sluice_core.api.quotaallocation import Allocation, Budget, PerUser, QuotaAllocation, QuotaAllocationSpec, StoreType
from sluice_core.compile.selectors import implies
from sluice_core.compile.tiers import has_any_limit
from sluice_core.compile.upstreams import NamespaceLabels, UpstreamIndex, namespace_labels, store_password_file
from sluice_core.limits.accounts import UNALLOCATED
from sluice_core.limits.money import usd_micros, usd_text
from sluice_core.limits.safe import reserved_share, rounded_up, safe_limits, safe_model_limits
from sluice_core.problems import Reason, Report, ResourceId
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, StorePolicy, UpstreamPolicy

PodsByNamespace = Mapping[str, Sequence[Mapping[str, str]]]
"""The labels of the injected pods, by namespace."""


class Quota:
    """One upstream's quota, before it is cut to what concerns one namespace."""

    __slots__ = ("_namespaces", "_spec", "_upstream", "key")

    def __init__(
        self, key: str, spec: QuotaAllocationSpec, upstream: UpstreamPolicy, namespaces: NamespaceLabels
    ) -> None:
        self.key = key
        self._spec = spec
        self._upstream = upstream
        self._namespaces = namespaces

    @property
    def named(self) -> Sequence[Allocation]:
        """Return the allocations that the user wrote."""
        return self._spec.allocations

    def allocations(self, namespace: str) -> list[Allocation]:
        """Return the allocations that pods of a namespace may have; the last one takes all that are left."""
        labels = namespace_labels(self._namespaces, namespace)
        concerned = [each for each in self.named if each.namespaces is None or each.namespaces.matches(labels)]
        return [*concerned, self._unallocated()]

    def pods_by_allocation(self, pods: PodsByNamespace) -> dict[str, int]:
        """Count the pods of each allocation over all namespaces that are given."""
        counts: dict[str, int] = {}
        for namespace in pods:
            allocations = self.allocations(namespace)
            alike = Counter(frozenset(labels.items()) for labels in pods[namespace])
            for labels, number in alike.items():
                own = dict(labels)
                name = next(each.name for each in allocations if each.workloads.matches(own))
                counts[name] = counts.get(name, 0) + number
        return counts

    def policy(self, counts: Mapping[str, int]) -> QuotaPolicy:
        """Return the whole of the quota, for whoever shares it out; `counts` are the pods of each allocation."""
        every = (*self.named, self._unallocated())
        in_redis = self._spec.store.type is StoreType.REDIS
        clusters = self._spec.store.clusters or 1  # each has pods of its own, and is cut off on its own
        return QuotaPolicy(
            key=self.key,
            upstream=self._upstream.key,
            store=_store(self.key, self._spec),
            safe_reserve=reserved_share(each.share_percent for each in every) if in_redis else 0,
            budget=self._spec.budget,
            degradation=self._spec.degradation,
            allocations=tuple(self._allocation(each, counts.get(each.name, 0), clusters) for each in every),
        )

    def cut(self, whole: QuotaPolicy, namespace: str) -> QuotaPolicy:
        """Return of the whole what concerns the pods of one namespace."""
        names = {each.name for each in self.allocations(namespace)}
        own = (each for each in whole.allocations if each.name in names)
        allocations = (msgspec.structs.replace(each, pods=max(1, rounded_up(each.pods))) for each in own)
        return msgspec.structs.replace(whole, allocations=tuple(allocations))

    def _unallocated(self) -> Allocation:
        # Pods that no other allocation selects have no guaranteed share: they live on what others leave idle.
        return Allocation(name=UNALLOCATED, share_percent=0 if self.named else 100)

    def _allocation(self, allocation: Allocation, pods: int, clusters: int) -> AllocationPolicy:
        sharers = max(1, rounded_up(pods)) * clusters
        return AllocationPolicy(
            name=allocation.name,
            workloads=allocation.workloads,
            share_percent=allocation.share_percent,
            priority=allocation.priority,
            mode=allocation.mode or self._spec.mode,
            per_user=_in_one_of(clusters, allocation.per_user) if allocation.per_user is not None else None,
            queue=allocation.queue,
            budget=allocation.budget,
            degradation=allocation.degradation,
            pods=pods,
            safe=safe_limits(self._upstream.limits, allocation.share_percent, sharers),
            model_safe=safe_model_limits(self._upstream.model_limits, allocation.share_percent, sharers),
        )


def _in_one_of(clusters: int, per_user: PerUser) -> PerUser:
    """Return what users may in one of so many clusters: an even part, for clusters count users each for itself."""
    if clusters == 1:
        return per_user

    def part(limit: int | None) -> int | None:
        return max(1, limit // clusters) if limit else limit

    classes = (
        msgspec.structs.replace(
            each,
            requests_per_minute=part(each.requests_per_minute),
            tokens_per_minute=part(each.tokens_per_minute),
        )
        for each in per_user.classes
    )
    return msgspec.structs.replace(
        per_user,
        requests_per_minute=part(per_user.requests_per_minute),
        tokens_per_minute=part(per_user.tokens_per_minute),
        daily_usd=usd_text(part(usd_micros(per_user.daily_usd)) or 0) if per_user.daily_usd is not None else None,
        classes=tuple(classes),
    )


def _store(key: str, spec: QuotaAllocationSpec) -> StorePolicy:
    store = spec.store
    if store.type is StoreType.LEASES:
        return StorePolicy()
    namespace, _, name = key.partition("/")
    return StorePolicy(
        type=store.type,
        url=store.url or "",
        name=store.name or key,
        username=store.username,
        password_file=store_password_file(namespace, name) if store.secret_ref is not None else None,
        ca_bundle=store.tls.ca_bundle if store.tls is not None else None,
    )


def without_alert_urls(quota: QuotaPolicy) -> QuotaPolicy:
    """Return what pods may know: an alert's address often carries a token, and only the operator calls it."""

    def silent(budget: Budget | None) -> Budget | None:
        return msgspec.structs.replace(budget, alert_url=None) if budget else None

    allocations = (msgspec.structs.replace(each, budget=silent(each.budget)) for each in quota.allocations)
    return msgspec.structs.replace(quota, budget=silent(quota.budget), allocations=tuple(allocations))


def compile_quotas(
    resources: Sequence[QuotaAllocation],
    upstreams: UpstreamIndex,
    namespaces: NamespaceLabels,
    report: Report,
) -> dict[str, Quota]:
    """Return every upstream's quota by upstream key. Of two quotas for one upstream, the older one counts."""
    chosen: dict[str, QuotaAllocation] = {}
    for quota in resources:  # oldest first
        key = _owned_upstream(quota, upstreams, report)
        if key is None:
            continue
        if key in chosen:
            message = (
                f"QuotaAllocation {chosen[key].key} already shares out Upstream {key}; "
                "move these allocations into it, and delete this one"
            )
            report.error(_id(quota), Reason.QUOTA_CONFLICT, "spec.upstreamRef", message)
            continue
        chosen[key] = quota
    quotas: dict[str, Quota] = {}
    for key, upstream in upstreams.policies.items():
        resource = chosen.get(key)
        if resource is None:
            spec = QuotaAllocationSpec(upstream_ref=UpstreamRef(name=key), allocations=())
            quotas[key] = Quota(f"{key}:whole", spec, upstream, namespaces)
        else:
            quotas[key] = Quota(resource.key, _mended(resource, upstream, report), upstream, namespaces)
    return quotas


def check_pods(quota: Quota, counts: Mapping[str, int], report: Report) -> None:
    """Note the allocations that no pod has."""
    for index, allocation in enumerate(quota.named):
        if allocation.name not in counts:
            message = (
                f"no injected pod has the labels of allocation {allocation.name}, so its share is lent to others; "
                "correct them, or label and restart the pods"
            )
            resource = ResourceId("QuotaAllocation", quota.key)
            report.warning(resource, Reason.NOBODY_SELECTED, f"spec.allocations[{index}].workloads", message)


def _owned_upstream(quota: QuotaAllocation, upstreams: UpstreamIndex, report: Report) -> str | None:
    reference, namespace = quota.spec.upstream_ref, quota.metadata.namespace
    key = f"{reference.namespace or namespace}/{reference.name}"
    if key in upstreams.policies and reference.namespace not in (None, namespace):
        message = (
            f"a QuotaAllocation shares out a whole account, so it belongs to the account's owner; "
            f"move it to namespace {reference.namespace}, and choose there by allocations[].namespaces"
        )
        report.error(_id(quota), Reason.NOT_OWNED, "spec.upstreamRef.namespace", message)
        return None
    return upstreams.resolve(reference, namespace, _id(quota), "spec.upstreamRef", report)


def _mended(quota: QuotaAllocation, upstream: UpstreamPolicy, report: Report) -> QuotaAllocationSpec:
    """Return the spec with what cannot be in force left out or replaced, each noted."""
    resource, spec = _id(quota), quota.spec
    if not has_any_limit(upstream.limits) and not upstream.model_limits:
        message = f"Upstream {upstream.key} has no limits, so there is nothing to share; set its tier or limits"
        report.warning(resource, Reason.NOTHING_TO_SHARE, "spec.upstreamRef", message)
    allocations = _within_whole(_uniquely_named(spec.allocations, resource, report), resource, report)
    _check_reachable(allocations, resource, report)
    return msgspec.structs.replace(
        spec,
        budget=_in_known_zone(spec.budget, "spec.budget", resource, report),
        allocations=tuple(
            msgspec.structs.replace(
                each, budget=_in_known_zone(each.budget, f"spec.allocations[{index}].budget", resource, report)
            )
            for index, each in enumerate(allocations)
        ),
    )


def _uniquely_named(allocations: Sequence[Allocation], resource: ResourceId, report: Report) -> list[Allocation]:
    kept: dict[str, Allocation] = {}
    for index, allocation in enumerate(allocations):
        if allocation.name in kept or allocation.name == UNALLOCATED:
            message = f"the name {allocation.name} is taken, so this allocation is not in force; choose another one"
            report.error(resource, Reason.ALLOCATION_NAME_TAKEN, f"spec.allocations[{index}].name", message)
        else:
            kept[allocation.name] = allocation
    return list(kept.values())


def _within_whole(allocations: list[Allocation], resource: ResourceId, report: Report) -> list[Allocation]:
    total = sum(each.share_percent for each in allocations)
    if total <= 100:
        return allocations
    message = f"the shares add up to {total} percent, so each is cut in proportion; lower them to 100 in all"
    report.error(resource, Reason.SHARES_EXCEED_WHOLE, "spec.allocations", message)
    return [msgspec.structs.replace(each, share_percent=each.share_percent * 100 // total) for each in allocations]


def _check_reachable(allocations: Sequence[Allocation], resource: ResourceId, report: Report) -> None:
    for index, allocation in enumerate(allocations):
        for earlier in allocations[:index]:
            same_namespaces = earlier.namespaces is None or earlier.namespaces == allocation.namespaces
            if same_namespaces and implies(allocation.workloads, earlier.workloads):
                message = (
                    f"allocation {earlier.name} before it selects all pods of {allocation.name}; "
                    f"put {allocation.name} first, or make the selector of {earlier.name} narrower"
                )
                where = f"spec.allocations[{index}].workloads"
                report.warning(resource, Reason.ALLOCATION_UNREACHABLE, where, message)
                break


def _in_known_zone(budget: Budget | None, path: str, resource: ResourceId, report: Report) -> Budget | None:
    if budget is None or _is_zone(budget.time_zone):
        return budget
    message = (
        f'"{budget.time_zone}" is no IANA time zone, so days and months are counted in UTC; '
        'use a name such as "Europe/Berlin"'
    )
    report.error(resource, Reason.UNKNOWN_TIME_ZONE, f"{path}.timeZone", message)
    return msgspec.structs.replace(budget, time_zone="UTC")


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a folder, such as "America"
        return False
    return True


def _id(quota: QuotaAllocation) -> ResourceId:
    return ResourceId("QuotaAllocation", quota.key)
