"""The fleet with clocks: what the sync server reports to, and what the loop asks. Local mode uses it as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.quotaallocation import QuotaAllocationStatus
from sluice_core.compile import Compiled
from sluice_core.fleet import Fleet
from sluice_core.rollout.observation import Observation, WebhookAnswer
from sluice_core.sync import SyncRequest, SyncResponse


class Leader:
    """One process's fleet, used while it leads."""

    def __init__(self, *, clock: Callable[[], float], fresh: bool = False) -> None:
        self._clock = clock
        self.fleet = Fleet(now=clock(), fresh=fresh)
        self.leading = False

    def lead(self, leading: bool, now: float) -> None:
        """Learn that this process leads from now on, or no longer."""
        self.leading = leading
        self.fleet.lead(leading, now)

    def adopt(self, compiled: Compiled, pods: Mapping[str, int], now: float) -> None:
        """Learn what is in force."""
        self.fleet.adopt(compiled, pods, now)

    def report(self, request: SyncRequest) -> SyncResponse:
        """Take in one report and return the answer."""
        return self.fleet.report(request, self._clock())

    def synced(self, namespace: str, revision: str) -> tuple[int, int] | None:
        """Return how many pods run this revision, of how many that report; None if nobody reports there."""
        return self.fleet.synced(namespace, revision, self._clock())

    def quota_status(self, quota: str, now_unix: float) -> QuotaAllocationStatus | None:
        """Return the live figures of a quota."""
        del now_unix
        return self.fleet.quota_status(quota, self._clock())

    def observation(
        self, split: CanarySplit, synced: tuple[int, int], answers: tuple[WebhookAnswer, ...] = ()
    ) -> Observation:
        """Return what is seen of a rollout."""
        return self.fleet.observation(split, synced, answers)
