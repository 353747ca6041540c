"""What the loop needs to know of the pods that report, and an answer for when nobody does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.quotaallocation import QuotaAllocationStatus
from sluice_core.compile import Compiled
from sluice_core.rollout.observation import Observation, WebhookAnswer
from sluice_core.snapshot import Snapshot


class Fleet(Protocol):
    """The leader's knowledge of the sidecars."""

    def adopt(self, compiled: Compiled, pods: Mapping[str, int], now: float) -> None:
        """Learn what is in force and how many pods with a sidecar each namespace has."""

    def synced(self, namespace: str, revision: str) -> tuple[int, int] | None:
        """Return how many pods run this revision, of how many that report; None if nobody ever reported there."""

    def quota_status(self, quota: str, now_unix: float) -> QuotaAllocationStatus | None:
        """Return the live figures of a quota, by its key; the conditions in it are not read."""

    def observation(
        self, split: CanarySplit, synced: tuple[int, int], answers: tuple[WebhookAnswer, ...] = ()
    ) -> Observation:
        """Return what is seen of a rollout. `synced` counts the pods that run the policy that was adopted last."""

    def lead(self, leading: bool, now: float) -> None:
        """Learn that this process leads from now on, or no longer."""


class NoFleet:
    """Nobody reports: policy reaches the pods by their mounted files alone."""

    def adopt(self, compiled: Compiled, pods: Mapping[str, int], now: float) -> None:
        """Do nothing."""

    def synced(self, namespace: str, revision: str) -> tuple[int, int] | None:
        """Return None: it is not known."""

    def quota_status(self, quota: str, now_unix: float) -> QuotaAllocationStatus | None:
        """Return None: there are no figures."""

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
