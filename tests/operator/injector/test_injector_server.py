"""The admission endpoint: what an API server sends and gets, and the whole process around it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonpatch
import msgspec
import pytest
import yaml
from aiohttp import ClientSession, TCPConnector
from aiohttp.test_utils import TestClient, TestServer

from sluice_operator import injector_check, injector_main, injector_permissions
from sluice_operator.certificates_keeper import WEBHOOKS
from sluice_operator.cluster import Cluster
from sluice_operator.injector_cluster import NODES, NamespaceChoices, detect_native, knows_native
from sluice_operator.injector_server import MAX_REVIEW_BYTES, InjectorMetrics, InjectorServer
from sluice_operator.injector_settings import NativeSidecar, WhenUnconfigured
from sluice_operator.kinds import NAMESPACES

from . import pods


def review(pod: Any, **request: Any) -> dict[str, Any]:
    """Return an AdmissionReview as a real API server writes one, fields included that are of no use here."""
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    return {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": kind,
            "resource": resource,
            "requestKind": kind,
            "requestResource": resource,
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "uid": "1"},
            "object": pod,
            "oldObject": None,
            "dryRun": False,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            **request,
        },
    }


@pytest.fixture
def metrics() -> InjectorMetrics:
    return InjectorMetrics()


@pytest.fixture
async def client(metrics: InjectorMetrics) -> AsyncIterator[TestClient[Any, Any]]:
    async def choice(namespace: str) -> WhenUnconfigured | None:
        return WhenUnconfigured.PASS_THROUGH if namespace == "lenient" else None

    server = InjectorServer(pods.SETTINGS, native=True, metrics=metrics, namespace_choice=choice)
    async with TestClient(TestServer(server.application())) as testing:
        yield testing


def _pod_of(answer: dict[str, Any], pod: pods.Pod) -> pods.Pod:
    operations = json.loads(base64.b64decode(answer["response"]["patch"]))
    result: pods.Pod = jsonpatch.apply_patch(pod, operations)
    return result


async def test_a_pod_is_allowed_with_a_patch(client: TestClient[Any, Any]) -> None:
    """The answer has the request's uid, the version that was asked in, and a patch that applies."""
    response = await client.post("/inject", json=review(pods.plain()))
    answer = await response.json()

    assert response.status == 200
    assert answer["apiVersion"] == "admission.k8s.io/v1"
    assert answer["kind"] == "AdmissionReview"
    assert answer["response"]["uid"] == "705ab4f5-6393-11e8-b7cc-42010a800002"
    assert answer["response"]["allowed"] is True
    assert answer["response"]["patchType"] == "JSONPatch"
    assert _pod_of(answer, pods.plain())["spec"]["initContainers"][0]["name"] == "sluice"


async def test_a_pod_that_opted_out_is_allowed_without_a_patch(client: TestClient[Any, Any]) -> None:
    """No patch means no patch type either: the API server refuses one without the other."""
    pod = pods.plain()
    pod["metadata"]["labels"]["sluice.dev/inject"] = "false"
    answer = await (await client.post("/inject", json=review(pod))).json()

    assert answer["response"] == {"uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "allowed": True}


async def test_warnings_reach_the_user(client: TestClient[Any, Any]) -> None:
    """What the injector could not do is told by kubectl."""
    pod = pods.plain()
    pod["spec"]["hostNetwork"] = True
    answer = await (await client.post("/inject", json=review(pod))).json()

    assert answer["response"]["allowed"] is True
    assert "host's network" in answer["response"]["warnings"][0]


async def test_the_namespaces_choice_is_asked_by_the_requests_namespace(client: TestClient[Any, Any]) -> None:
    """A pod's own metadata names no namespace at admission; the request does."""
    answer = await (await client.post("/inject", json=review(pods.plain(), namespace="lenient"))).json()
    sidecar = _pod_of(answer, pods.plain())["spec"]["initContainers"][0]

    assert {"name": "SLUICE_WHEN_UNCONFIGURED", "value": "PassThrough"} in sidecar["env"]


@pytest.mark.parametrize(
    "request_fields",
    [{"operation": "UPDATE"}, {"kind": {"group": "", "version": "v1", "kind": "ConfigMap"}}, {"object": None}],
)
async def test_what_is_no_new_pod_is_allowed_untouched(
    client: TestClient[Any, Any], request_fields: dict[str, Any]
) -> None:
    """A webhook configuration that sends too much harms nobody."""
    answer = await (await client.post("/inject", json=review(pods.plain(), **request_fields))).json()

    assert answer["response"] == {"uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "allowed": True}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"request": {}}',
        b"\xff",
        b'{"apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"u"}}',
    ],
)
async def test_what_is_no_review_is_a_bad_request(
    client: TestClient[Any, Any], metrics: InjectorMetrics, body: bytes
) -> None:
    """Without a uid there is nothing to answer; the API server then follows its failure policy."""
    response = await client.post("/inject", data=body)

    assert response.status == 400
    assert metrics.registry.get_sample_value("sluice_injector_faults_total") == 1


async def test_a_review_beyond_all_bounds_is_refused(client: TestClient[Any, Any]) -> None:
    """The body is bounded: pods are small."""
    response = await client.post("/inject", data=io.BytesIO(b" " * (MAX_REVIEW_BYTES + 1)))

    assert response.status == 413


async def test_a_fault_of_ours_leaves_the_decision_to_the_failure_policy(
    client: TestClient[Any, Any], metrics: InjectorMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen error answers 500, counts, and gives nothing of the pod away."""

    def fail(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("sluice_operator.injector.inject", fail)
    response = await client.post("/inject", json=review(pods.plain()))

    assert response.status == 500
    assert "chat" not in await response.text()
    assert metrics.registry.get_sample_value("sluice_injector_faults_total") == 1


async def test_outcomes_are_counted(client: TestClient[Any, Any], metrics: InjectorMetrics) -> None:
    """Each outcome has its counter, there from the start."""
    await client.post("/inject", json=review(pods.plain()))

    def count(outcome: str) -> float | None:
        return metrics.registry.get_sample_value("sluice_injector_reviews_total", {"outcome": outcome})

    assert count("Injected") == 1
    assert count("OptedOut") == 0


@pytest.mark.parametrize(
    ("versions", "native"),
    [
        (["v1.36.1", "v1.33.0+k3s1"], True),
        (["v1.36.1", "v1.28.9-eks-1"], False),
        (["v2.0.0"], True),
        (["unknown", ""], True),
        ([], True),
    ],
)
def test_one_old_kubelet_is_enough_for_a_classic_sidecar(versions: list[str], native: bool) -> None:
    """A pod may be scheduled to any node, and an old one would refuse it."""
    assert knows_native(versions) == native


@pytest.mark.parametrize(
    ("setting", "kubelet", "native"),
    [
        (NativeSidecar.AUTO, "v1.36.0", True),
        (NativeSidecar.AUTO, "v1.28.0", False),
        (NativeSidecar.ALWAYS, "v1.28.0", True),
        (NativeSidecar.NEVER, "v1.36.0", False),
    ],
)
async def test_the_nodes_are_asked_only_where_the_setting_leaves_it_open(
    api: Any, cluster: Cluster, setting: NativeSidecar, kubelet: str, native: bool
) -> None:
    """Auto looks at every node; the other settings are what they say."""
    api.put(NODES, "node-1", status={"nodeInfo": {"kubeletVersion": kubelet}})

    assert await detect_native(cluster, setting, default=not native) is native


async def test_nodes_that_may_not_be_listed_leave_what_was_known(api: Any, cluster: Cluster) -> None:
    """Without the permission the default holds."""
    api.fail(403, "Forbidden", path="nodes", times=2)

    assert await detect_native(cluster, NativeSidecar.AUTO, default=True)
    assert not await detect_native(cluster, NativeSidecar.AUTO, default=False)


async def test_a_namespaces_choice_is_read_once_in_a_while(api: Any, cluster: Cluster, clock: Any) -> None:
    """The annotation is remembered for some seconds, survives an API server that is away, and then changes."""
    choices = NamespaceChoices(cluster, clock)
    annotations = {"sluice.dev/when-unconfigured": "PassThrough"}
    api.put(NAMESPACES, "shop", metadata={"annotations": annotations})
    assert await choices.get("shop") is WhenUnconfigured.PASS_THROUGH
    api.put(NAMESPACES, "shop", metadata={"annotations": {}})
    assert await choices.get("shop") is WhenUnconfigured.PASS_THROUGH
    clock.advance(11)
    api.fail(503, "ServiceUnavailable", path="namespaces")
    assert await choices.get("shop") is WhenUnconfigured.PASS_THROUGH
    clock.advance(11)

    assert await choices.get("shop") is None


async def test_an_unknown_namespace_has_no_choice(cluster: Cluster, clock: Any) -> None:
    """A namespace that cannot be read takes the installation's default."""
    assert await NamespaceChoices(cluster, clock).get("nowhere") is None


@pytest.fixture
def environment(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The process's environment against the API server of the test."""
    entries = [{"name": "pod.inject.sluice.dev", "clientConfig": {"service": {"name": "sluice-injector"}}}]
    api.put(WEBHOOKS, "sluice-injector", webhooks=entries)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "clusters": [{"name": "test", "cluster": {"server": str(api.url).rstrip("/")}}],
                "users": [{"name": "test", "user": {}}],
            }
        )
    )
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    config = tmp_path / "injector.json"
    config.write_bytes(msgspec.json.encode(pods.SETTINGS))
    return {
        "SLUICE_INJECTOR_CONFIG": str(config),
        # the last name is for the chart's own check, which cannot choose the name that it asks for
        "SLUICE_CERTIFICATE_NAMES": "sluice-injector.sluice-system.svc,sluice-operator.sluice-system.svc,localhost",
        "SLUICE_INJECTOR_PORT": "0",
        "SLUICE_HEALTH_PORT": "0",
        "SLUICE_DRAIN_SECONDS": "0",
        "SLUICE_PORTS_FILE": str(tmp_path / "ports.json"),
    }


async def test_the_process_serves_what_the_api_server_trusts(
    api: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    """From an empty cluster, with its own rights only: certificate made and trusted, a pod injected, a clean stop."""
    rules = injector_permissions.CLUSTER_RULES + injector_permissions.NODE_RULES
    api.enforce(rules, "sluice-system", injector_permissions.NAMESPACE_RULES)
    api.put(NAMESPACES, "shop", metadata={"annotations": {"sluice.dev/when-unconfigured": "PassThrough"}})
    stop = asyncio.Event()
    running = asyncio.create_task(injector_main.serve(injector_main.read_environment(environment), stop))
    ports = await _ports(tmp_path / "ports.json", running)
    bundle = api.object(WEBHOOKS, "sluice-injector")["webhooks"][0]["clientConfig"]["caBundle"]
    trust = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())

    async with ClientSession(connector=TCPConnector(ssl=trust)) as session:
        url = f"https://127.0.0.1:{ports['admission']}/inject"
        name = "sluice-injector.sluice-system.svc"
        async with session.post(url, json=review(pods.plain()), server_hostname=name) as response:
            sidecar = _pod_of(await response.json(), pods.plain())["spec"]["initContainers"][0]
            assert {"name": "SLUICE_WHEN_UNCONFIGURED", "value": "PassThrough"} in sidecar["env"]
        arguments = await _check_arguments(tmp_path, ports, bundle)
        assert await asyncio.to_thread(injector_check.main, arguments) == 0
        for path in ("livez", "readyz", "metrics"):
            async with session.get(f"http://127.0.0.1:{ports['health']}/{path}") as response:
                assert response.status == 200
    stop.set()
    await running


async def _check_arguments(tmp_path: Path, ports: dict[str, int], bundle: str) -> list[str]:
    authority = tmp_path / "ca.crt"
    authority.write_bytes(base64.b64decode(bundle))
    ready = f"--ready=http://127.0.0.1:{ports['health']}/readyz"
    return [f"--admission=https://localhost:{ports['admission']}/inject", f"--authority={authority}", ready]


async def _ports(path: Path, running: asyncio.Task[None]) -> dict[str, int]:
    while not path.exists():
        if running.done():
            running.result()
        await asyncio.sleep(0.01)
    ports: dict[str, int] = json.loads(path.read_bytes())
    return ports


def test_the_check_names_what_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`helm test` fails with a line for each part that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    arguments = [f"--admission=https://127.0.0.1:{port}/inject", f"--authority={tmp_path / 'none'}"]
    status = injector_check.main([*arguments, f"--ready=http://127.0.0.1:{port}/readyz"])

    assert status == 1
    assert "/inject" in (printed := capsys.readouterr().err)
    assert "/readyz" in printed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"SLUICE_CERTIFICATE_NAMES": ""}, "SLUICE_CERTIFICATE_NAMES"),
        ({"SLUICE_INJECTOR_CONFIG": "/nowhere/injector.json"}, "SLUICE_INJECTOR_CONFIG"),
        ({"SLUICE_INJECTOR_PORT": "high"}, "SLUICE_INJECTOR_PORT"),
        ({"SLUICE_CERTIFICATE_ISSUER": "Vault"}, "SLUICE_CERTIFICATE_ISSUER"),
    ],
)
def test_a_wrong_environment_names_the_variable(
    environment: dict[str, str], changes: dict[str, str], named: str
) -> None:
    """The process refuses to start with a sentence that says what to mend."""
    with pytest.raises(ValueError, match=named):
        injector_main.read_environment(environment | changes)


def test_a_settings_file_with_an_unknown_field_is_refused(environment: dict[str, str]) -> None:
    """A misspelt setting is not silently ignored."""
    Path(environment["SLUICE_INJECTOR_CONFIG"]).write_text('{"version": "1", "sidecar": {"image": "i", "imge": ""}}')

    with pytest.raises(ValueError, match="imge"):
        injector_main.read_environment(environment)
