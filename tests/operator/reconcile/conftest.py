"""The operator moved by hand, round by round, and a look at what came of it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from sluice_core.rollout.observation import Plan
from sluice_core.snapshot import Snapshot, decode
from sluice_operator.cluster import Cluster
from sluice_operator.events import Events
from sluice_operator.fleet import Fleet, NoFleet
from sluice_operator.kinds import (
    CONFIG_MAPS,
    EVENTS,
    MODEL_ROUTES,
    NAMESPACES,
    PODS,
    SECRETS,
    UPSTREAMS,
    ResourceType,
)
from sluice_operator.observe import Observer
from sluice_operator.permissions import CLUSTER_RULES, NAMESPACE_RULES
from sluice_operator.reconcile import Reconciler
from sluice_operator.rollouts import Rollouts
from sluice_operator.sync import PolicyBoard
from sluice_operator.world import World

KEY = base64.b64encode(b"sk-live-1").decode()


class Still:
    """Rollouts that stay where they are."""

    def plan(self, split, synced) -> Plan:
        return Plan(status=split.status)

    def ask(self, split, questions) -> None:
        pass

    def keep(self, splits) -> None:
        pass


class Operator:
    """The operator's parts, moved by hand: `round()` sees what there is and does one round."""

    def __init__(self, cluster: Cluster, clock: Any, rollouts: Rollouts, fleet: Fleet) -> None:
        self.world = World()
        self.clock = clock
        self.board = PolicyBoard()
        self.observer = Observer(self.world, cluster, clock=clock, resync_seconds=60)
        self.reconciler = Reconciler(
            cluster,
            self.world,
            fleet=fleet,
            rollouts=rollouts,
            board=self.board,
            events=Events(cluster, identity="a", wall=clock),
            clock=clock,
            wall=clock,
            exempt_namespaces=frozenset({"sluice-system", "kube-system"}),
        )

    async def round(self) -> None:
        self.clock.advance(11)
        await self.observer.relist()
        await self.reconciler.lead()


@pytest.fixture(autouse=True)
def rbac(api) -> None:
    """Everything here works with the permissions that the chart gives, and not one more."""
    api.enforce(CLUSTER_RULES, "sluice-system", NAMESPACE_RULES)


@pytest.fixture
def operators(cluster: Cluster, clock) -> Callable[..., Operator]:
    """Make operators, one after the other, on the same cluster."""
    return lambda rollouts=None, fleet=None: Operator(cluster, clock, rollouts or Still(), fleet or NoFleet())


@pytest.fixture
def operator(operators) -> Operator:
    return operators()


@pytest.fixture
def team(api, put_pod):
    """A platform namespace with an upstream, and a team that uses it from one injected pod."""
    api.put(NAMESPACES, "platform")
    api.put(NAMESPACES, "team", metadata={"labels": {"team": "yes"}})
    api.put(SECRETS, "openai", "platform", data={"primary": KEY})
    api.put(
        UPSTREAMS,
        "openai",
        "platform",
        spec={
            "baseURL": "https://api.openai.com/v1",
            "credentials": [{"name": "primary", "secretKeyRef": {"name": "openai", "key": "primary"}}],
            "allowedNamespaces": {"selector": {"matchLabels": {"team": "yes"}}},
        },
    )
    rule = {
        "name": "default",
        "targets": [{"upstreamRef": {"name": "openai", "namespace": "platform"}, "model": "gpt-4.1"}],
    }
    api.put(MODEL_ROUTES, "chat", "team", spec={"rules": [rule]})
    put_pod("chat-1", "team")


@pytest.fixture
def put_pod(api) -> Callable[..., None]:
    """Create a pod, by default a running one with a sidecar."""

    def put(name: str, namespace: str, *, injected: bool = True, phase: str = "Running", **labels: str) -> None:
        sidecar = [{"name": "sluice"}] if injected else []
        api.put(
            PODS,
            name,
            namespace,
            metadata={"labels": {"app": "chat", **labels}},
            spec={"containers": [{"name": "app"}], "initContainers": sidecar},
            status={"phase": phase},
        )

    return put


class Seen:
    """A look at what the operator has written."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def policy(self, namespace: str = "team") -> Snapshot | None:
        stored = self._api.object(CONFIG_MAPS, "sluice-policy", namespace)
        return None if stored is None else decode(stored["data"]["snapshot.json"].encode())

    def condition(self, type_: ResourceType, name: str, namespace: str, wanted: str) -> dict[str, Any]:
        conditions = self._api.object(type_, name, namespace).get("status", {}).get("conditions", [])
        return next(each for each in conditions if each["type"] == wanted)

    def reasons(self) -> set[str]:
        return {event["reason"] for event in self._api.all(EVENTS)}


@pytest.fixture
def seen(api) -> Seen:
    return Seen(api)
