"""Policy: created, changed, repaired and taken away with what asks for it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from sluice_operator.kinds import (
    CONFIG_MAPS,
    EVENTS,
    MODEL_ROUTES,
    NAMESPACES,
    PODS,
    QUOTA_ALLOCATIONS,
    SECRETS,
    UPSTREAMS,
)

KEY = base64.b64encode(b"sk-live-1").decode()


def route_spec(upstream: str = "openai", model: str = "gpt-4.1") -> dict[str, Any]:
    reference = {"name": upstream, "namespace": "platform"}
    return {"rules": [{"name": "default", "targets": [{"upstreamRef": reference, "model": model}]}]}


async def test_a_route_becomes_policy_and_key_in_the_consumers_namespace(operator, api, team, seen):
    """One round writes the snapshot and the derived Secret, and says Ready."""
    await operator.round()
    assert seen.policy().routes[0].rules[0].targets[0].upstream == "platform/openai"
    secret = api.object(SECRETS, "sluice-credentials", "team")
    assert secret["data"] == {".complete": "", "platform.openai.primary": KEY}
    assert operator.board.revision("team") == seen.policy().revision
    for type_, name, namespace in ((UPSTREAMS, "openai", "platform"), (MODEL_ROUTES, "chat", "team")):
        assert seen.condition(type_, name, namespace, "Ready")["status"] == "True"
        assert seen.condition(type_, name, namespace, "Stalled")["status"] == "False"
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


async def test_a_changed_spec_is_published_in_the_next_round(operator, api, team, seen):
    """An edit reaches the ConfigMap and the status names the generation it was made from."""
    await operator.round()
    before = seen.policy().revision
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec(model="gpt-4.1-mini"))
    await operator.round()
    assert seen.policy().routes[0].rules[0].targets[0].model == "gpt-4.1-mini"
    assert seen.policy().revision != before
    assert api.object(MODEL_ROUTES, "chat", "team")["status"]["observedGeneration"] == 2


@pytest.mark.parametrize("how", ["edited", "deleted", "unlabelled"])
async def test_drift_is_repaired(operator, api, team, how: str, seen):
    """A ConfigMap or Secret that somebody changes or deletes is set back."""
    await operator.round()
    before = seen.policy()
    for type_, name in ((CONFIG_MAPS, "sluice-policy"), (SECRETS, "sluice-credentials")):
        match how:
            case "edited":
                api.put(type_, name, "team", data={"snapshot.json": "{}", "platform.openai.primary": "AAAA"})
            case "deleted":
                api.remove(type_, name, "team")
            case "unlabelled":
                api.put(type_, name, "team", metadata={"labels": {}})
    await operator.round()
    assert seen.policy() == before
    assert api.object(SECRETS, "sluice-credentials", "team")["data"]["platform.openai.primary"] == KEY
    labels = api.object(CONFIG_MAPS, "sluice-policy", "team")["metadata"]["labels"]
    assert labels["app.kubernetes.io/managed-by"] == "sluice"


async def test_finished_pods_keep_nothing_alive(operator, api, put_pod):
    """A Job's pod that has ended needs no policy."""
    api.put(NAMESPACES, "team")
    put_pod("job", "team", phase="Succeeded")
    await operator.round()
    assert api.all(CONFIG_MAPS) == []


async def test_a_labelled_namespace_has_its_policy_before_its_first_pod(operator, api, seen):
    """The label alone brings the ConfigMap, so that no first pod has to wait for its mount."""
    api.put(NAMESPACES, "team", metadata={"labels": {"sluice.dev/inject": "true"}})
    await operator.round()
    assert seen.policy().namespace == "team"


@pytest.mark.parametrize("where", ["pod", "namespace"])
async def test_a_label_asks_for_nothing_where_the_webhook_does_not_look(operator, api, put_pod, where: str):
    """In an exempt namespace no policy is written and no pod is missed, whatever is labelled there."""
    label = {"sluice.dev/inject": "true"}
    api.put(NAMESPACES, "sluice-system", metadata={"labels": label if where == "namespace" else {}})
    put_pod("operator-1", "sluice-system", injected=False, **(label if where == "pod" else {}))
    await operator.round()
    assert api.all(CONFIG_MAPS) == []
    assert operator.reconciler.uninjected == 0


async def test_nothing_is_written_into_a_namespace_that_is_being_deleted(operator, api, team):
    """Deletion of a namespace is not disturbed."""
    api.put(NAMESPACES, "team", metadata={"labels": {"team": "yes"}, "deletionTimestamp": "2026-01-01T00:00:00Z"})
    await operator.round()
    assert not [path for _, path in api.writes if path.endswith(("sluice-policy", "sluice-credentials"))]


async def test_an_event_is_told_once(operator, api, team):
    """A problem that stays does not fill the event list, whatever the number of rounds and leaders."""
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec(upstream="nowhere"))
    for _ in range(4):
        await operator.round()
    assert [event["count"] for event in api.all(EVENTS) if event["reason"] == "UpstreamNotFound"] == [1]


async def test_a_quota_that_selects_nobody_says_so_and_is_ready(operator, api, team, seen):
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
    selected = seen.condition(QUOTA_ALLOCATIONS, "openai", "platform", "WorkloadsSelected")
    assert (selected["status"], selected["reason"]) == ("False", "NobodySelected")
    assert seen.condition(QUOTA_ALLOCATIONS, "openai", "platform", "Ready")["status"] == "True"


async def test_a_pod_without_its_sidecar_is_told_of_once(operator, api, team, put_pod):
    """Opted in and not injected: an event on the pod with the mend; what cannot have a sidecar is left out."""
    put_pod("chat-2", "team", injected=False, **{"sluice.dev/inject": "true"})
    put_pod("chat-3", "team", injected=False)
    put_pod("chat-4", "team", injected=False, phase="Succeeded", **{"sluice.dev/inject": "true"})
    host = {"containers": [{"name": "app"}], "hostNetwork": True}
    api.put(PODS, "node-agent", "team", metadata={"labels": {"sluice.dev/inject": "true"}}, spec=host)
    for _ in range(3):
        await operator.round()
    told = [event for event in api.all(EVENTS) if event["reason"] == "SidecarMissing"]
    assert [(event["involvedObject"]["name"], event["count"]) for event in told] == [("chat-2", 1)]
    assert operator.reconciler.uninjected == 1
