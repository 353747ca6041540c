"""Pods that should have a sidecar and have none: created while the injector was away, or before they were opted in."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sluice_operator.world import Pod, World, wants_injection

MESSAGE: Final = (
    "the pod is opted in and has no sidecar, so its calls are not governed: it was created while the injector was "
    "away, or before it was opted in; delete it, and its controller makes one with a sidecar"
)


def uninjected(world: World, exempt: Collection[str] = ()) -> tuple[Pod, ...]:
    """Return the running pods that lack their sidecar, in a stable order.

    `exempt` are the namespaces that the webhook is not asked about: a label there asks for nothing.
    """
    namespaces = world.namespaces()
    found = [
        pod
        for pod in world.pods()
        if not (pod.injected or pod.leaving or pod.barred)
        and pod.namespace not in exempt
        and wants_injection(pod, namespaces.get(pod.namespace))
    ]
    return tuple(sorted(found, key=lambda pod: (pod.namespace, pod.name)))
