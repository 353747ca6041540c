"""Writes each namespace's snapshot into its ConfigMap, repairs it when somebody changes it, and takes it away at last.

Drift is seen by version: a listing of metadata alone tells whether the stored object is still the one written last, so
neither a look nor a round without change costs more than one small request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import structlog

from sluice_core.api.base import Value
from sluice_core.snapshot import Snapshot, encode
from sluice_operator.cluster import ApiError, Cluster, ConflictError, Json, NotFoundError, ObjectVersion, VersionOnly
from sluice_operator.kinds import CONFIG_MAPS, MANAGED_LABELS, POLICY_CONFIG_MAP, POLICY_KEY, ResourceType

MAX_POLICY_BYTES: Final = 1_000_000
"""A ConfigMap holds 1 MiB with its metadata; what is above this is refused before the API server does it."""
MAX_WRITES_AT_ONCE: Final = 8
AUTHORITIES_KEY: Final = "ca.crt"
REVISION_ANNOTATION: Final = "sluice.dev/revision"

TRIED_AGAIN: Final = (
    "pods keep what they have and it is tried again; if this stays, look for an admission webhook or a quota of the "
    "namespace that refuses it, and at the operator's rights"
)

_log = structlog.get_logger()


class NotPublished(Value, frozen=True, kw_only=True):
    """Why a namespace runs on an older policy than the present one. `final` means that trying again cannot help."""

    reason: str
    message: str
    final: bool = False


class Written(NamedTuple):
    """What was written last, and which version the API server made of it."""

    content: str
    resource_version: str


class NamedObjects:
    """Objects of one type and one name, at most one in each namespace, of which this process is the author."""

    __slots__ = ("_cluster", "_name", "_type", "_written", "existing")

    def __init__(self, cluster: Cluster, type_: ResourceType, name: str) -> None:
        self._cluster = cluster
        self._type = type_
        self._name = name
        self._written: dict[str, Written] = {}
        self.existing: dict[str, ObjectVersion] = {}

    def forget(self) -> None:
        """Forget what was written: another leader may have written since."""
        self._written.clear()

    async def look(self) -> None:
        """See which objects there are, and in which version."""
        listing = await self._cluster.list_all(
            self._type, VersionOnly, field_selector=f"metadata.name={self._name}", metadata_only=True
        )
        # The selector is the server's business; a server that ignores it must not cost anybody his objects.
        self.existing = {item.metadata.namespace: item.metadata for item in listing if item.metadata.name == self._name}

    def current(self, namespace: str, content: str) -> bool:
        """Tell whether the stored object is the one last written, with this content."""
        written, stored = self._written.get(namespace), self.existing.get(namespace)
        return (
            written is not None
            and stored is not None
            and written == Written(content, stored.resource_version)
            and stored.labels.items() >= MANAGED_LABELS.items()
        )

    async def write(self, namespace: str, content: str, body: Json) -> bool:
        """Apply the object; tell whether that changed it. `content` names what is in it, to compare by."""
        before = self.existing.get(namespace)
        metadata = {**body.get("metadata", {}), "labels": MANAGED_LABELS}
        answer = await self._cluster.apply(self._type, namespace, self._name, {**body, "metadata": metadata})
        meta = answer["metadata"]
        after = ObjectVersion(
            name=self._name,
            namespace=namespace,
            uid=meta["uid"],
            resource_version=meta["resourceVersion"],
            labels=meta.get("labels", {}),
        )
        self.existing[namespace] = after
        self._written[namespace] = Written(content, after.resource_version)
        return before is None or before.resource_version != after.resource_version

    async def remove(self, namespace: str) -> bool:
        """Delete the object if it is ours; tell whether it was there."""
        stored = self.existing.get(namespace)
        if stored is None or not stored.labels.items() >= MANAGED_LABELS.items():
            return False
        await self._cluster.delete(self._type, namespace, stored)
        self.existing.pop(namespace, None)
        self._written.pop(namespace, None)
        return True


async def in_each(namespaces: list[str], step: Callable[[str], Awaitable[None]]) -> dict[str, ApiError]:
    """Run a step for each namespace, a few at once; return the faults of those that failed."""
    gate = asyncio.Semaphore(MAX_WRITES_AT_ONCE)
    faults: dict[str, ApiError] = {}

    async def guarded(namespace: str) -> None:
        async with gate:
            try:
                await step(namespace)
            except ApiError as error:
                faults[namespace] = error

    async with asyncio.TaskGroup() as group:
        for namespace in namespaces:
            group.create_task(guarded(namespace))
    return faults


class PolicyPublisher:
    """Keeps every namespace's ConfigMap equal to its snapshot."""

    __slots__ = ("_objects", "authorities", "writes")

    def __init__(self, cluster: Cluster) -> None:
        self._objects = NamedObjects(cluster, CONFIG_MAPS, POLICY_CONFIG_MAP)
        # Whom sidecars trust on the sync channel, as PEM. It travels with the policy: a mount follows a renewal.
        self.authorities: Callable[[], str] = str
        self.writes = 0

    def forget(self) -> None:
        """Forget what was written, on taking over as leader."""
        self._objects.forget()

    async def look(self) -> None:
        """See which ConfigMaps there are."""
        await self._objects.look()

    async def publish(self, snapshots: Mapping[str, Snapshot], leaving: frozenset[str]) -> dict[str, NotPublished]:
        """Write what differs and remove what is not wanted; return the namespaces that are behind, and why.

        Nothing is written into a namespace that is being deleted.
        """
        behind: dict[str, NotPublished] = {}
        texts: dict[str, str] = {}
        authorities = self.authorities()
        trust = {AUTHORITIES_KEY: authorities} if authorities else {}
        for namespace, snapshot in snapshots.items():
            if namespace in leaving or self._objects.current(namespace, snapshot.revision + authorities):
                continue
            text = encode(snapshot).decode()
            if len(text.encode()) > MAX_POLICY_BYTES:
                behind[namespace] = _too_large(namespace, len(text.encode()))
            else:
                texts[namespace] = text

        async def write(namespace: str) -> None:
            revision = snapshots[namespace].revision
            metadata = {"annotations": {REVISION_ANNOTATION: revision}}
            body = {"metadata": metadata, "data": {POLICY_KEY: texts[namespace], **trust}}
            if await self._objects.write(namespace, revision + authorities, body):
                self.writes += 1
                _log.info("policy_published", namespace=namespace, revision=revision)

        async def remove(namespace: str) -> None:
            if await self._objects.remove(namespace):
                _log.info("policy_removed", namespace=namespace)

        faults = await in_each(sorted(texts), write)
        unwanted = sorted(set(self._objects.existing) - set(snapshots) - leaving)
        for namespace, error in (await in_each(unwanted, remove)).items():
            _log.warning("policy_not_removed", namespace=namespace, error=str(error))
        for namespace, error in faults.items():
            _log.warning("policy_not_published", namespace=namespace, error=str(error))
            behind[namespace] = _behind(namespace, error)
        return behind


def _behind(namespace: str, error: ApiError) -> NotPublished:
    match error:
        case NotFoundError():
            message = f"namespace {namespace} does not exist any more; this passes with the next look at the cluster"
            return NotPublished(reason="NamespaceGone", message=message)
        case ConflictError():
            message = (
                f"ConfigMap {POLICY_CONFIG_MAP} of namespace {namespace} was changed at the same moment; it is written "
                "again within seconds, and if this stays, stop whoever else writes it"
            )
            return NotPublished(reason="PolicyConflict", message=message)
        case _:
            message = (
                f"ConfigMap {POLICY_CONFIG_MAP} in namespace {namespace} cannot be written: {error}; {TRIED_AGAIN}"
            )
            return NotPublished(reason="PolicyNotWritten", message=message)


def _too_large(namespace: str, size_bytes: int) -> NotPublished:
    return NotPublished(
        reason="PolicyTooLarge",
        message=f"the policy of namespace {namespace} has {size_bytes} bytes, and a ConfigMap holds "
        f"{MAX_POLICY_BYTES}; the pods keep the last one that fitted: shorten instructions or certificates, or move "
        "workloads into another namespace",
        final=True,
    )
