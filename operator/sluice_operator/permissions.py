"""Every permission that the operator needs, as RBAC rules. The chart's roles are tested to be equal to these.

Nothing here lists or watches Secrets with their content, touches workloads, or writes to anything of a user's but the
status of Sluice's own kinds.
"""

from __future__ import annotations

from typing import Any, Final

from sluice_core.api.base import GROUP
from sluice_operator.kinds import CREDENTIALS_SECRET, POLICY_CONFIG_MAP, SLUICE_KINDS, SPEND_CONFIG_MAPS

Rule = dict[str, Any]
_PLURALS: Final = sorted(type_.plural for type_ in SLUICE_KINDS)

CLUSTER_RULES: Final[tuple[Rule, ...]] = (
    # observes the four kinds, pods and namespaces
    {"apiGroups": [GROUP], "resources": _PLURALS, "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": ["get", "list", "watch"]},
    # says what it found
    {"apiGroups": [GROUP], "resources": [f"{plural}/status" for plural in _PLURALS], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    # publishes policy: `create` cannot be limited by name, all else is; a list by name is allowed by the name
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
    {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": [POLICY_CONFIG_MAP],
        "verbs": ["delete", "get", "list", "patch"],
    },
    # reads the keys that upstreams name, in whatever namespace they are, and derives one Secret per namespace
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "get"]},
    {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [CREDENTIALS_SECRET],
        "verbs": ["delete", "list", "patch"],
    },
    # proves who speaks on the sync channel
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
)
"""Rules of the ClusterRole."""

NAMESPACE_RULES: Final[tuple[Rule, ...]] = (
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": ["sluice-operator"],
        "verbs": ["get", "update"],
    },
    # keeps the certificates of the sync server; creating and reading Secrets is allowed above
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["sluice-certificates"], "verbs": ["update"]},
    # remembers what was spent; creating them is allowed above
    {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": list(SPEND_CONFIG_MAPS),
        "verbs": ["get", "patch"],
    },
)
"""Rules of the Role in the operator's own namespace: leadership, its own certificates, and what was spent."""
