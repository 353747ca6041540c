"""The fleet with clocks: what the sync server reports to, and what the loop asks. Local mode uses it as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.quotaallocation_status import QuotaAllocationStatus
from sluice_core.api.upstream import Limits, ReportedLimits
from sluice_core.compile import Compiled, Problem
from sluice_core.enforcement import Finding
from sluice_core.fleet import Fleet
from sluice_core.rollout.observation import Observation, WebhookAnswer
from sluice_core.spending import Spending
from sluice_core.sync import PodRef, SyncRequest, SyncResponse


class Leader:
    """One process's fleet, used while it leads."""

    def __init__(
        self, *, clock: Callable[[], float], wall: Callable[[], float] = time.time, fresh: bool = False
    ) -> None:
        self._clock = clock
        self._wall = wall
        self.fleet = Fleet(now=clock(), fresh=fresh)
        self.leading = False

    def lead(self, leading: bool, now: float) -> None:
        """Learn that this process leads from now on, or no longer."""
        self.leading = leading
        self.fleet.lead(leading, now)

    def adopt(self, compiled: Compiled, now: float) -> None:
        """Learn what is in force."""
        self.fleet.adopt(compiled, now)

    def present(self, pods: Collection[PodRef], now: float) -> None:
        """Learn which pods there are."""
        self.fleet.present(pods, now, self._wall())

    def report(self, request: SyncRequest) -> SyncResponse:
        """Take in one report and return the answer."""
        return self.fleet.report(request, self._clock(), self._wall())

    @property
    def spending(self) -> Spending:
        """Return what is known of money; a new one for each time of leading."""
        return self.fleet.spending

    def synced(self, namespace: str, revision: str) -> tuple[int, int] | None:
        """Return how many pods run this revision, of how many that report; None if nobody reports there."""
        return self.fleet.synced(namespace, revision, self._clock())

    def quota_status(self, quota: str, now_unix: float) -> QuotaAllocationStatus | None:
        """Return the live figures of a quota."""
        return self.fleet.quota_status(quota, self._clock(), now_unix)

    def quota_findings(self, quota: str, problems: Iterable[Problem], now_unix: float) -> tuple[Finding, ...]:
        """Return the conditions of a quota that hang on what is reported."""
        return self.fleet.quota_findings(quota, problems, self._clock(), now_unix)

    def effective_limits(self, upstream: str) -> Limits | None:
        """Return the limits of an upstream as they are shared out."""
        return self.fleet.effective_limits(upstream)

    def reported_limits(self, upstream: str) -> tuple[ReportedLimits, ...]:
        """Return what an upstream says of its own limits."""
        return self.fleet.reported_limits(upstream, self._clock())

    def observation(
        self, split: CanarySplit, synced: tuple[int, int], answers: tuple[WebhookAnswer, ...] = ()
    ) -> Observation:
        """Return what is seen of a rollout."""
        return self.fleet.observation(split, synced, answers)
