"""What users do with Sluice on a cluster, and what happens when parts of it die; any cluster, by KUBECONFIG."""

from __future__ import annotations

import json

import pytest

from .story import HERE, SYSTEM, Cluster, Story, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def test_an_installation_checks_itself(cluster: Cluster) -> None:
    """Given a release, when `helm test` runs, then it succeeds, and all parts run as two replicas."""
    cluster.helm("test", "sluice", "--namespace", SYSTEM)

    for name in ("sluice-operator", "sluice-injector"):
        assert cluster.get("--namespace", SYSTEM, "deployment", name)["status"]["readyReplicas"] == 2


def test_a_labelled_namespace_gets_sidecars(story: Story) -> None:
    """Given an opted-in namespace, when pods start, then each has the sidecar first and its application untouched."""
    for pod in story.pods():
        sidecar, *_ = pod["spec"]["initContainers"]
        app, *_ = pod["spec"]["containers"]
        assert (sidecar["name"], sidecar["restartPolicy"]) == ("sluice", "Always")
        assert app["name"] == "app"
        mounts = {mount["mountPath"]: mount["name"] for mount in sidecar["volumeMounts"]}
        assert mounts["/var/run/secrets/kubernetes.io/serviceaccount"] == "sluice-pod"
        assert not any(mount["name"].startswith("sluice-") for mount in app.get("volumeMounts", []))
    assert "initContainers" not in story.pods("app=mock-openai")[0]["spec"]


def test_a_call_is_made_with_a_key_that_the_application_never_sees(story: Story) -> None:
    """Given a policy, when the application calls, then the upstream sees the real key and the pod does not."""
    (call,) = story.calls("user-1")
    environment = story.kubectl("exec", story.pods()[0]["metadata"]["name"], "--container", "app", "--", "env")

    assert call["status"] == 200
    assert call["headers"]["x-sluice-call-id"]
    assert story.ledger()[-1]["key_name"] == "old"
    assert "sk-old" not in environment


def test_the_official_sdk_works_unchanged(story: Story) -> None:
    """Given an application that builds `OpenAI()` and no more, when it calls, then all it asks is answered."""
    pod = ("exec", story.pods()[0]["metadata"]["name"], "--container", "app", "--", "python", "-c")
    if "openai" not in story.kubectl(*pod, "import openai; print(openai.__name__)", check=False):
        pytest.skip("SLUICE_APP_IMAGE has no official SDK in it (tests/e2e/Dockerfile makes one that has)")
    told = json.loads(story.kubectl(*pod, (HERE / "sdk.py").read_text()))

    assert told["text"]
    assert told["streamed"]
    assert told["response"]
    assert told["url"].startswith("http://127.0.0.1:")
    assert "sk-old" not in told["key"]


def test_a_split_sends_the_same_user_to_the_same_arm(story: Story) -> None:
    """Given a split at half, when many users call twice, then both arms serve and each user meets one of them."""
    story.apply("split")
    eventually(lambda: "x-sluice-arm" in story.calls("probe")[0]["headers"], 60, "the split is in force")
    users = [f"user-{number}" for number in range(20)]
    first = [call["headers"]["x-sluice-arm"] for call in story.calls(*users)]
    second = [call["headers"]["x-sluice-arm"] for call in story.calls(*users, pod=story.pods()[-1]["metadata"]["name"])]

    assert set(first) == {"v1", "v2"}
    assert first == second


def test_a_split_obeys_a_person_at_once(story: Story) -> None:
    """Given a split under way, when somebody aborts it, then the candidate is off within ten seconds."""
    story.apply("split")
    eventually(lambda: story.get("canarysplit", "chat").get("status", {}).get("appliedWeight") == 50, 90, "weight 50")
    story.kubectl("annotate", "canarysplit", "chat", "sluice.dev/abort=1")
    users = [f"user-{number}" for number in range(20)]

    eventually(
        lambda: {call["headers"].get("x-sluice-arm") for call in story.calls(*users)} <= {"v1", None},
        10,
        "all users are back on stable",
    )


def test_a_user_beyond_the_limit_is_told_when_to_come_back(story: Story) -> None:
    """Given six requests a minute for each user, when one makes thirty, then most are refused truthfully."""
    story.apply("quota").ready("quotaallocation", "openai")
    calls = eventually(
        lambda: [call for call in story.calls(*["greedy"] * 30) if call["status"] == 429], 60, "the limit is in force"
    )

    assert all(float(call["headers"]["retry-after"]) > 0 for call in calls)
    assert all(call["error"]["type"] for call in calls)
    assert story.calls("modest")[0]["status"] == 200


def test_a_rotated_key_reaches_running_pods(story: Story) -> None:
    """Given running pods, when the Secret changes, then calls carry the new key, and nothing restarts."""
    story.calls("user-1")
    story.kubectl("patch", "secret", "openai", "--patch", '{"stringData": {"primary": "sk-new"}}')

    def rotated() -> bool:
        story.calls("user-1")
        return bool(story.ledger()[-1]["key_name"] == "new")

    eventually(rotated, 180, "the new key is used")
    assert all(_restarts(pod) == 0 for pod in story.pods())


def _restarts(pod: dict[str, object]) -> int:
    status: dict[str, list[dict[str, int]]] = pod["status"]  # type: ignore[assignment]
    return sum(one["restartCount"] for one in status["initContainerStatuses"] + status["containerStatuses"])


def test_an_edited_route_is_in_force_in_seconds(story: Story) -> None:
    """Given a route, when its model changes, then every pod serves the new one within seconds."""
    story.calls("user-1")
    story.apply("policy", **{"model: gpt-4.1-mini": "model: gpt-4.1-nano"})

    for pod in story.pods():
        name = pod["metadata"]["name"]
        eventually(lambda name=name: "nano" in str(story.calls("user-1", pod=name)[0]["model"]), 10, "the new model")


def test_a_bad_edit_takes_nothing_down(story: Story) -> None:
    """Given a working route, when another points nowhere, then that one says so and calls go on."""
    route = (
        "apiVersion: sluice.dev/v1alpha1\nkind: ModelRoute\nmetadata: {name: broken}\n"
        "spec: {workloads: {matchLabels: {app: none}}, rules: [{name: a, targets: [{upstreamRef: {name: nowhere}}]}]}"
    )
    story.kubectl("apply", "--filename", "-", given=route)
    story.kubectl("wait", "--for", "condition=Ready=False", "modelroute/broken", "--timeout", "60s")

    assert story.calls("user-1")[0]["status"] == 200


def test_the_loss_of_the_leader_is_mended_and_not_felt(story: Story) -> None:
    """Given two operators, when the leader is killed, then the other leads within twenty seconds, and calls go on."""
    leader = story.cluster.leader()
    story.cluster.kill(leader)

    def taken_over() -> bool:
        assert story.calls("user-1")[0]["status"] == 200
        return story.cluster.leader() not in ("", leader)

    eventually(taken_over, 25, "another operator leads")


def test_calls_go_on_without_any_control_plane(story: Story) -> None:
    """Given running pods, when operator and injector are gone, then calls go on, and a killed sidecar comes back."""
    names = ("sluice-operator", "sluice-injector")
    story.cluster.scale(*names, replicas=0)
    try:
        assert all(call["status"] == 200 for call in story.calls(*["user-1"] * 10))
        pod = story.pods()[0]["metadata"]["name"]
        stop = "import os, signal; os.kill(1, signal.SIGTERM)"
        story.kubectl("exec", pod, "--container", "sluice", "--", "python", "-c", stop, check=False)
        eventually(lambda: story.calls("user-1", pod=pod)[0]["status"] == 200, 60, "the sidecar is back")
    finally:
        story.cluster.scale(*names, replicas=2)


def test_a_job_ends(story: Story) -> None:
    """Given a Job whose init container calls too, when it has made its calls, then it is complete."""
    story.apply("job")
    story.kubectl("wait", "--for", "condition=Complete", "job/report", "--timeout", "180s")


def test_a_classic_sidecar_serves_where_native_ones_are_unknown(policed: Story) -> None:
    """Given nodes without native sidecars, when pods start, then the sidecar is a container, and serves as well."""
    cluster = policed.cluster
    cluster.install("injector.nativeSidecar=Never")
    try:
        injectors = ("--namespace", SYSTEM, "pods", "--selector", "app.kubernetes.io/component=injector")
        eventually(lambda: len(cluster.get(*injectors)["items"]) == 2, 60, "those of the old settings have ended")
        policed.apply("chat").rolled_out("chat")
        names = [container["name"] for container in policed.pods()[0]["spec"]["containers"]]
        assert sorted(names) == ["app", "sluice"]
        assert "initContainers" not in policed.pods()[0]["spec"]
        assert policed.calls("user-1")[0]["status"] == 200
    finally:
        cluster.install()


def test_a_pod_that_slipped_through_is_reported(story: Story) -> None:
    """Given no injector, when a pod starts without its sidecar, then an event on it says so and how to mend it."""
    story.cluster.scale("sluice-injector", replicas=0)
    try:
        story.kubectl("scale", "deployment", "chat", "--replicas=3")
        event = eventually(
            lambda: story.get("events", "--field-selector", "reason=SidecarMissing")["items"], 90, "an event"
        )
        assert event[0]["involvedObject"]["kind"] == "Pod"
    finally:
        story.cluster.scale("sluice-injector", replicas=2)


def test_a_deleted_certificate_comes_back(story: Story) -> None:
    """Given a working webhook, when its Secret is deleted, then new pods get sidecars again within a minute."""
    story.cluster.system("delete", "secret", "sluice-certificates")

    def injected() -> bool:
        pod = story.pods()[0]["metadata"]["name"]
        story.kubectl("delete", "pod", pod, "--wait=true")
        return all("initContainers" in each["spec"] for each in story.pods())

    eventually(injected, 60, "pods are injected under the new certificate")


def test_nobody_holds_more_rights_than_needed(cluster: Cluster) -> None:
    """Given the release, when its accounts ask for more, then the API server says no."""
    for account in ("sluice-operator", "sluice-injector"):
        who = f"--as=system:serviceaccount:{SYSTEM}:{account}"
        for asked in (
            ("delete", "pods", "--all-namespaces"),
            ("list", "secrets", "--all-namespaces"),
            ("create", "clusterrolebindings"),
            ("update", "deployments", "--namespace", "default"),
            ("update", "secrets", "--namespace", "default"),
            ("get", "secrets", "--namespace", "default") if account == "sluice-injector" else ("create", "pods"),
        ):
            assert cluster.kubectl("auth", "can-i", *asked, who, check=False).strip() == "no", (account, asked)


def test_deleting_everything_never_hangs(story: Story) -> None:
    """Given resources in use, when they are all deleted, then they are gone at once and the pods still answer."""
    story.apply("split").apply("quota")
    kinds = "canarysplits,quotaallocations"
    story.kubectl("delete", kinds, "--all", "--timeout", "20s")

    assert story.calls("user-1")[0]["status"] == 200


def test_an_upgrade_is_not_felt_and_leaving_is_safe(story: Story) -> None:
    """Given running pods, when the release is upgraded, then uninstalled, then they answer on, and nothing is left."""
    cluster = story.cluster
    cluster.install("sidecar.resources.cpuRequest=60m", "operator.logLevel=debug")
    assert all(call["status"] == 200 for call in story.calls(*["user-1"] * 10))
    assert cluster.get("upstreams", "--all-namespaces")["items"]

    cluster.helm("uninstall", "sluice", "--namespace", SYSTEM, "--wait")
    try:
        assert all(call["status"] == 200 for call in story.calls(*["user-1"] * 10))
        left = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings"
        assert not cluster.get(left, "--selector", "app.kubernetes.io/part-of=sluice")["items"]
        inside = "leases,secrets,configmaps,deployments,services,serviceaccounts,roles,rolebindings"
        found = cluster.get("--namespace", SYSTEM, inside, "--selector", "app.kubernetes.io/part-of=sluice")["items"]
        assert [item["metadata"]["name"] for item in found] == []
    finally:
        cluster.install()
