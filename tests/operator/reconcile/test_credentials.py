"""API keys: where they go, when they go, and that they are nowhere else."""

from __future__ import annotations

import base64
from typing import Any

from sluice_core.compile import compile_namespaces
from sluice_operator.kinds import (
    CONFIG_MAPS,
    MODEL_ROUTES,
    PODS,
    QUOTA_ALLOCATIONS,
    SECRETS,
    UPSTREAMS,
)

KEY = base64.b64encode(b"sk-live-1").decode()
MARK = {".complete": ""}


def route_spec(upstream: str = "openai", model: str = "gpt-4.1") -> dict[str, Any]:
    reference = {"name": upstream, "namespace": "platform"}
    return {"rules": [{"name": "default", "targets": [{"upstreamRef": reference, "model": model}]}]}


async def test_policy_and_keys_go_when_nobody_needs_them(operator, api, team, seen):
    """Without pods, routes or label a namespace is left clean; objects that are not ours are not touched."""
    await operator.round()
    api.put(CONFIG_MAPS, "sluice-policy", "platform", data={"made": "by hand"})
    api.remove(PODS, "chat-1", "team")
    await operator.round()
    assert seen.policy() is not None, "a route still says that pods will come"
    api.remove(MODEL_ROUTES, "chat", "team")
    await operator.round()
    assert api.object(CONFIG_MAPS, "sluice-policy", "team") is None
    assert api.object(SECRETS, "sluice-credentials", "team") is None
    assert api.object(CONFIG_MAPS, "sluice-policy", "platform")["data"] == {"made": "by hand"}


async def test_a_bad_resource_says_so_and_takes_nobody_down(operator, api, team, seen):
    """Beside a resource that cannot be read and one that refers to nothing, the good ones are published."""
    api.put(MODEL_ROUTES, "unreadable", "team", spec={"rules": [{"name": 7}]})
    api.put(MODEL_ROUTES, "lost", "team", spec=route_spec(upstream="nowhere"))
    await operator.round()
    assert {route.key for route in seen.policy().routes} >= {"team/chat"}
    unreadable = seen.condition(MODEL_ROUTES, "unreadable", "team", "Ready")
    assert (unreadable["status"], unreadable["reason"]) == ("False", "Invalid")
    assert "spec.rules[0]" in unreadable["message"]
    assert seen.condition(MODEL_ROUTES, "unreadable", "team", "Stalled")["status"] == "True"
    lost = seen.condition(MODEL_ROUTES, "lost", "team", "ResolvedRefs")
    assert (lost["status"], lost["reason"]) == ("False", "UpstreamNotFound")
    assert seen.condition(MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"
    assert {"Invalid", "UpstreamNotFound"} <= seen.reasons()


async def test_a_mended_resource_becomes_ready_again(operator, api, team, seen):
    """The status turns, its transition time moves, and an event tells of it."""
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec(upstream="nowhere"))
    await operator.round()
    broken = seen.condition(MODEL_ROUTES, "chat", "team", "Ready")
    api.put(MODEL_ROUTES, "chat", "team", spec=route_spec())
    await operator.round()
    mended = seen.condition(MODEL_ROUTES, "chat", "team", "Ready")
    assert (broken["status"], mended["status"]) == ("False", "True")
    assert mended["lastTransitionTime"] > broken["lastTransitionTime"]
    assert "InForce" in seen.reasons()


async def test_a_missing_secret_is_named_with_its_mend(operator, api, team, seen):
    """An upstream without its Secret is not Ready, says which one is missing, and recovers when it comes."""
    api.remove(SECRETS, "openai", "platform")
    await operator.round()
    ready = seen.condition(UPSTREAMS, "openai", "platform", "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "SecretNotFound")
    assert "create it with the key primary" in ready["message"]
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == MARK
    api.put(SECRETS, "openai", "platform", data={"wrong": KEY})
    await operator.round()
    assert seen.condition(UPSTREAMS, "openai", "platform", "Ready")["reason"] == "SecretKeyNotFound"
    api.put(SECRETS, "openai", "platform", data={"primary": KEY})
    await operator.round()
    assert seen.condition(UPSTREAMS, "openai", "platform", "Ready")["status"] == "True"
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == MARK | {"platform.openai.primary": KEY}


async def test_a_rotated_key_reaches_the_consumers(operator, api, team):
    """A new value in the source is in the derived Secret after the next reading."""
    await operator.round()
    rotated = base64.b64encode(b"sk-live-2").decode()
    api.put(SECRETS, "openai", "platform", data={"primary": rotated})
    await operator.round()
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == MARK | {"platform.openai.primary": rotated}


async def test_a_key_goes_with_the_permission(operator, api, team, seen):
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
    assert seen.policy().upstreams == ()
    refused = seen.condition(MODEL_ROUTES, "chat", "team", "Ready")
    assert (refused["status"], refused["reason"]) == ("False", "UpstreamNotAllowed")


async def test_a_source_that_cannot_be_read_takes_no_key_away(operator, api, team, seen, operators):
    """A new leader that cannot read a Secret keeps the derived one, yet still withdraws what is not allowed."""
    await operator.round()
    api.put(SECRETS, "azure", "platform", data={"k": KEY})
    api.fail(503, "ServiceUnavailable", path="/secrets/openai", times=100)
    successor = operators()
    await successor.round()
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == MARK | {"platform.openai.primary": KEY}
    assert seen.condition(UPSTREAMS, "openai", "platform", "Ready")["reason"] == "SecretUnreadable"


async def test_no_secret_value_is_anywhere_but_in_secrets(operator, api, team, capsys):
    """Keys are in no ConfigMap, status, event or log line, encoded or not."""
    await operator.round()
    api.fail(422, "Invalid", method="patch", path="/secrets/")
    api.put(SECRETS, "openai", "platform", data={"primary": base64.b64encode(b"sk-live-1x").decode()})
    await operator.round()
    text = repr([stored for key, stored in api.stored.items() if key[0] != "secrets"]) + "".join(capsys.readouterr())
    assert "sk-live-1" not in text
    assert KEY[:10] not in text


async def test_a_key_that_cannot_be_written_is_under_way(operator, api, team, seen):
    """While the derived Secret cannot be written, what needs it is not Ready."""
    api.fail(500, "InternalError", method="patch", path="/secrets/")
    await operator.round()
    assert seen.condition(MODEL_ROUTES, "chat", "team", "Reconciling")["reason"] == "CredentialsNotWritten"
    await operator.round()
    assert seen.condition(MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"


async def test_a_fault_of_the_compiler_is_confined_to_its_resource(operator, api, team, monkeypatch, seen):
    """A resource that makes the compiler fail is left out and says so; all others are published."""

    def compile_or_fail(resources, namespaces, pods):
        if any(resource.metadata.name == "poison" for resource in resources):
            raise ZeroDivisionError
        return compile_namespaces(resources, namespaces, pods)

    monkeypatch.setattr("sluice_operator.isolate.compile_namespaces", compile_or_fail)
    api.put(MODEL_ROUTES, "poison", "team", spec=route_spec())
    await operator.round()
    assert [route.key for route in seen.policy().routes] == ["team/chat"]
    poisoned = seen.condition(MODEL_ROUTES, "poison", "team", "Ready")
    assert (poisoned["status"], poisoned["reason"]) == ("False", "Invalid")
    assert seen.condition(MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"


async def test_a_stores_password_goes_where_its_quota_does(operator, api, team, seen):
    """The file that the snapshot names is in the derived Secret; without its Secret the quota says so."""
    store = {"type": "Redis", "url": "redis://redis:6379", "secretRef": {"name": "redis", "key": "password"}}
    api.put(
        QUOTA_ALLOCATIONS, "shares", "platform",
        spec={"upstreamRef": {"name": "openai"}, "store": store, "allocations": [{"name": "chat"}]},
    )  # fmt: skip
    await operator.round()
    ready = seen.condition(QUOTA_ALLOCATIONS, "shares", "platform", "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "SecretNotFound")
    assert "spec.store.secretRef" in ready["message"]
    password = base64.b64encode(b"of-redis").decode()
    api.put(SECRETS, "redis", "platform", data={"password": password})
    await operator.round()
    (quota,) = seen.policy().quotas
    assert quota.store.password_file == "platform.shares._store"
    assert api.object(SECRETS, "sluice-credentials", "team")["data"] == MARK | {
        "platform.openai.primary": KEY,
        "platform.shares._store": password,
    }
