"""Rounds of the loop against an API server: create, change, drift, delete, faults."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from sluice_core.api.canarysplit_status import CanarySplitStatus
from sluice_core.api.modelroute import ModelRouteStatus
from sluice_core.api.quotaallocation import QuotaAllocationStatus
from sluice_core.api.upstream import UpstreamStatus
from sluice_core.rollout.observation import Plan, Question, RolloutEvent
from sluice_core.snapshot import decode
from sluice_operator.cluster import Cluster
from sluice_operator.events import Events
from sluice_operator.fleet import NoFleet
from sluice_operator.kinds import (
    CANARY_SPLITS,
    CONFIG_MAPS,
    EVENTS,
    MODEL_ROUTES,
    NAMESPACES,
    OBSERVED,
    PODS,
    QUOTA_ALLOCATIONS,
    SECRETS,
    UPSTREAMS,
)
from sluice_operator.observe import Observer
from sluice_operator.permissions import CLUSTER_RULES, NAMESPACE_RULES
from sluice_operator.reconcile import Reconciler
from sluice_operator.sync import PolicyBoard
from sluice_operator.world import World

KEY = base64.b64encode(b"sk-live-1").decode()


class Operator:
    """The operator's parts, moved by hand: `round()` sees what there is and does one round."""

    def __init__(self, cluster: Cluster, clock: Any, **parts: Any) -> None:
        self.world = World()
        self.clock = clock
        self.board = PolicyBoard()
        self.observer = Observer(self.world, cluster, clock=clock, resync_seconds=60)
        self.reconciler = Reconciler(
            cluster,
            self.world,
            fleet=parts.get("fleet", NoFleet()),
            rollouts=parts.get("rollouts", Scripted(0)),
            board=self.board,
            events=Events(cluster, identity="a", wall=clock),
            clock=clock,
            wall=clock,
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
def operator(cluster: Cluster, clock, api) -> Operator:
    api.status_types = {
        "upstreams": UpstreamStatus,
        "modelroutes": ModelRouteStatus,
        "quotaallocations": QuotaAllocationStatus,
        "canarysplits": CanarySplitStatus,
    }
    return Operator(cluster, clock)


@pytest.fixture
def team(api):
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
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec())
    pod(api, "chat-1", "team")


def route_spec(upstream: str = "openai", model: str = "gpt-4.1") -> dict[str, Any]:
    reference = {"name": upstream, "namespace": "platform"}
    return {"rules": [{"name": "default", "targets": [{"upstreamRef": reference, "model": model}]}]}


def pod(api, name: str, namespace: str, *, injected: bool = True, phase: str = "Running", **labels: str) -> None:
    sidecar = [{"name": "sluice"}] if injected else []
    api.put(
        PODS,
        name,
        namespace,
        metadata={"labels": {"app": "chat", **labels}},
        spec={"containers": [{"name": "app"}], "initContainers": sidecar},
        status={"phase": phase},
    )


def policy(api, namespace: str = "team"):
    stored = api.object(CONFIG_MAPS, "sluice-policy", namespace)
    return None if stored is None else decode(stored["data"]["snapshot.json"].encode())


def condition(api, type_, name: str, namespace: str, wanted: str) -> dict[str, Any]:
    conditions = api.object(type_, name, namespace).get("status", {}).get("conditions", [])
    return next(each for each in conditions if each["type"] == wanted)


def reasons(api) -> set[str]:
    return {event["reason"] for event in api.all(EVENTS)}


async def test_a_route_becomes_policy_and_key_in_the_consumers_namespace(operator, api, team):
    """One round writes the snapshot and the derived Secret, and says Ready."""
    await operator.round()
    assert policy(api).routes[0].rules[0].targets[0].upstream == "platform/openai"
    secret = api.object(SECRETS, "sluice-credentials", "team")
    assert secret["data"] == {"platform.openai.primary": KEY}
    assert operator.board.revision("team") == policy(api).revision
    for type_, name, namespace in ((UPSTREAMS, "openai", "platform"), (MODEL_ROUTES, "chat", "team")):
        assert condition(api, type_, name, namespace, "Ready")["status"] == "True"
        assert condition(api, type_, name, namespace, "Stalled")["status"] == "False"
        assert api.object(type_, name, namespace)["status"]["observedGeneration"] == 1
    assert api.object(UPSTREAMS, "openai", "platform")["status"]["credentials"] == "1/1"
    assert api.object(CONFIG_MAPS, "sluice-policy", "platform") is None


async def test_a_second_round_writes_nothing(operator, api, team):
    """What is as it should be is left alone: status patches never feed themselves."""
    await operator.round()
    api.writes.clear()
    for _ in range(3):
        await operator.round()
    assert api.writes == []


async def test_a_changed_spec_is_published_in_the_next_round(operator, api, team):
    """An edit reaches the ConfigMap and the status names the generation it was made from."""
    await operator.round()
    before = policy(api).revision
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec(model="gpt-4.1-mini"))
    await operator.round()
    assert policy(api).routes[0].rules[0].targets[0].model == "gpt-4.1-mini"
    assert policy(api).revision != before
    assert api.object(MODEL_ROUTES, "chat", "team")["status"]["observedGeneration"] == 2


@pytest.mark.parametrize("how", ["edited", "deleted", "unlabelled"])
async def test_drift_is_repaired(operator, api, team, how: str):
    """A ConfigMap or Secret that somebody changes or deletes is set back."""
    await operator.round()
    before = policy(api)
    for type_, name in ((CONFIG_MAPS, "sluice-policy"), (SECRETS, "sluice-credentials")):
        match how:
            case "edited":
                api.put(type_, name, "team", data={"snapshot.json": "{}", "platform.openai.primary": "AAAA"})
            case "deleted":
                api.remove(type_, name, "team")
            case "unlabelled":
                api.put(type_, name, "team", metadata={"labels": {}})
    await operator.round()
    assert policy(api) == before
    assert api.object(SECRETS, "sluice-credentials", "team")["data"]["platform.openai.primary"] == KEY
    labels = api.object(CONFIG_MAPS, "sluice-policy", "team")["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "sluice"


async def test_policy_and_keys_go_when_nobody_needs_them(operator, api, team):
    """Without pods, routes or label a namespace is left clean; objects that are not ours are not touched."""
    await operator.round()
    api.put(CONFIG_MAPS, "sluice-policy", "platform", data={"made": "by hand"})
    api.remove(PODS, "chat-1", "team")
    await operator.round()
    assert policy(api) is not None, "a route still says that pods will come"
    api.remove(MODEL_ROUTES, "chat", "team")
    await operator.round()
    assert api.object(CONFIG_MAPS, "sluice-policy", "team") is None
    assert api.object(SECRETS, "sluice-credentials", "team") is None
    assert api.object(CONFIG_MAPS, "sluice-policy", "platform")["data"] == {"made": "by hand"}


async def test_finished_pods_keep_nothing_alive(operator, api):
    """A Job's pod that has ended needs no policy."""
    api.put(NAMESPACES, "team")
    pod(api, "job", "team", phase="Succeeded")
    await operator.round()
    assert api.all(CONFIG_MAPS) == []


async def test_a_labelled_namespace_has_its_policy_before_its_first_pod(operator, api):
    """The label alone brings the ConfigMap, so that no first pod has to wait for its mount."""
    api.put(NAMESPACES, "team", metadata={"labels": {"sluice.dev/inject": "true"}})
    await operator.round()
    assert policy(api).namespace == "team"


async def test_nothing_is_written_into_a_namespace_that_is_being_deleted(operator, api, team):
    """Deletion of a namespace is not disturbed."""
    api.put(NAMESPACES, "team", metadata={"labels": {"team": "yes"}, "deletionTimestamp": "2026-01-01T00:00:00Z"})
    await operator.round()
    assert not [path for _, path in api.writes if path.endswith(("sluice-policy", "sluice-credentials"))]


async def test_a_bad_resource_says_so_and_takes_nobody_down(operator, api, team):
    """Beside a resource that cannot be read and one that refers to nothing, the good ones are published."""
    api.put(MODEL_ROUTES, "unreadable", "team", spec={"rules": [{"name": 7}]})
    api.put(MODEL_ROUTES, "lost", "team", spec=route_spec(upstream="nowhere"))
    await operator.round()
    assert {route.key for route in policy(api).routes} >= {"team/chat"}
    unreadable = condition(api, MODEL_ROUTES, "unreadable", "team", "Ready")
    assert (unreadable["status"], unreadable["reason"]) == ("False", "Invalid")
    assert "spec.rules[0]" in unreadable["message"]
    assert condition(api, MODEL_ROUTES, "unreadable", "team", "Stalled")["status"] == "True"
    lost = condition(api, MODEL_ROUTES, "lost", "team", "ResolvedRefs")
    assert (lost["status"], lost["reason"]) == ("False", "UpstreamNotFound")
    assert condition(api, MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"
    assert {"Invalid", "UpstreamNotFound"} <= reasons(api)


async def test_a_mended_resource_becomes_ready_again(operator, api, team):
    """The status turns, its transition time moves, and an event tells of it."""
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec(upstream="nowhere"))
    await operator.round()
    broken = condition(api, MODEL_ROUTES, "chat", "team", "Ready")
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec())
    await operator.round()
    mended = condition(api, MODEL_ROUTES, "chat", "team", "Ready")
    assert (broken["status"], mended["status"]) == ("False", "True")
    assert mended["lastTransitionTime"] > broken["lastTransitionTime"]
    assert "InForce" in reasons(api)


async def test_an_event_is_told_once(operator, api, team):
    """A problem that stays does not fill the event list, whatever the number of rounds and leaders."""
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec(upstream="nowhere"))
    for _ in range(4):
        await operator.round()
    assert [event["count"] for event in api.all(EVENTS) if event["reason"] == "UpstreamNotFound"] == [1]


async def test_a_missing_secret_is_named_with_its_mend(operator, api, team):
    """An upstream without its Secret is not Ready, says which one is missing, and recovers when it comes."""
    api.remove(SECRETS, "openai", "platform")
    await operator.round()
    ready = condition(api, UPSTREAMS, "openai", "platform", "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "SecretNotFound")
    assert "create it with the key primary" in ready["message"]
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == {}
    api.put(SECRETS, "openai", "platform", data={"wrong": KEY})
    await operator.round()
    assert condition(api, UPSTREAMS, "openai", "platform", "Ready")["reason"] == "SecretKeyNotFound"
    api.put(SECRETS, "openai", "platform", data={"primary": KEY})
    await operator.round()
    assert condition(api, UPSTREAMS, "openai", "platform", "Ready")["status"] == "True"
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == {"platform.openai.primary": KEY}


async def test_a_rotated_key_reaches_the_consumers(operator, api, team):
    """A new value in the source is in the derived Secret after the next reading."""
    await operator.round()
    rotated = base64.b64encode(b"sk-live-2").decode()
    api.put(SECRETS, "openai", "platform", data={"primary": rotated})
    await operator.round()
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == {"platform.openai.primary": rotated}


async def test_a_key_goes_with_the_permission(operator, api, team):
    """Whoever is no longer allowed loses policy and key in the same round, and is told."""
    await operator.round()
    api.put(
        UPSTREAMS,
        "openai",
        "platform",
        spec={
            "credentials": [{"name": "primary", "secretKeyRef": {"name": "openai", "key": "primary"}}],
        },
    )
    await operator.round()
    assert api.object(SECRETS, "sluice-credentials", "team") is None
    assert policy(api).upstreams == ()
    refused = condition(api, MODEL_ROUTES, "chat", "team", "Ready")
    assert (refused["status"], refused["reason"]) == ("False", "UpstreamNotAllowed")


async def test_a_source_that_cannot_be_read_takes_no_key_away(cluster, clock, operator, api, team):
    """A new leader that cannot read a Secret keeps the derived one, yet still withdraws what is not allowed."""
    await operator.round()
    api.put(SECRETS, "azure", "platform", data={"k": KEY})
    api.fail(503, "ServiceUnavailable", path="/secrets/openai", times=100)
    successor = Operator(cluster, clock)
    await successor.round()
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == {"platform.openai.primary": KEY}
    assert condition(api, UPSTREAMS, "openai", "platform", "Ready")["reason"] == "SecretUnreadable"


async def test_no_secret_value_is_anywhere_but_in_secrets(operator, api, team, capsys):
    """Keys are in no ConfigMap, status, event or log line, encoded or not."""
    await operator.round()
    api.fail(422, "Invalid", method="patch", path="/secrets/")
    api.put(SECRETS, "openai", "platform", data={"primary": base64.b64encode(b"sk-live-1x").decode()})
    await operator.round()
    text = repr([stored for key, stored in api.stored.items() if key[0] != "secrets"]) + "".join(capsys.readouterr())
    assert "sk-live-1" not in text
    assert KEY[:10] not in text


async def test_a_policy_too_large_is_told_and_the_last_one_stays(operator, api, team):
    """What does not fit a ConfigMap is not tried; the resource says so, and pods keep what they have."""
    await operator.round()
    before = policy(api)
    rules = [
        {
            "name": f"r{number}",
            "match": [{"models": [f"m{number}"], "headers": [{"name": f"h{i}", "value": "x" * 1024} for i in range(8)]}]
            * 16,
            "targets": [{"upstreamRef": {"name": "openai", "namespace": "platform"}}],
        }
        for number in range(10)
    ]
    api.put(MODEL_ROUTES, "chat", "team", spec={"rules": rules})
    await operator.round()
    assert policy(api) == before
    stalled = condition(api, MODEL_ROUTES, "chat", "team", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "PolicyTooLarge")


async def test_a_write_that_fails_is_under_way_and_then_ready(operator, api, team):
    """While the ConfigMap cannot be written the route is Reconciling, not Stalled; the next round mends it."""
    api.fail(500, "InternalError", method="patch", path="/configmaps/")
    await operator.round()
    assert condition(api, MODEL_ROUTES, "chat", "team", "Reconciling")["status"] == "True"
    assert condition(api, MODEL_ROUTES, "chat", "team", "Stalled")["status"] == "False"
    await operator.round()
    assert condition(api, MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"


async def test_a_status_conflict_is_retried_from_the_newer_state(operator, api, team):
    """409 loses one round and overwrites nothing."""
    api.fail(409, "Conflict", method="patch", path="/modelroutes/chat/status")
    await operator.round()
    assert "status" not in api.object(MODEL_ROUTES, "chat", "team")
    await operator.round()
    assert condition(api, MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"


async def test_without_a_complete_view_nothing_is_known(operator, api, team):
    """Until every type was listed, absence means nothing: the world says that it is not complete."""
    api.fail(403, "Forbidden", path="/pods")
    await operator.observer.relist()
    assert not operator.world.complete
    await operator.observer.relist()
    assert operator.world.complete
    assert len(OBSERVED) == 6


async def test_if_what_is_stored_cannot_be_seen_nothing_is_written(operator, api, team):
    """A leader that cannot list its own objects neither writes nor removes any."""
    api.fail(403, "Forbidden", path="/api/v1/configmaps", times=1)
    await operator.round()
    assert [path for method, path in api.writes if "status" not in path] == []
    await operator.round()
    assert policy(api) is not None


async def test_a_status_of_another_version_is_written_anew(operator, api, team):
    """A status that cannot be read does not make its resource unreadable."""
    stored = api.object(MODEL_ROUTES, "chat", "team")
    stored["status"] = {"pods": "many", "leftover": {"a": 1}}
    await operator.round()
    status = api.object(MODEL_ROUTES, "chat", "team")["status"]
    assert status["pods"] == 1
    assert "leftover" not in status


class Scripted:
    """Rollouts that move every split to a weight."""

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.asked: list[str] = []

    def plan(self, split, synced) -> Plan:
        if split.status.weight == self.weight:
            return Plan(status=split.status)
        status = msgspec.structs.replace(split.status, weight=self.weight, revision="5" * 12 + "-1", salt="s")
        event = RolloutEvent(reason="WeightChanged", message=f"to {self.weight} %")
        question = Question(name="quality", url="http://x", timeout_seconds=1, revision=status.revision, step=1)
        return Plan(status=status, events=(event,), questions=(question,), urgent=True)

    def ask(self, split, questions) -> None:
        self.asked += [split for _ in questions]

    def keep(self, splits) -> None:
        pass


def split(api) -> None:
    spec = {
        "routeRef": {"name": "chat"},
        "stable": {"version": "v1", "model": "gpt-4.1"},
        "candidate": {"version": "v2", "model": "gpt-4.1-mini"},
    }
    api.put(CANARY_SPLITS, "chat", "team", spec=spec)


async def test_a_rollouts_decision_is_stored_before_it_is_published(cluster, clock, operator, api, team):
    """The status patch of a step comes before the ConfigMap that carries it; its event comes after the patch."""
    split(api)
    rollouts = Scripted(25)
    await Operator(cluster, clock, rollouts=rollouts).round()
    paths = [path for _, path in api.writes]
    stored = next(i for i, path in enumerate(paths) if path.endswith("/canarysplits/chat/status"))
    published = next(i for i, path in enumerate(paths) if path.endswith("/configmaps/sluice-policy"))
    assert stored < published
    assert api.object(CANARY_SPLITS, "chat", "team")["status"]["weight"] == 25
    assert "WeightChanged" in reasons(api)
    assert rollouts.asked == ["team/chat"]


async def test_a_decision_that_could_not_be_stored_reaches_no_pod(cluster, clock, operator, api, team):
    """If the status loses a race, the policy keeps the old weight and no event is told."""
    split(api)
    await operator.round()
    before = policy(api)
    api.fail(409, "Conflict", method="patch", path="/canarysplits/chat/status", times=2)
    rollouts = Scripted(25)
    await Operator(cluster, clock, rollouts=rollouts).round()
    assert policy(api) == before
    assert "WeightChanged" not in reasons(api)
    assert rollouts.asked == []


async def test_a_split_without_its_route_takes_no_steps(cluster, clock, api, team):
    """A rollout whose rule does not exist is told of and does not move."""
    split(api)
    api.put(MODEL_ROUTES, "chat", "team", spec={"rules": [{**route_spec()["rules"][0], "name": "other"}]})
    await Operator(cluster, clock, rollouts=Scripted(25)).round()
    assert api.object(CANARY_SPLITS, "chat", "team")["status"].get("weight", 0) == 0
    assert condition(api, CANARY_SPLITS, "chat", "team", "Ready")["reason"] == "RuleNotFound"


async def test_a_quota_that_selects_nobody_says_so_and_is_ready(operator, api, team):
    """What is probably a mistake is a condition of its own, not a failure."""
    api.put(
        QUOTA_ALLOCATIONS,
        "openai",
        "platform",
        spec={
            "upstreamRef": {"name": "openai"},
            "allocations": [{"name": "none", "workloads": {"matchLabels": {"app": "none"}}, "sharePercent": 10}],
        },
    )
    await operator.round()
    selected = condition(api, QUOTA_ALLOCATIONS, "openai", "platform", "WorkloadsSelected")
    assert (selected["status"], selected["reason"]) == ("False", "NobodySelected")
    assert condition(api, QUOTA_ALLOCATIONS, "openai", "platform", "Ready")["status"] == "True"


async def test_a_pod_without_its_sidecar_is_told_of_once(operator, api, team):
    """Opted in and not injected: an event on the pod with the mend; what cannot have a sidecar is left out."""
    pod(api, "chat-2", "team", injected=False, **{"sluice.dev/inject": "true"})
    pod(api, "chat-3", "team", injected=False)
    pod(api, "chat-4", "team", injected=False, phase="Succeeded", **{"sluice.dev/inject": "true"})
    host = {"containers": [{"name": "app"}], "hostNetwork": True}
    api.put(PODS, "node-agent", "team", metadata={"labels": {"sluice.dev/inject": "true"}}, spec=host)
    for _ in range(3):
        await operator.round()
    told = [event for event in api.all(EVENTS) if event["reason"] == "SidecarMissing"]
    assert [(event["involvedObject"]["name"], event["count"]) for event in told] == [("chat-2", 1)]
    assert operator.reconciler.uninjected == 1


async def test_a_key_that_cannot_be_written_is_under_way(operator, api, team):
    """While the derived Secret cannot be written, what needs it is not Ready."""
    api.fail(500, "InternalError", method="patch", path="/secrets/")
    await operator.round()
    assert condition(api, MODEL_ROUTES, "chat", "team", "Reconciling")["reason"] == "CredentialsNotWritten"
    await operator.round()
    assert condition(api, MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"
