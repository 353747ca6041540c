"""What the injector asks the API server beyond certificates: whether nodes know native sidecars, what a namespace says.

Both answers have a default, so that pods are admitted in the same time whether or not the API server answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import structlog

from sluice_operator.cluster import ApiError, Cluster
from sluice_operator.injector import WHEN_UNCONFIGURED_ANNOTATION
from sluice_operator.injector_settings import NativeSidecar, WhenUnconfigured
from sluice_operator.kinds import NAMESPACES, ResourceType

NODES: Final = ResourceType("v1", "Node", "nodes", namespaced=False)
NATIVE_SINCE: Final = (1, 29)
CHOICE_SECONDS: Final = 10.0
MAX_CHOICES: Final = 4096

_log = structlog.get_logger()


class _NodeInfo(msgspec.Struct, frozen=True, rename="camel"):
    kubelet_version: str = ""


class _NodeStatus(msgspec.Struct, frozen=True, rename="camel"):
    node_info: _NodeInfo = _NodeInfo()


class Node(msgspec.Struct, frozen=True):
    """What matters of a node."""

    status: _NodeStatus = _NodeStatus()


class _Annotated(msgspec.Struct, frozen=True):
    annotations: dict[str, str] | None = None


class _Namespace(msgspec.Struct, frozen=True):
    metadata: _Annotated = _Annotated()


def knows_native(kubelet_versions: Iterable[str]) -> bool:
    """Tell whether all of these kubelets run native sidecars; a kubelet is never newer than its API server."""
    versions = [re.match(r"v(\d+)\.(\d+)", version) for version in kubelet_versions]
    return all(found is None or (int(found[1]), int(found[2])) >= NATIVE_SINCE for found in versions)


async def detect_native(cluster: Cluster, setting: NativeSidecar, default: bool) -> bool:
    """Return whether pods get a native sidecar; `default` where the nodes cannot be asked."""
    if setting is not NativeSidecar.AUTO:
        return setting is NativeSidecar.ALWAYS
    try:
        nodes = await cluster.list_all(NODES, Node)
    except (ApiError, msgspec.ValidationError) as error:
        _log.warning("nodes_not_listed", error=str(error), native=default)
        return default
    return knows_native(node.status.node_info.kubelet_version for node in nodes)


class NamespaceChoices:
    """What each namespace's annotation says about pods without a policy, remembered for a few seconds."""

    __slots__ = ("_clock", "_cluster", "_known")

    def __init__(self, cluster: Cluster, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._known: dict[str, tuple[float, WhenUnconfigured | None]] = {}

    async def get(self, namespace: str) -> WhenUnconfigured | None:
        """Return the namespace's choice, the last known one if the API server does not answer."""
        until, choice = self._known.get(namespace, (0.0, None))
        now = self._clock()
        if now < until:
            return choice
        try:
            found = msgspec.convert(await self._cluster.get(NAMESPACES, None, namespace), _Namespace)
            choice = _parse((found.metadata.annotations or {}).get(WHEN_UNCONFIGURED_ANNOTATION))
        except (ApiError, msgspec.ValidationError) as error:
            _log.warning("namespace_not_read", namespace=namespace, error=str(error))
        if len(self._known) >= MAX_CHOICES:
            self._known.clear()
        self._known[namespace] = (now + CHOICE_SECONDS, choice)
        return choice


def _parse(text: str | None) -> WhenUnconfigured | None:
    return WhenUnconfigured(text) if text in tuple(WhenUnconfigured) else None
