"""The folder that stands in for the API server: its manifests, read again when they change, with status kept here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from sluice_cli.cel_rules import evaluate
from sluice_cli.dev.state import Remembered, StateError
from sluice_cli.manifest_files import Document, ManifestFileError, read
from sluice_core.api.base import Status, Value
from sluice_core.api.conditions import rfc3339
from sluice_core.api.manifests import AnyResource, is_sluice, parse
from sluice_core.api.validation import validate
from sluice_core.compile import Problem, ResourceId

_in_order: Final = msgspec.json.Encoder(order="deterministic")


class Reading(Value, frozen=True, kw_only=True):
    """What came of one look at the folder: the resources that are right, and a line for each that is not.

    `kept` names those that are not right now: as an API server does, what was accepted of them before stays.
    `namespaces` are the labels of the namespaces that the folder declares.
    """

    resources: tuple[AnyResource, ...] = ()
    refused: tuple[str, ...] = ()
    kept: tuple[ResourceId, ...] = ()
    namespaces: dict[str, dict[str, str]] = {}


def read_folder(path: Path, namespace: str = "default") -> Reading:
    """Return the folder's resources as the API server would take them.

    Raises:
        ManifestFileError: a file cannot be read; nothing of the folder is taken then.
    """
    found: dict[ResourceId, AnyResource] = {}
    refused: list[str] = []
    kept: list[ResourceId] = []
    namespaces: dict[str, dict[str, str]] = {}
    for document in read([str(path)]):
        if not is_sluice(document.content):
            namespaces |= _namespace_labels(document)
            continue
        errors = [f"{error.path}: {error.message}" for error in validate(document.content, evaluate)]
        resource = None if errors else _typed(document, namespace)
        if isinstance(resource, Problem):
            errors, resource = [f"{resource.path}: {resource.message}"], None
        if resource is None:
            refused += [f"{document.source}:{document.line('')} {error}" for error in errors]
            kept += _identity(document, namespace)
        else:
            found[ResourceId(type(resource).__name__, resource.key)] = resource
    return Reading(resources=tuple(found.values()), refused=tuple(refused), kept=tuple(kept), namespaces=namespaces)


def _namespace_labels(document: Document) -> dict[str, dict[str, str]]:
    metadata = document.content.get("metadata")
    if document.content.get("kind") != "Namespace" or not isinstance(metadata, dict) or "name" not in metadata:
        return {}
    labels = metadata.get("labels") or {}
    return {str(metadata["name"]): {str(key): str(value) for key, value in labels.items()}}


def _identity(document: Document, namespace: str) -> list[ResourceId]:
    """Return which resource a manifest that was refused is about, if it says so."""
    metadata = document.content.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("name"):
        return []
    key = f"{metadata.get('namespace', namespace)}/{metadata['name']}"
    return [ResourceId(str(document.content.get("kind")), key)]


def _typed(document: Document, namespace: str) -> AnyResource | Problem:
    metadata: dict[str, Any] = {"namespace": namespace, **document.content["metadata"]}
    content = {name: value for name, value in document.content.items() if name != "status"}
    return parse(content | {"metadata": metadata})


class LocalStore:
    """The resources as a cluster would hold them: a generation that counts changes of spec, and a status.

    Args:
        remembered: what an earlier run knew of the resources; it counts when they come up.
    """

    def __init__(self, remembered: Iterable[Remembered] = ()) -> None:
        self.namespaces: dict[str, dict[str, str]] = {}
        self._held: dict[ResourceId, AnyResource] = {}
        self._requests: dict[ResourceId, dict[str, str]] = {}
        self._remembered = {ResourceId(each.kind, each.key): each for each in remembered}

    @property
    def resources(self) -> tuple[AnyResource, ...]:
        """Return all resources, status included."""
        return tuple(self._held.values())

    def of_kind(self, kind: str) -> tuple[AnyResource, ...]:
        """Return the resources of one kind."""
        return tuple(resource for identity, resource in self._held.items() if identity.kind == kind)

    def remember(self) -> tuple[Remembered, ...]:
        """Return what another run needs to go on from here."""
        fresh = [
            Remembered(
                kind=identity.kind,
                key=identity.key,
                generation=resource.metadata.generation,
                created=resource.metadata.creation_timestamp,
                content=_content(resource),
                requests=self._requests.get(identity, {}),
                status=msgspec.to_builtins(resource.status),
            )
            for identity, resource in self._held.items()
        ]
        return (*fresh, *self._remembered.values())

    def take(self, reading: Reading, now_unix: float) -> None:
        """Make the folder's resources those that there are; status, identity and requests of the others stay.

        Raises:
            StateError: what an earlier run knew of a resource cannot be read.
        """
        fresh: dict[ResourceId, AnyResource] = {}
        for resource in reading.resources:
            identity = ResourceId(type(resource).__name__, resource.key)
            fresh[identity] = self._merged(identity, resource, now_unix)
        for identity in reading.kept:
            if identity in self._held:
                fresh.setdefault(identity, self._held[identity])
        self._held = fresh
        self.namespaces = reading.namespaces
        self._requests = {identity: each for identity, each in self._requests.items() if identity in fresh}

    def _merged(self, identity: ResourceId, resource: AnyResource, now_unix: float) -> AnyResource:
        known = self._held.get(identity)
        if known is None:
            meta = msgspec.structs.replace(
                resource.metadata,
                uid=f"local/{identity.kind}/{identity.key}",
                generation=1,
                creation_timestamp=rfc3339(now_unix),
            )
            return self._restored(identity, msgspec.structs.replace(resource, metadata=meta))
        changed = known.spec != resource.spec
        meta = msgspec.structs.replace(
            known.metadata,
            generation=known.metadata.generation + changed,
            labels=resource.metadata.labels,
            annotations=resource.metadata.annotations | self._requests.get(identity, {}),
        )
        return msgspec.structs.replace(resource, metadata=meta, status=known.status)

    def _restored(self, identity: ResourceId, resource: AnyResource) -> AnyResource:
        """Return a resource that comes up, with what an earlier run knew of it."""
        past = self._remembered.pop(identity, None)
        if past is None:
            return resource
        self._requests[identity] = dict(past.requests)
        meta = msgspec.structs.replace(
            resource.metadata,
            generation=past.generation + (past.content != _content(resource)),
            creation_timestamp=past.created,
            annotations=resource.metadata.annotations | past.requests,
        )
        try:
            status = msgspec.convert(past.status, type(resource.status))
        except msgspec.ValidationError as error:
            raise StateError(
                f"the remembered status of {identity.kind} {identity.key} cannot be read: {error}"
            ) from None
        return msgspec.structs.replace(resource, metadata=meta, status=status)

    def set_status(self, resource: AnyResource, status: Status) -> None:
        """Replace a resource's status."""
        identity = ResourceId(type(resource).__name__, resource.key)
        if identity in self._held:
            self._held[identity] = msgspec.structs.replace(self._held[identity], status=status)

    def annotate(self, kind: str, key: str, annotations: dict[str, str]) -> bool:
        """Set annotations as `kubectl annotate` would; tell whether there is such a resource."""
        identity = ResourceId(kind, key)
        held = self._held.get(identity)
        if held is None:
            return False
        self._requests.setdefault(identity, {}).update(annotations)
        meta = msgspec.structs.replace(held.metadata, annotations=held.metadata.annotations | annotations)
        self._held[identity] = msgspec.structs.replace(held, metadata=meta)
        return True


def _content(resource: AnyResource) -> str:
    return hashlib.sha256(_in_order.encode(resource.spec)).hexdigest()[:16]


class FolderWatch:
    """Notices that a folder's files have changed, by their names, times and sizes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: object = None

    def changed(self) -> bool:
        """Tell whether anything changed since the last call; the first call says yes."""
        seen = self._signature()
        changed, self._seen = seen != self._seen, seen
        return changed

    def _signature(self) -> tuple[tuple[str, int, int], ...]:
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        entries = []
        for file in files:
            try:
                stat = file.stat()
            except OSError:
                continue  # gone between listing and looking: the next look sees the folder without it
            if file.suffix in (".yaml", ".yml", ".json"):
                entries.append((str(file), stat.st_mtime_ns, stat.st_size))
        return tuple(entries)


__all__ = ["FolderWatch", "LocalStore", "ManifestFileError", "Reading", "read_folder"]
