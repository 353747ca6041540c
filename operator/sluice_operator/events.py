"""Events on resources: one per thing that happened, however often it is noticed."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from sluice_core.api.base import ObjectMeta
from sluice_core.api.conditions import rfc3339
from sluice_operator.cluster import ApiError, Cluster, ConflictError, Json, NotFoundError
from sluice_operator.kinds import EVENTS, FIELD_MANAGER, MANAGED_LABELS, ResourceType

MAX_REMEMBERED: Final = 4096
MAX_NOTE_CHARACTERS: Final = 1024
REPEAT_SECONDS: Final = 600.0

_log = structlog.get_logger()


class Events:
    """Writes events and counts repeats, as `kubectl describe` shows them."""

    def __init__(self, cluster: Cluster, *, identity: str, wall: Callable[[], float]) -> None:
        self._cluster = cluster
        self._identity = identity
        self._wall = wall
        self._seen: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def tell(self, type_: ResourceType, about: ObjectMeta, reason: str, message: str, *, warning: bool) -> bool:
        """Write an event, or count it up if it was written before; tell whether it stands. A fault is logged."""
        now = self._wall()
        note = message[:MAX_NOTE_CHARACTERS]
        # Named by its content, so that a new leader counts up what the old one wrote instead of saying it again.
        digest = hashlib.sha256(f"{about.uid}\n{reason}\n{note}".encode()).hexdigest()[:16]
        name = f"{about.name[:200].rstrip('.-')}.{digest}"
        count, told_at = self._seen.get(name, (0, 0.0))
        if count and now - told_at < REPEAT_SECONDS:
            return True
        try:
            count = await self._write(type_, about, reason, note, name, warning, count)
        except ApiError as error:
            _log.warning("event_not_written", reason=reason, kind=type_.kind, error=str(error))
            return False
        self._seen[name] = (count, now)
        self._seen.move_to_end(name)
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return True

    async def _write(
        self, type_: ResourceType, about: ObjectMeta, reason: str, note: str, name: str, warning: bool, count: int
    ) -> int:
        if not count:
            try:
                event = self._event(type_, about, reason, note, name, warning)
                await self._cluster.create(EVENTS, about.namespace, event)
                return 1
            except ConflictError:  # a leader before this one told it
                count = 1
        body = {"count": count + 1, "lastTimestamp": rfc3339(self._wall())}
        try:
            await self._cluster.merge(EVENTS, about.namespace, name, body)
        except NotFoundError:  # the API server keeps events for an hour
            return await self._write(type_, about, reason, note, name, warning, 0)
        return count + 1

    def _event(self, type_: ResourceType, about: ObjectMeta, reason: str, note: str, name: str, warning: bool) -> Json:
        now = rfc3339(self._wall())
        return {
            "metadata": {"name": name, "namespace": about.namespace, "labels": MANAGED_LABELS},
            "involvedObject": {
                "apiVersion": type_.api_version,
                "kind": type_.kind,
                "namespace": about.namespace,
                "name": about.name,
                "uid": about.uid,
                "resourceVersion": about.resource_version,
            },
            "reason": reason,
            "message": note,
            "type": "Warning" if warning else "Normal",
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": self._identity[:128],
        }
