"""Which workloads a folder of policies speaks of: each gets a sidecar of its own, as each pod does in a cluster."""

from __future__ import annotations

from collections.abc import Iterable

from sluice_core.api.base import LabelSelector, Resource, SelectorOperator, Value
from sluice_core.api.modelroute import ModelRoute
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.upstream import Upstream

MAX_WORKLOADS = 8


class Workload(Value, frozen=True, kw_only=True):
    """A pod that might exist: a namespace and labels. `name` is unique, such as `default/app=chat`."""

    namespace: str = "default"
    labels: dict[str, str] = {}

    @property
    def name(self) -> str:
        """Return the workload's name for people and directories."""
        labels = ",".join(f"{key}={value}" for key, value in sorted(self.labels.items()))
        return f"{self.namespace}/{labels or 'any'}"


def parse_workload(text: str) -> Workload:
    """Return the workload written as `[namespace/]key=value[,key=value...]`.

    Raises:
        ValueError: the text has another form.
    """
    namespace, separator, rest = text.rpartition("/") if "=" not in text.partition("/")[0] else ("", "", text)
    labels = {}
    for pair in rest.split(","):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{text!r}: write a workload as [namespace/]key=value[,key=value]")
        labels[key] = value
    return Workload(namespace=namespace if separator else "default", labels=labels)


def discover(resources: Iterable[Resource]) -> tuple[Workload, ...]:
    """Return one workload for each distinct selector in the resources, in order of first mention.

    A selector that holds for any pod adds no workload where others exist in its namespace, because those fall under it.
    """
    found: dict[str, Workload] = {}
    anywhere: dict[str, Workload] = {}
    upstreams = []
    for resource in resources:
        if isinstance(resource, Upstream):
            upstreams.append(resource)
        for selector in _selectors(resource):
            workload = Workload(namespace=resource.metadata.namespace, labels=_example_labels(selector))
            (found if workload.labels else anywhere).setdefault(workload.name, workload)
    namespaces = {workload.namespace for workload in found.values()}
    open_ones = [workload for workload in anywhere.values() if workload.namespace not in namespaces]
    if not found and not open_ones:  # accounts alone are enough to call them
        open_ones = [Workload(namespace=each) for each in sorted({each.metadata.namespace for each in upstreams})]
    return (*found.values(), *open_ones)[:MAX_WORKLOADS]


def _selectors(resource: Resource) -> list[LabelSelector]:
    match resource:
        case ModelRoute():
            return [resource.spec.workloads]
        case QuotaAllocation():
            return [allocation.workloads for allocation in resource.spec.allocations]
        case _:
            return []


def _example_labels(selector: LabelSelector) -> dict[str, str]:
    """Return labels that the selector matches, as far as its expressions name values."""
    labels = dict(selector.match_labels)
    for expression in selector.match_expressions:
        if expression.operator is SelectorOperator.IN and expression.values:
            labels.setdefault(expression.key, expression.values[0])
        elif expression.operator is SelectorOperator.EXISTS:
            labels.setdefault(expression.key, "any")
    return labels
