"""A cluster's worth of resources, the leader that serves it, and the sidecars that report to it.

As a program, the leader: its sync server with TLS and token checks, its memory of the fleet, and the looking at both
that its loop does at every tick. What it has no part of here is the API server.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import ssl
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import uvloop
from aiohttp import web

from bench.policy import in_rollout, parsed
from sluice_core.api.manifests import AnyResource
from sluice_core.compile import Compiled, compile_namespaces
from sluice_operator.authn import TokenAuthenticator
from sluice_operator.certificates import renew
from sluice_operator.cluster import Cluster
from sluice_operator.leader import Leader
from sluice_operator.sync import PolicyBoard, SyncServer

NAMESPACES = 200
PODS_PER_NAMESPACE = 5
LABELS = {"app": "chat"}
TICK_SECONDS = 5.0
API_VERSION = "sluice.dev/v1alpha1"


def resources(namespaces: int = NAMESPACES) -> list[AnyResource]:
    """Return five resources for each namespace, and one account that all namespaces share."""
    limits = {"requestsPerMinute": 30_000, "tokensPerMinute": 50_000_000, "requestsPerDay": 10_000_000}
    shared = {"limits": limits | {"concurrency": 5_000}, "allowedNamespaces": {"selector": {}}}
    manifests = [
        _manifest("Upstream", "platform", "openai", shared | _keys()),
        _manifest("QuotaAllocation", "platform", "openai", _quota("openai")),
    ]
    for number in range(namespaces):
        namespace = f"team-{number}"
        ref = {"name": "openai", "namespace": "platform"}
        fallbacks = [{"upstreamRef": {"name": "own"}, "model": "gpt-4.1-nano"}]
        rule = {"name": "default", "targets": [{"upstreamRef": ref, "model": "gpt-4.1"}], "fallbacks": fallbacks}
        manifests += [
            _manifest("Upstream", namespace, "own", {"limits": limits} | _keys()),
            _manifest("QuotaAllocation", namespace, "own", _quota("own")),
            _manifest("ModelRoute", namespace, "chat", {"workloads": {"matchLabels": LABELS}, "rules": [rule]}),
            _manifest("ModelRoute", namespace, "rest", {"rules": [rule]}),
            _manifest("CanarySplit", namespace, "prompt", _split()),
        ]
    return [in_rollout(parsed(each), weight=0) for each in manifests]


def _manifest(kind: str, namespace: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _keys() -> dict[str, Any]:
    return {"credentials": [{"name": "primary", "secretKeyRef": {"name": "openai", "key": "primary"}}]}


def _quota(upstream: str) -> dict[str, Any]:
    shares = [("chat", 60, "Realtime"), ("batch", 30, "Batch"), ("tools", 10, "Standard")]
    allocations = [
        {"name": name, "workloads": {"matchLabels": {"app": name}}, "sharePercent": share, "priority": priority}
        for name, share, priority in shares
    ]
    return {"upstreamRef": {"name": upstream}, "allocations": allocations, "budget": {"monthlyUSD": "1000"}}


def _split() -> dict[str, Any]:
    text = "You are a helpful assistant. " * 40
    return {
        "routeRef": {"name": "chat", "rule": "default"},
        "stable": {"version": "v1", "instructions": text},
        "candidate": {"version": "v2", "instructions": text + "Be brief."},
        "strategy": {"steps": [{"weight": 10}, {"weight": 100}]},
    }


def compiled_fleet(everything: list[AnyResource]) -> Compiled:
    """Compile a cluster's resources, with the pods that there are."""
    names = dict.fromkeys(each.metadata.namespace for each in everything)
    pods = {name: [LABELS] * PODS_PER_NAMESPACE for name in names if name != "platform"}
    return compile_namespaces(everything, {name: {} for name in names}, pods)


class _Reviews:
    """Stands in for the API server's TokenReview: a token is `namespace/pod`."""

    async def create(self, _type: object, _namespace: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
        namespace, _, pod = body["spec"]["token"].partition("/")
        extra = {"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [pod]}
        user = {"username": f"system:serviceaccount:{namespace}:default", "extra": extra}
        return {"status": {"authenticated": True, "audiences": ["sluice"], "user": user}}


def tls_context() -> ssl.SSLContext:
    """Return a server's TLS context with a certificate that Sluice has issued itself."""
    bundle = renew(None, ["localhost"], dt.datetime.now(dt.UTC))
    assert bundle is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with tempfile.TemporaryDirectory() as directory:
        for name, data in bundle.to_secret_data().items():
            Path(directory, name).write_bytes(data)
        context.load_cert_chain(Path(directory, "tls.crt"), Path(directory, "tls.key"))
    return context


async def listen(application: web.Application) -> int:
    """Serve an application with TLS on a free port of this machine; return the port."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls_context()).start()
    port: int = runner.addresses[0][1]
    return port


async def _lead(namespaces: int) -> None:
    everything = resources(namespaces)
    compiled = compiled_fleet(everything)
    leader, board = Leader(clock=time.monotonic, fresh=True), PolicyBoard()
    leader.lead(True, time.monotonic())
    for snapshot in compiled.snapshots.values():
        board.publish(snapshot)
    authenticator = TokenAuthenticator(cast("Cluster", _Reviews()), clock=time.monotonic)
    print(await listen(SyncServer(leader, board, authenticator.authenticate).application()), flush=True)
    while True:
        leader.adopt(compiled, time.monotonic())
        for name, snapshot in compiled.snapshots.items():
            leader.synced(name, snapshot.revision)
        for quota in compiled.quotas:
            leader.quota_status(quota.key, time.time())
        await asyncio.sleep(TICK_SECONDS)


def main() -> None:
    """Lead until terminated; print the port."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespaces", type=int, default=NAMESPACES)
    uvloop.run(_lead(parser.parse_args().namespaces))


if __name__ == "__main__":
    main()
