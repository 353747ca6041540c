"""What users see when parts of the cluster fail, are changed by other hands, or come back."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import random
import subprocess
import time

import pytest

from sluice_operator.certificates import renew

from .story import SYSTEM, Cluster, Json, Story, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def _failed(calls: list[Json]) -> list[Json]:
    return [call for call in calls if call["status"] != 200]


def test_a_rollout_survives_its_operators(policed: Story) -> None:
    """Given a rollout, when its leader is killed again and again, then it ends, and no user is ever moved back."""
    cluster = policed.cluster
    policed.traffic(pods=2, calls_per_second=10).apply("ramp")
    dice = random.Random(7)
    weights: list[int] = []

    def step() -> tuple[str, int]:
        status = policed.get("canarysplit", "chat").get("status", {})
        weights.append(status.get("weight", 0))
        return status.get("phase", ""), weights[-1]

    eventually(lambda: step()[1] > 0, 60, "the rollout has begun")
    for _ in range(3):
        cluster.kill(cluster.leader())
        until = time.monotonic() + dice.uniform(5, 25)
        eventually(lambda until=until: time.monotonic() > until and step(), 60, "some time passes")
    eventually(lambda: step()[0] in ("Watching", "Promoted"), 180, "the rollout has ended well")
    settled_at = policed.last_call_at()
    eventually(lambda: policed.last_call_at() > settled_at + 5, 30, "calls follow")

    assert weights == sorted(weights)
    arms: dict[str, list[str]] = {}
    for call in policed.diary():
        arms.setdefault(call["user"], []).append(call["arm"] or "v1")
    # Two pods learn of a step a moment apart, and each user calls both: order by the pod that lags is not the user's.
    for user, seen in arms.items():
        first = seen.index("v2")
        assert seen[first + 40 :].count("v1") == 0, user
    assert _failed(policed.diary()) == []


def test_a_webhook_that_must_answer_and_cannot_stops_only_whom_it_may(story: Story) -> None:
    """Given failurePolicy Fail, when no injector runs, then only opted-in pods are refused."""
    cluster = story.cluster
    cluster.install("injector.failurePolicy=Fail")
    plain = f"{story.namespace}-plain"
    cluster.kubectl("create", "namespace", plain)
    cluster.kubectl("label", "namespace", plain, "sluice-story=")
    cluster.scale("sluice-injector", replicas=0)
    try:
        created, said = story.try_pod("wanted")
        assert not created
        assert "failed calling webhook" in said
        assert story.try_pod("opted-out", labels={"sluice.dev/inject": "false"})[0]
        assert Story(cluster, plain).try_pod("elsewhere")[0]
    finally:
        cluster.scale("sluice-injector", replicas=2)
        cluster.install()
        cluster.kubectl("delete", "namespace", plain, "--wait=false")
    assert story.try_pod("wanted-again")[0]
    assert story.get("pod", "wanted-again")["spec"]["initContainers"][0]["name"] == "sluice"


def test_an_expired_certificate_is_replaced(story: Story) -> None:
    """Given a certificate that has ended, when Sluice meets it, then new pods are injected within a minute."""
    cluster = story.cluster
    names = [f"{part}.{SYSTEM}.svc" for part in ("sluice-injector", "sluice-operator")]
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=91)
    expired = renew(None, names, long_ago)
    assert expired is not None
    data = {name: base64.b64encode(value).decode() for name, value in expired.to_secret_data().items()}
    cluster.system("patch", "secret", "sluice-certificates", "--type=merge", "--patch", json.dumps({"data": data}))

    def injected() -> bool:
        story.kubectl("delete", "pod", story.pods()[0]["metadata"]["name"], "--wait=true")
        return all("initContainers" in each["spec"] for each in story.pods())

    eventually(injected, 60, "pods are injected under a new certificate")
    story.rolled_out("chat")
    stored = cluster.get("--namespace", SYSTEM, "secret", "sluice-certificates")["data"]
    assert stored["tls.crt"] != data["tls.crt"]
    eventually(lambda: story.synced("modelroute", "chat"), 60, "new pods trust the new authority and report")


def test_a_deleted_key_says_so_and_calls_say_why(story: Story) -> None:
    """Given running pods, when the key's Secret is deleted, then upstream and calls say so; it may come back."""
    story.kubectl("delete", "secret", "openai")
    story.kubectl("wait", "--for", "condition=Ready=False", "upstream/openai", "--timeout", "60s")
    (ready,) = (each for each in story.get("upstream", "openai")["status"]["conditions"] if each["type"] == "Ready")
    assert "openai" in ready["message"]
    eventually(lambda: story.calls("user-1")[0]["status"] == 503, 150, "calls without a key are refused")
    assert story.calls("user-1")[0]["error"]["code"] == "no_credential"

    story.apply("policy").ready("upstream", "openai")


@pytest.mark.parametrize(("kind", "name"), [("configmap", "sluice-policy"), ("secret", "sluice-credentials")])
def test_what_sluice_writes_is_repaired(story: Story, kind: str, name: str) -> None:
    """Given its objects, when somebody empties or deletes one, then it is as before within half a minute."""
    before = story.get(kind, name)["data"]
    for damage in (("patch", kind, name, "--type=merge", "--patch", '{"data": null}'), ("delete", kind, name)):
        story.kubectl(*damage)
        eventually(lambda: story.get(kind, name).get("data") == before, 30, f"{kind} {name} is repaired")
    assert story.calls("user-1")[0]["status"] == 200


def test_a_deleted_namespace_goes_and_its_neighbours_stay(story: Story, cluster: Cluster) -> None:
    """Given two namespaces in use, when one is deleted, then it is gone in a minute and the other calls on."""
    other = Story(cluster, f"{story.namespace}-two")
    cluster.kubectl("create", "namespace", other.namespace)
    cluster.kubectl("label", "namespace", other.namespace, "sluice-story=", "sluice.dev/inject=true")
    other.apply("mock").apply("policy").apply("split").apply("quota").apply("chat").rolled_out("chat")

    cluster.kubectl("delete", "namespace", other.namespace, "--timeout=90s")

    assert all(call["status"] == 200 for call in story.calls(*["user-1"] * 5))
    leader = cluster.leader()
    told = cluster.system("logs", leader, "--since=2m")
    assert "round_failed" not in told


def test_a_pod_on_the_hosts_network_is_left_alone_and_told(cluster: Cluster, policed: Story) -> None:
    """Given a pod on the host's network, when it asks for a sidecar, then it gets none and a warning says why."""
    cluster.kubectl(
        "label", "namespace", policed.namespace, "pod-security.kubernetes.io/enforce=privileged", "--overwrite"
    )
    created, said = policed.try_pod("host", host_network=True)

    assert created
    assert "initContainers" not in policed.get("pod", "host")["spec"]
    assert "Warning:" in said
    assert "network" in said


def test_fifty_pods_at_once_are_all_governed(policed: Story) -> None:
    """Given a policy, when fifty pods are created at once, then all have sidecars, report, and share the limits."""
    policed.apply("quota").traffic(pods=50, calls_per_second=0.2)

    assert all(pod["spec"]["initContainers"][0]["name"] == "sluice" for pod in policed.pods("role=traffic"))
    eventually(lambda: policed.get("modelroute", "chat")["status"]["syncedPods"] == "50/50", 60, "all report")
    eventually(lambda: len({call["pod"] for call in policed.diary()}) == 50, 60, "all have called")
    assert {call["status"] for call in policed.diary()} <= {200, 429}


@pytest.mark.skipif(
    not os.environ.get("SLUICE_STOP_APISERVER") or not os.environ.get("SLUICE_START_APISERVER"),
    reason="SLUICE_STOP_APISERVER and SLUICE_START_APISERVER name no commands that stop and start the API server",
)
def test_a_minute_without_the_api_server_is_not_felt(policed: Story) -> None:
    """Given traffic, when the API server is away for a minute, then no call fails, and an edit counts soon after."""
    policed.traffic(pods=2, calls_per_second=5)
    began_at = policed.last_call_at()
    subprocess.run(os.environ["SLUICE_STOP_APISERVER"], shell=True, check=True, timeout=60)
    try:
        time.sleep(60)  # the length of the outage is the subject
    finally:
        subprocess.run(os.environ["SLUICE_START_APISERVER"], shell=True, check=True, timeout=120)
    eventually(lambda: policed.cluster.kubectl("get", "--raw", "/readyz") == "ok", 90, "the API server is back")

    calls = policed.diary(began_at)
    assert calls[-1]["at"] - began_at > 55
    assert _failed(calls) == []
    policed.apply("policy", **{"model: gpt-4.1-mini": "model: gpt-4.1-nano"})
    eventually(lambda: "nano" in policed.diary()[-1]["model"], 40, "the edit is in force")
    policed.cluster.kubectl("wait", "--for", "condition=Ready", "nodes", "--all", "--timeout=120s")
