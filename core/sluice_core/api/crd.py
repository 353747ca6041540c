"""The CustomResourceDefinitions: names, columns and schemas of the four kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sluice_core.api import canarysplit, modelroute, quotaallocation, upstream
from sluice_core.api.base import GROUP, VERSION, Resource, Value
from sluice_core.api.canarysplit_status import CanarySplit, CanarySplitStatus
from sluice_core.api.quotaallocation_status import QuotaAllocationStatus
from sluice_core.api.schema import Schema, spec_schema, status_schema

CATEGORY = "sluice"


class Column(Value, frozen=True, kw_only=True):
    """A column of `kubectl get`. `priority` 1 shows it under `-o wide` alone."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


class Kind(Value, frozen=True, kw_only=True):
    """A custom resource: its names, types, rules over its spec, and columns."""

    name: str
    plural: str
    short_name: str
    resource: type[Resource]
    spec: type[Value]
    status: type[Value]
    rules: Mapping[str, Any]
    columns: tuple[Column, ...]

    @property
    def crd_name(self) -> str:
        """Return the name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


def _ready(field: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{field}'


_READY = Column(name="Ready", path=_ready("status"))
_REASON = Column(name="Reason", path=_ready("reason"))
_MESSAGE = Column(name="Message", path=_ready("message"), priority=1)
_PODS = Column(name="Synced", path=".status.syncedPods")
_AGE = Column(name="Age", path=".metadata.creationTimestamp", type="date")

KINDS: tuple[Kind, ...] = (
    Kind(
        name="Upstream",
        plural="upstreams",
        short_name="up",
        resource=upstream.Upstream,
        spec=upstream.UpstreamSpec,
        status=upstream.UpstreamStatus,
        rules=upstream.SPEC_RULES,
        columns=(
            _READY,
            _REASON,
            Column(name="Tier", path=".spec.tier"),
            Column(name="RPM", path=".status.effectiveLimits.requestsPerMinute", type="integer"),
            Column(name="TPM", path=".status.effectiveLimits.tokensPerMinute", type="integer"),
            Column(name="Keys", path=".status.credentials"),
            Column(name="Consumers", path=".status.consumers", type="integer"),
            _PODS,
            _AGE,
            Column(name="URL", path=".spec.baseURL", priority=1),
            _MESSAGE,
        ),
    ),
    Kind(
        name="QuotaAllocation",
        plural="quotaallocations",
        short_name="qa",
        resource=quotaallocation.QuotaAllocation,
        spec=quotaallocation.QuotaAllocationSpec,
        status=QuotaAllocationStatus,
        rules=quotaallocation.SPEC_RULES,
        columns=(
            Column(name="Upstream", path=".spec.upstreamRef.name"),
            Column(name="Mode", path=".spec.mode"),
            _READY,
            _REASON,
            Column(name="Level", path=".status.level"),
            Column(name="Granted", path=".status.granted"),
            Column(name="Used", path=".status.used"),
            Column(name="Spent", path=".status.spent"),
            Column(name="Resets", path=".status.resetsAt"),
            _PODS,
            _AGE,
            Column(name="Store", path=".spec.store.type", priority=1),
            _MESSAGE,
        ),
    ),
    Kind(
        name="ModelRoute",
        plural="modelroutes",
        short_name="mr",
        resource=modelroute.ModelRoute,
        spec=modelroute.ModelRouteSpec,
        status=modelroute.ModelRouteStatus,
        rules=modelroute.SPEC_RULES,
        columns=(
            _READY,
            _REASON,
            Column(name="Targets", path=".status.targets"),
            Column(name="Pods", path=".status.pods", type="integer"),
            _PODS,
            _AGE,
            _MESSAGE,
        ),
    ),
    Kind(
        name="CanarySplit",
        plural="canarysplits",
        short_name="cs",
        resource=CanarySplit,
        spec=canarysplit.CanarySplitSpec,
        status=CanarySplitStatus,
        rules=canarysplit.SPEC_RULES,
        columns=(
            Column(name="Phase", path=".status.phase"),
            Column(name="Step", path=".status.step"),
            Column(name="Weight", path=".status.weight", type="integer"),
            Column(name="Verdict", path=".status.verdict"),
            Column(name="Why", path=".status.reason"),
            Column(name="Next", path=".status.nextTransitionTime"),
            _PODS,
            _READY,
            _AGE,
            Column(name="Route", path=".spec.routeRef.name", priority=1),
            Column(name="Stable", path=".spec.stable.version", priority=1),
            Column(name="Candidate", path=".spec.candidate.version", priority=1),
            Column(name="Applied", path=".status.appliedWeight", type="integer", priority=1),
            Column(name="Reason", path=_ready("reason"), priority=1),
        ),
    ),
)

BY_NAME: Mapping[str, Kind] = {kind.name: kind for kind in KINDS}


def schema(kind: Kind) -> Schema:
    """Return the schema of a whole resource of this kind."""
    summary = (kind.resource.__doc__ or "").strip()
    return {
        "description": summary,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"{GROUP}/{VERSION}.", "type": "string"},
            "kind": {"description": f"{kind.name}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(kind.spec, kind.rules),
            "status": status_schema(kind.status),
        },
    }


def manifest(kind: Kind) -> dict[str, Any]:
    """Return the CustomResourceDefinition as it is applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(each) for each in kind.columns],
                    "schema": {"openAPIV3Schema": schema(kind)},
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    written: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return {**written, "priority": column.priority} if column.priority else written
