"""The resource types of the API server that the operator touches, and where they live."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import quote

from sluice_core.api.base import API_VERSION


class ResourceType(NamedTuple):
    """One resource type, as the API server names it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of a collection, an object or a subresource; without a namespace, of all namespaces."""
        root = "/api/" if "/" not in self.api_version else "/apis/"
        parts = [root + self.api_version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)

    @property
    def group(self) -> str:
        """Return the API group, empty for the core one."""
        return self.api_version.rpartition("/")[0]


UPSTREAMS: Final = ResourceType(API_VERSION, "Upstream", "upstreams")
QUOTA_ALLOCATIONS: Final = ResourceType(API_VERSION, "QuotaAllocation", "quotaallocations")
MODEL_ROUTES: Final = ResourceType(API_VERSION, "ModelRoute", "modelroutes")
CANARY_SPLITS: Final = ResourceType(API_VERSION, "CanarySplit", "canarysplits")
SLUICE_KINDS: Final = (UPSTREAMS, QUOTA_ALLOCATIONS, MODEL_ROUTES, CANARY_SPLITS)

PODS: Final = ResourceType("v1", "Pod", "pods")
NAMESPACES: Final = ResourceType("v1", "Namespace", "namespaces", namespaced=False)
OBSERVED: Final = (*SLUICE_KINDS, PODS, NAMESPACES)

CONFIG_MAPS: Final = ResourceType("v1", "ConfigMap", "configmaps")
SECRETS: Final = ResourceType("v1", "Secret", "secrets")
EVENTS: Final = ResourceType("v1", "Event", "events")
LEASES: Final = ResourceType("coordination.k8s.io/v1", "Lease", "leases")
TOKEN_REVIEWS: Final = ResourceType("authentication.k8s.io/v1", "TokenReview", "tokenreviews", namespaced=False)

POLICY_CONFIG_MAP: Final = "sluice-policy"
POLICY_KEY: Final = "snapshot.json"
SPEND_CONFIG_MAPS: Final = tuple(f"sluice-spend-{number}" for number in range(8))
CREDENTIALS_SECRET: Final = "sluice-credentials"  # noqa: S105 -- the Secret's name, not a secret
FIELD_MANAGER: Final = "sluice-operator"
INJECT_LABEL: Final = "sluice.dev/inject"
SIDECAR_CONTAINER: Final = "sluice"
MANAGED_LABELS: Final = {"app.kubernetes.io/managed-by": "sluice", "app.kubernetes.io/part-of": "sluice"}
RELEASE_LABELS: Final = {"app.kubernetes.io/part-of": "sluice"}
"""Of objects that belong to the chart's release, and that are made anew when somebody deletes them. A label that says
otherwise than the chart who manages them would be a conflict at its next upgrade, and fail it."""
