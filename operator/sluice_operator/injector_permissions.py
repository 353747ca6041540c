"""Every permission that the injector needs, as RBAC rules. The chart's roles are tested to be equal to these."""

from __future__ import annotations

from typing import Any, Final

Rule = dict[str, Any]

CLUSTER_RULES: Final[tuple[Rule, ...]] = (
    # reads what a namespace says about pods without a policy
    {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
    # keeps its authority in its own webhook configuration
    {
        "apiGroups": ["admissionregistration.k8s.io"],
        "resources": ["mutatingwebhookconfigurations"],
        "resourceNames": ["sluice-injector"],
        "verbs": ["get", "update"],
    },
)
"""Rules of the ClusterRole."""

NODE_RULES: Final[tuple[Rule, ...]] = ({"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},)
"""Added to the ClusterRole where nodes may be too old for native sidecars, to see whether they are."""

NAMESPACE_RULES: Final[tuple[Rule, ...]] = (
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["sluice-certificates"], "verbs": ["get", "update"]},
    # makes the Secret anew if somebody deletes it; `create` cannot be limited by name
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
)
"""Rules of the Role in the injector's own namespace: certificates."""
