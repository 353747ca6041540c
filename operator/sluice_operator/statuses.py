"""Writes what is observed into statuses: only what changed, and only over the version that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from sluice_core.api.base import Status
from sluice_core.api.canarysplit_status import CanarySplit, CanarySplitStatus
from sluice_core.api.modelroute import ModelRoute, ModelRouteStatus
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.quotaallocation_status import QuotaAllocationStatus
from sluice_core.api.upstream import Upstream, UpstreamStatus
from sluice_core.quota_figures import same_reading
from sluice_operator.cluster import ApiError, Cluster, ConflictError, NotFoundError
from sluice_operator.events import Events
from sluice_operator.status import Facts, conditions, keep_times, only_figures, status_patch, synced_text, transitions
from sluice_operator.world import Held, World

FIGURES_SECONDS: Final = 30.0
"""Figures alone are written this often at most, and not while they stay much the same; conditions are at once."""

_log = structlog.get_logger()

EMPTY: Final[dict[str, Status]] = {
    "Upstream": UpstreamStatus(),
    "QuotaAllocation": QuotaAllocationStatus(),
    "ModelRoute": ModelRouteStatus(),
    "CanarySplit": CanarySplitStatus(),
}


def stored_status(held: Held) -> Status:
    """Return the status that a resource has, as a typed value."""
    match held.resource:
        case Upstream() | QuotaAllocation() | ModelRoute() | CanarySplit() as resource:
            return resource.status
        case None:
            empty = EMPTY[held.type.kind]
            try:
                return msgspec.convert(held.raw_status, type(empty))
            except msgspec.ValidationError:
                return empty


class StatusWriter:
    """Patches statuses and tells of what changed in them."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        events: Events,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._events = events
        self._clock = clock
        self._wall = wall
        self._written_at: dict[str, float] = {}
        self.writes = 0
        self.conflicts = 0

    async def write(self, held: Held, status: Status, facts: Facts, *, at_once: bool = False) -> bool:
        """Bring a resource's status to `status` with the conditions of `facts`; tell whether it stands.

        False means that somebody else changed the resource meanwhile, or that it could not be written: what was
        decided on the old state must not be acted on.
        """
        before = stored_status(held).conditions
        after = keep_times(conditions(status.conditions or before, facts, self._wall()), before)
        status = msgspec.structs.replace(status, conditions=after, observed_generation=facts.generation)
        patch = status_patch(held.raw_status, status)
        if patch is None:
            return True
        if not at_once and only_figures(stored_status(held), status) and not self._due(held, status):
            return True
        meta = held.metadata
        try:
            raw = await self._cluster.patch_status(held.type, meta.namespace, meta.name, patch, meta.resource_version)
        except NotFoundError:
            return False
        except ConflictError:
            self.conflicts += 1  # the newer state is on its way, and the next round starts from it
            return False
        except ApiError as error:
            _log.warning("status_not_written", kind=held.type.kind, resource=held.id.key, error=str(error))
            return False
        self.writes += 1
        self._written_at[meta.uid] = self._clock()
        self._world.put(held.type, raw, self._clock())
        for each in transitions(before, after, rollout=facts.rollout):
            await self._events.tell(held.type, meta, each.reason, each.message, warning=each.warning)
        return True

    def forget(self, present: set[str]) -> None:
        """Drop what is remembered of resources that are gone; `present` are the uids of the others."""
        self._written_at = {uid: at for uid, at in self._written_at.items() if uid in present}

    def _due(self, held: Held, status: Status) -> bool:
        if self._clock() - self._written_at.get(held.metadata.uid, float("-inf")) < FIGURES_SECONDS:
            return False
        stored = stored_status(held)
        if isinstance(stored, QuotaAllocationStatus) and isinstance(status, QuotaAllocationStatus):
            return not same_reading(stored, status)
        return True


def with_sync(status: Status, facts: Facts) -> Status:
    """Return the status with the number of synced pods."""
    if facts.synced is None:
        return status
    return msgspec.structs.replace(status, synced_pods=synced_text(facts.synced))
