"""Which pods get a sidecar, and the patch that adds it. Pure: a pod in, JSONPatch operations out.

Works on the pod as plain JSON, so that fields newer than any client library survive. Every operation is an `add`;
nothing that the user wrote is changed. Run on its own result it returns no operation, and run on a pod that another
webhook added a container to, only what that container still needs.

An `OPENAI_BASE_URL` or `OPENAI_API_KEY` counts as set when the container's `env` names it, with a value or a reference.
`envFrom` does not count: what it holds is unknown at admission, and an `env` entry takes precedence over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from sluice_operator import injector_sidecar
from sluice_operator.injector_settings import InjectorSettings, SidecarSettings, WhenUnconfigured

INJECT_LABEL: Final = "sluice.dev/inject"
INJECTED_ANNOTATION: Final = "sluice.dev/injected"
WHEN_UNCONFIGURED_ANNOTATION: Final = "sluice.dev/when-unconfigured"
PLACEHOLDER_KEY: Final = "sk-sluice-placeholder"
_MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"
_MAX_WARNINGS: Final = 8
_MAX_WARNING_LENGTH: Final = 240  # the API server cuts them off at 256

JsonObject = dict[str, Any]


class Outcome(StrEnum):
    """What was done about a pod; the label of the injector's counter."""

    INJECTED = "Injected"
    COMPLETED = "Completed"
    UNCHANGED = "Unchanged"
    OPTED_OUT = "OptedOut"
    UNSUPPORTED = "Unsupported"


class Operation(msgspec.Struct, frozen=True, kw_only=True, tag_field="op", tag="add"):
    """One JSONPatch operation; there is no other than `add`."""

    path: str
    value: Any


class Injection(msgspec.Struct, frozen=True, kw_only=True):
    """The decision about one pod: operations to apply in order, and warnings for whoever created it."""

    outcome: Outcome
    patch: tuple[Operation, ...] = ()
    warnings: tuple[str, ...] = ()


def inject(
    pod: Mapping[str, Any],
    settings: InjectorSettings,
    *,
    native: bool,
    when_unconfigured: WhenUnconfigured | None = None,
) -> Injection:
    """Decide about a pod that its label or its namespace's label opted in.

    `native` says whether every node can run a native sidecar; `when_unconfigured` is the namespace's choice, which the
    pod's annotation overrides. Fields that have the wrong JSON type are taken as absent: the API server judges them.
    """
    metadata, spec = _object(pod.get("metadata")), _object(pod.get("spec"))
    annotations = _object(metadata.get("annotations"))
    if _object(metadata.get("labels")).get(INJECT_LABEL, "true") != "true":
        return Injection(outcome=Outcome.OPTED_OUT)
    present = _sidecar_of(spec)
    if reason := _unsupported(spec, annotations, present):
        warnings = (f"Sluice leaves this pod alone: {reason}",)
        return Injection(outcome=Outcome.UNSUPPORTED, warnings=warnings)

    patch, warnings_ = _point_at_proxy(spec, settings.sidecar)
    if present is not None:
        outcome = Outcome.COMPLETED if patch else Outcome.UNCHANGED
        return Injection(outcome=outcome, patch=tuple(patch), warnings=_bounded(warnings_))
    choice = _choice(annotations, when_unconfigured or settings.sidecar.when_unconfigured, warnings_)
    sidecar, more = injector_sidecar.container(settings.sidecar, pod, native=native, when_unconfigured=choice)
    # After the environment's operations: from here on the positions of the containers shift.
    patch += _add_items("/spec", spec, "volumes", _missing_volumes(spec))
    patch += _add_first("/spec", spec, "initContainers" if native else "containers", sidecar)
    patch += _add_annotation(metadata, settings.version)
    more += _classic_warnings(metadata, spec) if not native else []
    more += _port_warnings(spec, settings.sidecar)
    return Injection(outcome=Outcome.INJECTED, patch=tuple(patch), warnings=_bounded(warnings_ + more))


def _unsupported(spec: JsonObject, annotations: JsonObject, present: JsonObject | None) -> str | None:
    if _MIRROR_ANNOTATION in annotations:
        return "a static pod cannot have a service-account token"
    if spec.get("hostNetwork"):
        return "it uses the host's network, where the proxy's ports would be open to the node"
    if _is_windows(spec):
        return "it runs on Windows"
    if present is not None and INJECTED_ANNOTATION not in annotations:
        return f'it has a container of its own called "{injector_sidecar.CONTAINER_NAME}"'
    return None


def _is_windows(spec: JsonObject) -> bool:
    selector = _object(spec.get("nodeSelector"))
    return "windows" in (_object(spec.get("os")).get("name"), selector.get("kubernetes.io/os"))


def _sidecar_of(spec: JsonObject) -> JsonObject | None:
    for field in ("initContainers", "containers"):
        for item in _objects(spec.get(field)):
            if item.get("name") == injector_sidecar.CONTAINER_NAME:
                return item
    return None


def _choice(annotations: JsonObject, default: WhenUnconfigured, warnings: list[str]) -> WhenUnconfigured:
    text = annotations.get(WHEN_UNCONFIGURED_ANNOTATION)
    if text is None:
        return default
    try:
        return WhenUnconfigured(text)
    except ValueError:
        warnings.append(f"annotation {WHEN_UNCONFIGURED_ANNOTATION} must be Hold or PassThrough")
        return default


def _point_at_proxy(spec: JsonObject, sidecar: SidecarSettings) -> tuple[list[Operation], list[str]]:
    patch: list[Operation] = []
    warnings: list[str] = []
    wanted = {"OPENAI_BASE_URL": sidecar.base_url, "OPENAI_API_KEY": PLACEHOLDER_KEY}
    for field in ("initContainers", "containers"):
        for index, item in enumerate(_objects(spec.get(field))):
            if item.get("name") == injector_sidecar.CONTAINER_NAME:
                continue
            known = {entry.get("name"): entry for entry in _objects(item.get("env"))}
            missing = [{"name": name, "value": value} for name, value in wanted.items() if name not in known]
            patch += _add_ahead(f"/spec/{field}/{index}", item, "env", missing)
            warnings += _environment_warnings(item.get("name"), known, sidecar.base_url)
    return patch, warnings


def _environment_warnings(container: Any, env: Mapping[Any, JsonObject], base_url: str) -> list[str]:
    warnings = []
    own = env.get("OPENAI_BASE_URL")
    if own is not None and own.get("value") != base_url:
        warnings.append(f'container "{container}" sets OPENAI_BASE_URL itself: its calls do not go through Sluice')
    proxied = any(name in env for name in ("HTTP_PROXY", "http_proxy"))
    spared = any("127.0.0.1" in str(env.get(name, {}).get("value")) for name in ("NO_PROXY", "no_proxy"))
    if proxied and not spared and own is None:
        warnings.append(f'container "{container}" sets HTTP_PROXY: add 127.0.0.1 to its NO_PROXY')
    return warnings


def _classic_warnings(metadata: JsonObject, spec: JsonObject) -> list[str]:
    warnings = []
    owners = _objects(metadata.get("ownerReferences"))
    if spec.get("restartPolicy") in ("Never", "OnFailure") or any(owner.get("kind") == "Job" for owner in owners):
        warnings.append(
            "Sluice's sidecar keeps this Job from completing: nodes older than Kubernetes 1.29 cannot do it"
        )
    if spec.get("initContainers"):
        warnings.append("init containers run before Sluice's sidecar on nodes older than Kubernetes 1.29")
    return warnings


def _port_warnings(spec: JsonObject, sidecar: SidecarSettings) -> list[str]:
    declared = {
        port.get("containerPort") for item in _objects(spec.get("containers")) for port in _objects(item.get("ports"))
    }
    taken = [port for port in (sidecar.proxy_port, sidecar.admin_port) if port in declared]
    return [f"port {port} is also Sluice's sidecar's: one of the two will not start" for port in taken]


def _missing_volumes(spec: JsonObject) -> list[JsonObject]:
    names = {volume.get("name") for volume in _objects(spec.get("volumes"))}
    return [volume for volume in injector_sidecar.volumes() if volume["name"] not in names]


def _add_annotation(metadata: JsonObject, version: str) -> list[Operation]:
    if not metadata.get("annotations"):
        return [Operation(path="/metadata/annotations", value={INJECTED_ANNOTATION: version})]
    return [Operation(path="/metadata/annotations/" + INJECTED_ANNOTATION.replace("/", "~1"), value=version)]


def _add_items(path: str, owner: JsonObject, field: str, items: Sequence[JsonObject]) -> list[Operation]:
    if not items:
        return []
    if not owner.get(field):
        return [Operation(path=f"{path}/{field}", value=list(items))]
    return [Operation(path=f"{path}/{field}/-", value=item) for item in items]


def _add_ahead(path: str, owner: JsonObject, field: str, items: Sequence[JsonObject]) -> list[Operation]:
    """Put items before those that are there, in order: `$(NAME)` in an environment sees only earlier entries."""
    if items and not owner.get(field):
        return [Operation(path=f"{path}/{field}", value=list(items))]
    return [Operation(path=f"{path}/{field}/{index}", value=item) for index, item in enumerate(items)]


def _add_first(path: str, owner: JsonObject, field: str, item: JsonObject) -> list[Operation]:
    return _add_ahead(path, owner, field, [item])


def _bounded(warnings: Sequence[str]) -> tuple[str, ...]:
    return tuple(warning[:_MAX_WARNING_LENGTH] for warning in warnings[:_MAX_WARNINGS])


def _object(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[JsonObject]:
    """Return a list as objects, each in its own position."""
    return [_object(item) for item in value] if isinstance(value, list) else []
