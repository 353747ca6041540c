"""What is known of the cluster: the four kinds, pods and namespaces. Plain state; events and listings feed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from sluice_core.api.base import ObjectMeta, Value
from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.modelroute import ModelRoute
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.upstream import Upstream
from sluice_core.compile import AnyResource, Problem, Reason, ResourceId, Severity
from sluice_operator.kinds import (
    CANARY_SPLITS,
    INJECT_LABEL,
    NAMESPACES,
    OBSERVED,
    PODS,
    SIDECAR_CONTAINER,
    SLUICE_KINDS,
    ResourceType,
)

Json = dict[str, Any]
TYPES: Final[Mapping[str, type[AnyResource]]] = {
    "Upstream": Upstream,
    "QuotaAllocation": QuotaAllocation,
    "ModelRoute": ModelRoute,
    "CanarySplit": CanarySplit,
}


_MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"


class Held(Value, frozen=True, kw_only=True):
    """One object of the four kinds: typed if it can be read, else with the problem that says why not."""

    type: ResourceType
    metadata: ObjectMeta
    resource: AnyResource | None = None
    problem: Problem | None = None
    raw_status: Json = {}

    @property
    def id(self) -> ResourceId:
        """Return its kind and key."""
        return ResourceId(self.type.kind, f"{self.metadata.namespace}/{self.metadata.name}")


class Pod(Value, frozen=True, kw_only=True):
    """What matters of a pod. A barred one cannot have a sidecar: the injector leaves it alone."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    labels: dict[str, str] = {}
    injected: bool = False
    running: bool = False
    leaving: bool = False
    barred: bool = False


class Namespace(Value, frozen=True, kw_only=True):
    """What matters of a namespace."""

    name: str
    resource_version: str
    labels: dict[str, str] = {}
    leaving: bool = False


class _Container(msgspec.Struct):  # or anything else that has a name
    name: str = ""


class _PodSpec(msgspec.Struct, rename="camel"):
    containers: list[_Container] = []
    init_containers: list[_Container] | None = None
    host_network: bool = False
    node_selector: dict[str, str] | None = None
    os: _Container | None = None


class _PodStatus(msgspec.Struct):
    phase: str = ""


class _PodMeta(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class PodObject(msgspec.Struct):
    """The few fields that are taken out of a pod as it is read; the rest of it never becomes an object here."""

    metadata: _PodMeta
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _Object(msgspec.Struct):
    metadata: ObjectMeta


Known = Held | Pod | Namespace


def read(type_: ResourceType, raw: Json) -> Known:
    """Return what matters of an object that the API server sent."""
    if type_ == PODS:
        return _read_pod(raw)
    if type_ == NAMESPACES:
        meta = msgspec.convert(raw, _Object).metadata
        return Namespace(
            name=meta.name,
            resource_version=meta.resource_version,
            labels=meta.labels,
            leaving=meta.deletion_timestamp is not None,
        )
    return _read_resource(type_, raw)


def _read_pod(raw: Json) -> Pod:
    pod = msgspec.convert(raw, PodObject)
    containers = (*pod.spec.containers, *(pod.spec.init_containers or ()))
    return Pod(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        resource_version=pod.metadata.resource_version,
        labels=pod.metadata.labels,
        injected=any(container.name == SIDECAR_CONTAINER for container in containers),
        running=pod.status.phase == "Running",
        leaving=pod.metadata.deletion_timestamp is not None or pod.status.phase in ("Succeeded", "Failed"),
        barred=_barred(pod),
    )


def _barred(pod: PodObject) -> bool:
    systems = (pod.spec.os.name if pod.spec.os else "", (pod.spec.node_selector or {}).get("kubernetes.io/os", ""))
    return pod.spec.host_network or "windows" in systems or _MIRROR_ANNOTATION in pod.metadata.annotations


def _read_resource(type_: ResourceType, raw: Json) -> Held:
    metadata = msgspec.convert(raw, _Object).metadata
    status = raw.get("status") or {}
    resource: AnyResource | None = None
    problem: Problem | None = None
    model: Any = TYPES[type_.kind]
    try:
        resource = msgspec.convert(raw, model)
    except msgspec.ValidationError as error:
        # A status that a later or earlier version wrote must not make its resource unreadable: it is written anew.
        try:
            resource = msgspec.convert({name: value for name, value in raw.items() if name != "status"}, model)
        except msgspec.ValidationError:
            problem = _unreadable(str(error))
    return Held(type=type_, metadata=metadata, resource=resource, problem=problem, raw_status=status)


def _unreadable(error: str) -> Problem:
    what, _, where = error.partition(" - at `$.")
    return Problem(
        severity=Severity.ERROR,
        reason=Reason.INVALID,
        path=where.rstrip("`") or "spec",
        message=f"{what}; the resource is left out until this is corrected",
    )


Key = tuple[str, str]


class World:
    """All that is known, kept current by events and set right by listings."""

    __slots__ = ("_known", "_listed", "_touched", "revision")

    def __init__(self) -> None:
        self._known: dict[ResourceType, dict[Key, Known]] = {type_: {} for type_ in OBSERVED}
        self._touched: dict[tuple[ResourceType, Key], float] = {}
        self._listed: set[ResourceType] = set()
        self.revision = 0

    @property
    def complete(self) -> bool:
        """Tell whether every type has been listed once. Before that, absence means nothing."""
        return len(self._listed) == len(OBSERVED)

    def put(self, type_: ResourceType, raw: Json, now: float) -> bool:
        """Take in a state of an object; tell whether that changes anything but its status."""
        key, after = _key(raw), read(type_, raw)
        before = self._known[type_].get(key)
        if before is not None and _older(raw, before):
            return False
        self._known[type_][key] = after
        self._touched[type_, key] = now
        changed = _significance(before) != _significance(after)
        # A rollout's status is part of the policy, though it is nothing to wake up for: only the loop writes it.
        self.revision += changed or (type_ == CANARY_SPLITS and before != after)
        return changed

    def remove(self, type_: ResourceType, raw: Json, now: float) -> bool:
        """Forget an object; tell whether it was known."""
        key = _key(raw)
        known = self._known[type_].get(key)
        if known is None or _older(raw, known):
            return False
        del self._known[type_][key]
        self._touched[type_, key] = now
        self.revision += 1
        return True

    def replace(self, type_: ResourceType, listing: Iterable[Json], asked_at: float) -> bool:
        """Take in a whole listing that was asked for at `asked_at`; tell whether anything changes.

        Watches lose deletions when they are cut for long, so what a listing lacks is forgotten, unless an event has
        touched it since the listing was asked for.
        """
        present: set[Key] = set()
        changed = False
        for raw in listing:
            key = _key(raw)
            present.add(key)
            if self._touched.get((type_, key), -1.0) < asked_at or key in self._known[type_]:
                changed = self.put(type_, raw, asked_at) or changed
        for key in [each for each in self._known[type_] if each not in present]:
            if self._touched.get((type_, key), -1.0) < asked_at:
                del self._known[type_][key]
                self.revision += 1
                changed = True
        self._touched = {key: at for key, at in self._touched.items() if key[1] in self._known[key[0]] or at > asked_at}
        first = type_ not in self._listed
        self._listed.add(type_)
        return changed or first

    def held(self) -> tuple[Held, ...]:
        """Return all objects of the four kinds."""
        return tuple(each for type_ in SLUICE_KINDS for each in self._known[type_].values() if isinstance(each, Held))

    def resources(self) -> tuple[AnyResource, ...]:
        """Return the objects of the four kinds that can be read."""
        return tuple(each.resource for each in self.held() if each.resource is not None)

    def pods(self) -> tuple[Pod, ...]:
        """Return all pods."""
        return tuple(each for each in self._known[PODS].values() if isinstance(each, Pod))

    def namespaces(self) -> dict[str, Namespace]:
        """Return all namespaces by name."""
        return {each.name: each for each in self._known[NAMESPACES].values() if isinstance(each, Namespace)}


def wants_injection(pod: Pod, namespace: Namespace | None) -> bool:
    """Tell whether a pod should have a sidecar: its own label decides, else its namespace's."""
    own = pod.labels.get(INJECT_LABEL)
    if own is not None:
        return own == "true"
    return namespace is not None and namespace.labels.get(INJECT_LABEL) == "true"


def _key(raw: Json) -> Key:
    metadata = raw["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _older(raw: Json, known: Known) -> bool:
    version = raw["metadata"].get("resourceVersion", "")
    before = known.metadata.resource_version if isinstance(known, Held) else known.resource_version
    # Versions compare as numbers; should a server ever send others, whatever comes last counts.
    return version.isdigit() and before.isdigit() and int(version) < int(before)


def _significance(known: Known | None) -> object:
    match known:
        case None:
            return None
        case Held():
            meta = known.metadata
            return meta.uid, meta.generation, meta.labels, meta.annotations, meta.deletion_timestamp
        case _:
            return msgspec.structs.replace(known, resource_version="")
