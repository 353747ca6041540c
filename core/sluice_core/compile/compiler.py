"""Puts the parts together: all resources of a cluster in, one sealed snapshot per namespace out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from sluice_core.api.base import Resource, Value
from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.manifests import AnyResource
from sluice_core.api.modelroute import ModelRoute
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.upstream import Upstream
from sluice_core.compile.quotas import PodsByNamespace, Quota, check_pods, compile_quotas, without_alert_urls
from sluice_core.compile.routes import check_selection, compile_route, precedence
from sluice_core.compile.splits import compile_splits
from sluice_core.compile.upstreams import NamespaceLabels, UpstreamIndex, compile_upstream
from sluice_core.problems import Problem, Report, ResourceId
from sluice_core.snapshot import QuotaPolicy, RoutePolicy, Snapshot, UpstreamPolicy, seal


class Compiled(Value, frozen=True, kw_only=True):
    """What came of the resources.

    `snapshots` has one for each namespace that was asked for. `problems` has only resources that have some. `upstreams`
    and `quotas` are all of them, uncut, for whoever shares out capacity; `consumers` counts, by upstream key, the
    allocations and route rules that reference it.
    """

    snapshots: dict[str, Snapshot]
    problems: dict[ResourceId, tuple[Problem, ...]]
    upstreams: tuple[UpstreamPolicy, ...]
    quotas: tuple[QuotaPolicy, ...]
    consumers: dict[str, int]


class _Sorted:
    """The resources by kind, oldest first, then by name."""

    __slots__ = ("quotas", "routes", "splits", "upstreams")

    def __init__(self, resources: Iterable[AnyResource]) -> None:
        self.upstreams: list[Upstream] = []
        self.quotas: list[QuotaAllocation] = []
        self.routes: list[ModelRoute] = []
        self.splits: list[CanarySplit] = []
        for resource in sorted(resources, key=_age):
            match resource:
                case Upstream():
                    self.upstreams.append(resource)
                case QuotaAllocation():
                    self.quotas.append(resource)
                case ModelRoute():
                    self.routes.append(resource)
                case CanarySplit():
                    self.splits.append(resource)
                case _:
                    assert_never(resource)


def _age(resource: Resource) -> tuple[str, str]:
    # RFC 3339 in UTC sorts as text. Resources from files have no age: their names decide.
    return resource.metadata.creation_timestamp, resource.key


def compile_namespaces(
    resources: Iterable[AnyResource],
    namespaces: NamespaceLabels,
    pods: PodsByNamespace | None = None,
    *,
    others: NamespaceLabels | None = None,
) -> Compiled:
    """Compile all resources of a cluster.

    Args:
        resources: every resource of all kinds, in any order; the rollout's state is read from `CanarySplit.status`.
        namespaces: the namespaces that need a snapshot, with their labels.
        pods: the labels of the injected pods by namespace, where they are known. They size the safe share and tell
            what selects nobody; what a pod may do does not depend on them otherwise.
        others: namespaces that get no snapshot, with their labels, so that what their resources may reference is known.
    """
    report, by_kind, labels = Report(), _Sorted(resources), {**(others or {}), **namespaces}
    upstreams = _index(by_kind.upstreams, labels, report)
    quotas = compile_quotas(by_kind.quotas, upstreams, labels, report)
    routes = _compile_routes(by_kind, upstreams, pods, report)

    used = {namespace: _used(namespace, upstreams, routes.get(namespace, ())) for namespace in namespaces}
    wholes = _size(quotas, used, pods, report)
    for_pods = {key: without_alert_urls(whole) for key, whole in wholes.items()}
    snapshots = {
        namespace: seal(
            Snapshot(
                namespace=namespace,
                upstreams=tuple(upstreams.policies[key] for key in sorted(used[namespace])),
                quotas=tuple(quotas[key].cut(for_pods[key], namespace) for key in sorted(used[namespace])),
                routes=routes.get(namespace, ()),
            )
        )
        for namespace in sorted(namespaces)
    }
    return Compiled(
        snapshots=snapshots,
        problems=report.problems(),
        upstreams=tuple(upstreams.policies.values()),
        quotas=tuple(wholes.values()),
        consumers=_consumers(upstreams, quotas, routes),
    )


def _index(resources: Sequence[Upstream], namespaces: NamespaceLabels, report: Report) -> UpstreamIndex:
    by_key = {upstream.key: upstream for upstream in sorted(resources, key=lambda each: each.key)}
    policies = {key: compile_upstream(upstream, report) for key, upstream in by_key.items()}
    return UpstreamIndex(by_key, policies, namespaces)


def _compile_routes(
    by_kind: _Sorted, upstreams: UpstreamIndex, pods: PodsByNamespace | None, report: Report
) -> dict[str, tuple[RoutePolicy, ...]]:
    """Return the routes of each namespace, in order of precedence."""
    splits = compile_splits(by_kind.splits, {route.key: route for route in by_kind.routes}, report)
    by_namespace: dict[str, list[ModelRoute]] = {}
    for route in sorted(by_kind.routes, key=precedence):
        by_namespace.setdefault(route.metadata.namespace, []).append(route)
    compiled: dict[str, tuple[RoutePolicy, ...]] = {}
    for namespace, routes in by_namespace.items():
        check_selection(routes, None if pods is None else pods.get(namespace, ()), report)
        compiled[namespace] = tuple(compile_route(route, upstreams, splits, report) for route in routes)
    return compiled


def _references(routes: Iterable[RoutePolicy]) -> Iterable[set[str]]:
    """Return the upstreams that each rule references."""
    for route in routes:
        for rule in route.rules:
            targets = {target.upstream for target in rule.targets}
            yield targets | {fallback.upstream for fallback in rule.fallbacks if fallback.upstream is not None}


def _used(namespace: str, upstreams: UpstreamIndex, routes: Iterable[RoutePolicy]) -> frozenset[str]:
    """Return the upstreams that a namespace's pods may call: its own, and those that its routes reference."""
    own = {key for key in upstreams.policies if key.startswith(f"{namespace}/")}
    return frozenset(own.union(*_references(routes)))


def _size(
    quotas: Mapping[str, Quota], used: Mapping[str, frozenset[str]], pods: PodsByNamespace | None, report: Report
) -> dict[str, QuotaPolicy]:
    """Return the whole of each quota, sized by the pods that use its upstream."""
    wholes: dict[str, QuotaPolicy] = {}
    for key in sorted(quotas):
        concerned = {name: labels for name, labels in (pods or {}).items() if key in used.get(name, ())}
        counts = quotas[key].pods_by_allocation(concerned)
        if pods is not None:
            check_pods(quotas[key], counts, report)
        wholes[key] = quotas[key].policy(counts)
    return wholes


def _consumers(
    upstreams: UpstreamIndex, quotas: Mapping[str, Quota], routes: Mapping[str, Iterable[RoutePolicy]]
) -> dict[str, int]:
    counts = {key: len(quotas[key].named) for key in upstreams.policies}
    for of_namespace in routes.values():
        for references in _references(of_namespace):
            for key in references:
                counts[key] += 1
    return counts
