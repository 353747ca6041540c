"""The real process: started as the image starts it, reached over TLS, ended by SIGTERM."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from sluice_core.snapshot import decode
from sluice_operator.kinds import CONFIG_MAPS, LEASES, MODEL_ROUTES, NAMESPACES, PODS, SECRETS, UPSTREAMS
from sluice_operator.permissions import CLUSTER_RULES, NAMESPACE_RULES

HOST = "sluice-sync.sluice-system.svc"


@pytest.fixture
def kubeconfig(api, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": str(api.url).rstrip("/")}}],
                "users": [{"name": "test", "user": {"token": "operator-token"}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            }
        )
    )
    return path


@pytest.fixture
async def process(kubeconfig: Path, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "KUBERNETES_"))},
        "KUBECONFIG": str(kubeconfig),
        "SLUICE_POD_NAME": "sluice-operator-0",
        "SLUICE_HTTP": "127.0.0.1:0",
        "SLUICE_SYNC": "127.0.0.1:0",
        "SLUICE_CERTIFICATE_NAMES": HOST,
        "SLUICE_PORTS_FILE": str(tmp_path / "ports.json"),
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sluice_operator", env=environment, stderr=asyncio.subprocess.PIPE
    )
    yield child
    if child.returncode is None:
        child.kill()
    await child.communicate()


async def ports_in(path: Path) -> dict[str, int]:
    async with asyncio.timeout(30):
        while True:
            ports = json.loads(path.read_bytes()) if path.exists() else {}
            if {"http", "sync"} <= ports.keys():
                return ports
            await asyncio.sleep(0.05)


async def test_a_pod_gets_its_own_policy_over_tls_and_no_other(process, api, tmp_path: Path):
    """The whole way: certificate made, token reviewed, policy served; then SIGTERM hands the Lease over."""
    api.enforce(CLUSTER_RULES, "sluice-system", NAMESPACE_RULES)
    api.put(NAMESPACES, "team")
    api.put(UPSTREAMS, "openai", "team", spec={"baseURL": "http://mock/v1"})
    rules = [{"name": "default", "targets": [{"upstreamRef": {"name": "openai"}}]}]
    api.put(MODEL_ROUTES, "chat", "team", spec={"rules": rules})
    api.put(PODS, "chat-1", "team", spec={"containers": [{"name": "sluice"}]}, status={"phase": "Running"})
    extra = {"authentication.kubernetes.io/pod-name": ["chat-1"], "authentication.kubernetes.io/pod-uid": ["u"]}
    user = {"username": "system:serviceaccount:team:default", "extra": extra}
    api.reviews["pod-token"] = {"authenticated": True, "audiences": ["sluice"], "user": user}

    ports = await ports_in(tmp_path / "ports.json")
    authority = base64.b64decode(api.object(SECRETS, "sluice-certificates", "sluice-system")["data"]["ca.crt"]).decode()
    trust = ssl.create_default_context(cadata=authority)
    base = f"https://127.0.0.1:{ports['sync']}/v1/policy"
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer pod-token"}) as session:

        async def policy(namespace: str, **options) -> aiohttp.ClientResponse:
            query = {"namespace": namespace, "waitSeconds": "20"}
            return await session.get(base, params=query, ssl=trust, server_hostname=HOST, **options)

        while (answer := await policy("team")).status == 503:  # noqa: ASYNC110 -- it does not lead yet
            await asyncio.sleep(0.05)
        async with answer:
            assert answer.status == 200
            assert decode(await answer.read()).routes[0].key == "team/chat"
        async with await policy("platform") as answer:
            assert answer.status == 403
        async with await policy("team", headers={"Authorization": "Bearer another"}) as answer:
            assert answer.status == 401

    while api.object(CONFIG_MAPS, "sluice-policy", "team") is None:  # noqa: ASYNC110 -- pushed first, written then
        await asyncio.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, logs = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert api.object(LEASES, "sluice-operator", "sluice-system")["spec"]["holderIdentity"] == ""
    lines = [json.loads(line) for line in logs.decode().splitlines()]
    assert {"listening", "policy_published", "operator_stopping"} <= {line["event"] for line in lines}
    assert "token" not in logs.decode().replace("token_review", "")


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"SLUICE_TICK_SECONDS": "soon"}, "SLUICE_TICK_SECONDS"), ({}, "kube-config")],
)
async def test_what_cannot_start_says_why_in_one_line(tmp_path: Path, environment, message: str):
    """A wrong setting or a missing cluster ends the process with 2 and a line that names it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sluice_operator",
        env={"PATH": os.environ["PATH"], "KUBECONFIG": str(tmp_path / "none"), **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    _, logs = await child.communicate()
    assert child.returncode == 2
    assert message in json.loads(logs.splitlines()[-1])["error"]
