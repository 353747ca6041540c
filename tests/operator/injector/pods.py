"""Pods as an API server presents them at admission, one for each case that matters."""

from __future__ import annotations

import copy
from typing import Any

import jsonpatch

from sluice_operator.injector import Injection
from sluice_operator.injector_settings import InjectorSettings, SidecarSettings

Pod = dict[str, Any]

SETTINGS = InjectorSettings(
    version="1.2.3",
    sidecar=SidecarSettings(
        image="registry.example/sluice-sidecar:1.2.3", sync_url="https://sluice-operator.sluice-system.svc:8443"
    ),
)

TOKEN_MOUNT = {
    "name": "kube-api-access-x",
    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
    "readOnly": True,
}


def plain() -> Pod:
    """Return a Deployment's pod: no name yet, the account's token mounted, nothing about OpenAI."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "chat-7d9c-",
            "labels": {"app": "chat", "sluice.dev/inject": "true"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "chat-7d9c", "uid": "u"}],
        },
        "spec": {
            "containers": [
                {
                    "name": "app",
                    "image": "chat:1",
                    "volumeMounts": [TOKEN_MOUNT],
                    "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
                }
            ],
            "volumes": [{"name": "kube-api-access-x", "projected": {"sources": []}}],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 60,
        },
    }


def rich() -> Pod:
    """Return a pod with init containers, environments of every kind, annotations and a base URL of its own."""
    pod = plain()
    pod["metadata"]["annotations"] = {
        "example.com/team": "a/b~c",
        "sluice.dev/sidecar-cpu-request": "200m",
        "sluice.dev/sidecar-memory-limit": "1Gi",
        "sluice.dev/when-unconfigured": "PassThrough",
    }
    pod["spec"]["initContainers"] = [
        {"name": "migrate", "image": "chat:1", "env": [{"name": "A", "value": "$(OPENAI_BASE_URL)/models"}]},
        {"name": "log", "image": "log:1", "restartPolicy": "Always"},
    ]
    key = {"secretKeyRef": {"name": "own", "key": "key"}}
    pod["spec"]["containers"] = [
        {"name": "app", "image": "chat:1", "env": [{"name": "OPENAI_API_KEY", "valueFrom": key}]},
        {"name": "direct", "image": "d:1", "env": [{"name": "OPENAI_BASE_URL", "value": "https://other.example/v1"}]},
        {"name": "from", "image": "f:1", "envFrom": [{"secretRef": {"name": "everything"}}]},
    ]
    return pod


def job() -> Pod:
    """Return a Job's pod, without volumes or annotations."""
    pod = plain()
    pod["metadata"]["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": "report", "uid": "u"}]
    pod["spec"] = {"containers": [{"name": "app", "image": "report:1"}], "restartPolicy": "Never"}
    return pod


def patched(pod: Pod, injection: Injection) -> Pod:
    """Return the pod as the API server would have it after the injection."""
    operations = [{"op": "add", "path": one.path, "value": one.value} for one in injection.patch]
    result: Pod = jsonpatch.apply_patch(copy.deepcopy(pod), operations)
    return result
