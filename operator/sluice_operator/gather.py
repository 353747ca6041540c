"""What a round of the loop starts from, taken out of the world: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sluice_core.api.base import Value
from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.modelroute import ModelRoute
from sluice_core.compile import AnyResource
from sluice_operator.kinds import INJECT_LABEL
from sluice_operator.world import Held, World, wants_injection


class Inputs(Value, frozen=True, kw_only=True):
    """The resources, and the namespaces and pods that they are for.

    `namespaces` are those that get a policy, with their labels; `leaving` are being deleted and get nothing more.
    `pods` are the labels of the pods that have a sidecar, `running` how many of these serve. A pod that cannot be
    scheduled runs no old policy, so no rollout waits for it.
    """

    held: tuple[Held, ...] = ()
    namespaces: dict[str, dict[str, str]] = {}
    leaving: frozenset[str] = frozenset()
    pods: dict[str, tuple[dict[str, str], ...]] = {}
    running: dict[str, int] = {}

    @property
    def resources(self) -> tuple[AnyResource, ...]:
        """Return the resources that can be read and are not being deleted."""
        return tuple(
            each.resource
            for each in self.held
            if each.resource is not None and each.metadata.deletion_timestamp is None
        )


def gather(world: World, exempt: Collection[str] = ()) -> Inputs:
    """Return the inputs of a round.

    A namespace gets a policy when it has pods with a sidecar, and before that when somebody has said that it will: by
    the label on it or on a pod, or by a route or split in it. So the first pod finds its policy mounted when it starts.
    In an `exempt` namespace the injector adds no sidecar, so a label says nothing there.
    """
    namespaces, held = world.namespaces(), world.held()
    leaving = frozenset(each.name for each in namespaces.values() if each.leaving)
    pods = [pod for pod in world.pods() if not pod.leaving]
    labelled = {pod.namespace for pod in pods if wants_injection(pod, namespaces.get(pod.namespace))}
    labelled |= {name for name, each in namespaces.items() if each.labels.get(INJECT_LABEL) == "true"}
    consumers = labelled.difference(exempt) | {pod.namespace for pod in pods if pod.injected}
    consumers |= {each.metadata.namespace for each in held if isinstance(each.resource, ModelRoute | CanarySplit)}
    injected: dict[str, list[dict[str, str]]] = {}
    for pod in sorted(pods, key=lambda each: (each.namespace, each.name)):
        if pod.injected:
            injected.setdefault(pod.namespace, []).append(pod.labels)
    running = Counter(pod.namespace for pod in pods if pod.injected and pod.running)
    return Inputs(
        held=held,
        namespaces={name: namespaces[name].labels for name in sorted(consumers) if name in namespaces},
        leaving=leaving,
        pods={namespace: tuple(labels) for namespace, labels in injected.items()},
        running=dict(running),
    )
