"""What the loop needs to know of the pods that report, and an answer for when nobody does."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.quotaallocation_status import QuotaAllocationStatus
from sluice_core.api.upstream import Limits, ReportedLimits
from sluice_core.compile import Compiled, Problem
from sluice_core.enforcement import Finding
from sluice_core.rollout.observation import Observation, WebhookAnswer
from sluice_core.snapshot import Snapshot
from sluice_core.sync import PodRef


class Fleet(Protocol):
    """The leader's knowledge of the sidecars."""

    def adopt(self, compiled: Compiled, now: float) -> None:
        """Learn what is in force."""

    def present(self, pods: Collection[PodRef], now: float) -> None:
        """Learn which pods there are: what one holds that is gone may be given to others."""

    def synced(self, namespace: str, revision: str) -> tuple[int, int] | None:
        """Return how many pods run this revision, of how many that report; None if nobody ever reported there."""

    def quota_status(self, quota: str, now_unix: float) -> QuotaAllocationStatus | None:
        """Return the live figures of a quota, by its key; the conditions in it are not read."""

    def quota_findings(self, quota: str, problems: Iterable[Problem], now_unix: float) -> tuple[Finding, ...]:
        """Return the conditions of a quota that hang on what is reported, besides the problems of its spec."""

    def effective_limits(self, upstream: str) -> Limits | None:
        """Return the limits of an upstream as they are shared out; None if that is not known."""

    def reported_limits(self, upstream: str) -> tuple[ReportedLimits, ...]:
        """Return what an upstream says of its own limits, as far as anybody has heard."""

    def observation(
        self, split: CanarySplit, synced: tuple[int, int], answers: tuple[WebhookAnswer, ...] = ()
    ) -> Observation:
        """Return what is seen of a rollout. `synced` counts the pods that run the policy that was adopted last."""

    def lead(self, leading: bool, now: float) -> None:
        """Learn that this process leads from now on, or no longer."""


class NoFleet:
    """Nobody reports: policy reaches the pods by their mounted files alone."""

    def adopt(self, compiled: Compiled, now: float) -> None:
        """Do nothing."""

    def present(self, pods: Collection[PodRef], now: float) -> None:
        """Do nothing."""

    def synced(self, namespace: str, revision: str) -> tuple[int, int] | None:
        """Return None: it is not known."""

    def quota_status(self, quota: str, now_unix: float) -> QuotaAllocationStatus | None:
        """Return None: there are no figures."""

    def quota_findings(self, quota: str, problems: Iterable[Problem], now_unix: float) -> tuple[Finding, ...]:
        """Return nothing: nobody reports."""
        del quota, problems, now_unix
        return ()

    def effective_limits(self, upstream: str) -> Limits | None:
        """Return None: it is not known."""

    def reported_limits(self, upstream: str) -> tuple[ReportedLimits, ...]:
        """Return nothing: nobody reports."""
        del upstream
        return ()

    def observation(
        self, split: CanarySplit, synced: tuple[int, int], answers: tuple[WebhookAnswer, ...] = ()
    ) -> Observation:
        """Return that pods exist and nothing is known of them."""
        del split
        return Observation(synced_pods=synced[0], total_pods=synced[1], answers=answers)

    def lead(self, leading: bool, now: float) -> None:
        """Do nothing."""


class Board(Protocol):
    """Where the sync server finds the present policy of each namespace."""

    def publish(self, snapshot: Snapshot) -> None:
        """Make this the policy of its namespace."""

    def withdraw(self, namespace: str) -> None:
        """Forget a namespace."""

    def namespaces(self) -> frozenset[str]:
        """Return the namespaces that have a policy."""
