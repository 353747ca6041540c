"""The sidecar as Kubernetes objects: its container and its volumes. Pure: a function of settings and pod.

The container meets the restricted pod-security profile. It sees the pod's labels, a token of Sluice's own audience, the
compiled policy and the keys that the namespace may use; the application's containers see none of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sluice_operator.injector_settings import Resources, SidecarSettings, WhenUnconfigured, quantity

CONTAINER_NAME: Final = "sluice"
CONFIG_MAP: Final = "sluice-policy"
CREDENTIALS_SECRET: Final = "sluice-credentials"  # noqa: S105 - the name of an object
POD_VOLUME: Final = "sluice-pod"
TOKEN_AUDIENCE: Final = "sluice"  # noqa: S105 - an audience
ANNOTATION_PREFIX: Final = "sluice.dev/sidecar-"

_CONFIG_DIR: Final = "/etc/sluice/config"
_CREDENTIALS_DIR: Final = "/etc/sluice/credentials"
_POD_DIR: Final = "/etc/sluice/pod"
_API_TOKEN_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
_TOKEN_SECONDS: Final = 3600
_DEFAULT_GRACE_SECONDS: Final = 30
_FLUSH_SECONDS: Final = 2

# Waits until the proxy is ready, then lets the kubelet start the application. It never fails: that would kill the pod.
_WAIT: Final = """\
import sys, time, urllib.request
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        urllib.request.urlopen(sys.argv[1], timeout=1).close()
        break
    except OSError:
        time.sleep(0.1)
"""

JsonObject = dict[str, Any]


def volumes() -> list[JsonObject]:
    """Return the sidecar's volumes. Policy and keys are optional: a pod starts before the control plane knows it."""
    token = {"audience": TOKEN_AUDIENCE, "expirationSeconds": _TOKEN_SECONDS, "path": "token"}
    labels = {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}
    return [
        {"name": CONFIG_MAP, "configMap": {"name": CONFIG_MAP, "optional": True}},
        {"name": CREDENTIALS_SECRET, "secret": {"secretName": CREDENTIALS_SECRET, "optional": True}},
        {"name": POD_VOLUME, "projected": {"sources": [{"downwardAPI": labels}, {"serviceAccountToken": token}]}},
    ]


def container(
    settings: SidecarSettings, pod: Mapping[str, Any], *, native: bool, when_unconfigured: WhenUnconfigured
) -> tuple[JsonObject, list[str]]:
    """Return the sidecar's container and warnings about what the pod's annotations asked and did not get."""
    grace_seconds = _grace_seconds(pod)
    resources, warnings = _resources(settings.resources, (pod.get("metadata") or {}).get("annotations") or {})
    sidecar: JsonObject = {
        "name": CONTAINER_NAME,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["sluice-sidecar"],  # whatever the image's own entry point is
        "env": _environment(settings, grace_seconds, when_unconfigured),
        "ports": [{"name": "sluice-admin", "containerPort": settings.admin_port, "protocol": "TCP"}],
        "resources": resources,
        "securityContext": _security_context(settings),
        "volumeMounts": _mounts(),
        **_probes(settings),
    }
    if native:
        sidecar["restartPolicy"] = "Always"
    else:
        url = f"http://127.0.0.1:{settings.admin_port}/readyz"
        # Stopped together with the application, it must outlive it a little; the kubelet waits for this command.
        linger = str(min(settings.pre_stop_seconds, grace_seconds // 2))
        sidecar["lifecycle"] = {
            "postStart": {"exec": {"command": ["python", "-c", _WAIT, url]}},
            "preStop": {"exec": {"command": ["sleep", linger]}},
        }
    return sidecar, warnings


def _grace_seconds(pod: Mapping[str, Any]) -> int:
    seconds = (pod.get("spec") or {}).get("terminationGracePeriodSeconds")
    return seconds if isinstance(seconds, int) and seconds >= 0 else _DEFAULT_GRACE_SECONDS


def _environment(
    settings: SidecarSettings, grace_seconds: int, when_unconfigured: WhenUnconfigured
) -> list[JsonObject]:
    admin_host = f"[{settings.admin_host}]" if ":" in settings.admin_host else settings.admin_host
    values = {
        "SLUICE_LISTEN": f"127.0.0.1:{settings.proxy_port}",
        "SLUICE_ADMIN": f"{admin_host}:{settings.admin_port}",
        "SLUICE_CONFIG_DIR": _CONFIG_DIR,
        "SLUICE_CREDENTIALS_DIR": _CREDENTIALS_DIR,
        "SLUICE_LABELS_FILE": f"{_POD_DIR}/labels",
        # What is left after the kubelet's own deadline for writing out records and counts.
        "SLUICE_GRACE_SECONDS": str(max(grace_seconds - _FLUSH_SECONDS, 1)),
        "SLUICE_WHEN_UNCONFIGURED": when_unconfigured.value,
    }
    if settings.sync_url:
        values["SLUICE_SYNC_URL"] = settings.sync_url
        values["SLUICE_SYNC_TOKEN_FILE"] = f"{_POD_DIR}/token"
        # In the policy's ConfigMap, so that a renewed authority reaches pods that run for years.
        values["SLUICE_SYNC_CA_FILE"] = f"{_CONFIG_DIR}/ca.crt"
    references = {
        "SLUICE_NAMESPACE": "metadata.namespace",
        "SLUICE_POD_NAME": "metadata.name",
        "SLUICE_POD_UID": "metadata.uid",
    }
    extra = {name: value for name, value in settings.environment.items() if name not in values | references}
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in references.items()),
        *({"name": name, "value": value} for name, value in (values | extra).items()),
    ]


def _security_context(settings: SidecarSettings) -> JsonObject:
    context: JsonObject = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if settings.run_as_user is not None:
        context |= {"runAsUser": settings.run_as_user, "runAsGroup": settings.run_as_user}
    return context


def _mounts() -> list[JsonObject]:
    return [
        {"name": CONFIG_MAP, "mountPath": _CONFIG_DIR, "readOnly": True},
        {"name": CREDENTIALS_SECRET, "mountPath": _CREDENTIALS_DIR, "readOnly": True},
        {"name": POD_VOLUME, "mountPath": _POD_DIR, "readOnly": True},
        # The API server runs its own admission again after a webhook and would mount the application's token here;
        # a mount at this path is what keeps it out.
        {"name": POD_VOLUME, "mountPath": _API_TOKEN_DIR, "readOnly": True},
    ]


def _probes(settings: SidecarSettings) -> JsonObject:
    ready = {"path": "/readyz", "port": settings.admin_port, "scheme": "HTTP"}
    alive = {"path": "/livez", "port": settings.admin_port, "scheme": "HTTP"}
    return {
        # The application starts when this passes, so it never meets a proxy without a policy.
        "startupProbe": {"httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 120},
        "readinessProbe": {"httpGet": ready, "periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {"httpGet": alive, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
    }


def _resources(defaults: Resources, annotations: Mapping[str, str]) -> tuple[JsonObject, list[str]]:
    warnings: list[str] = []
    chosen: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    for resource in ("cpu", "memory"):
        for bound, section in (("request", "requests"), ("limit", "limits")):
            annotation = f"{ANNOTATION_PREFIX}{resource}-{bound}"
            value = annotations.get(annotation, "")
            if value and quantity(value) is None:
                warnings.append(f'annotation {annotation}: "{value[:32]}" is not a quantity such as 250m or 64Mi')
                value = ""
            value = value or getattr(defaults, f"{resource}_{bound}")
            if value:
                chosen[section][resource] = value
        warnings += _raise_limit(resource, chosen)
    return {section: values for section, values in chosen.items() if values}, warnings


def _raise_limit(resource: str, chosen: dict[str, dict[str, str]]) -> list[str]:
    """Keep the limit at or above the request: the API server would refuse the whole pod otherwise."""
    request, limit = chosen["requests"].get(resource), chosen["limits"].get(resource)
    if request is None or limit is None or (quantity(request) or 0) <= (quantity(limit) or 0):
        return []
    chosen["limits"][resource] = request
    return [f"the sidecar's {resource} limit {limit} is below its request and was raised to {request}"]
