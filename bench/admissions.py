"""The injector's admission endpoint with TLS, as a program to put load on; and the review of a pod to put on it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvloop

from bench.fleet import listen
from sluice_operator import logs
from sluice_operator.injector_server import InjectorMetrics, InjectorServer
from sluice_operator.injector_settings import InjectorSettings, SidecarSettings, WhenUnconfigured


def review() -> bytes:
    """Return the AdmissionReview of a plain pod that has opted in."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "chat-7d9c-", "labels": {"app": "chat", "sluice.dev/inject": "true"}},
        "spec": {
            "containers": [
                {
                    "name": "app",
                    "image": "registry.example/chat:1",
                    "env": [{"name": f"SETTING_{number}", "value": "x" * 40} for number in range(20)],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                }
            ],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "serviceAccountName": "chat",
        },
    }
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    request: dict[str, Any] = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": kind,
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "team-1",
        "operation": "CREATE",
        "object": pod,
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


async def _serve() -> None:
    logs.configure("info")
    settings = InjectorSettings(version="0", sidecar=SidecarSettings(image="registry.example/sluice:0"))

    async def choice(_namespace: str) -> WhenUnconfigured | None:
        return None

    server = InjectorServer(settings, native=True, metrics=InjectorMetrics(), namespace_choice=choice)
    print(await listen(server.application()), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())
