"""Carries rollouts on: sees what the fleet reports, lets the core decide, asks the judges that it wants asked."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Protocol

import msgspec

from sluice_core.api.base import Condition
from sluice_core.api.canarysplit_status import CanarySplit, CanarySplitStatus
from sluice_core.rollout.observation import Plan
from sluice_core.rollout.plan import plan
from sluice_operator.fleet import Fleet
from sluice_operator.rollout_metrics import Decisions
from sluice_operator.webhooks import Webhooks

FIGURES_SECONDS: Final = 5.0
"""Figures and evidence are stored this often: so much of what was seen is lost with a leader that dies."""


class Rollouts(Protocol):
    """Decides on rollouts and follows up on what was decided."""

    def plan(self, split: CanarySplit, synced: tuple[int, int]) -> Plan:
        """Return what becomes of a split now. Deciding twice on the same state comes to the same."""

    def stored(self, split: str, plan: Plan) -> None:
        """Follow up on a plan that is stored: ask what it wants asked."""

    def keep(self, splits: Collection[str]) -> None:
        """Forget all other splits."""


class FleetRollouts:
    """Rollouts judged by what the fleet reports."""

    def __init__(
        self, fleet: Fleet, webhooks: Webhooks, *, wall: Callable[[], float], decisions: Decisions | None = None
    ) -> None:
        self._decisions = decisions
        self._fleet = fleet
        self._webhooks = webhooks
        self._wall = wall

    def plan(self, split: CanarySplit, synced: tuple[int, int]) -> Plan:
        """Return what becomes of a split now."""
        observation = self._fleet.observation(split, synced, self._webhooks.answers(split.key))
        decided = plan(split, observation, self._wall())
        if self._decisions is not None:
            self._decisions.seen(split.key, decided)
        return decided

    def stored(self, split: str, plan: Plan) -> None:
        """Follow up on a plan that is stored: count it, and ask what it wants asked."""
        if self._decisions is not None:
            self._decisions.stored(split, plan)
        for question in plan.questions:
            self._webhooks.ask(split, question)

    def keep(self, splits: Collection[str]) -> None:
        """Forget all other splits."""
        self._webhooks.keep(splits)
        if self._decisions is not None:
            self._decisions.keep(splits)


class Drafts:
    """Statuses that are decided but not stored yet, for figures that need not be stored each time.

    A draft counts only on top of the status that it was made from; whoever changed that one in the meantime is right.
    """

    __slots__ = ("_clock", "_drafts", "_stored_at")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._drafts: dict[str, tuple[CanarySplitStatus, CanarySplitStatus]] = {}
        self._stored_at: dict[str, float] = {}

    def current(self, split: CanarySplit) -> CanarySplit:
        """Return the split with the latest status that was decided for it."""
        base, draft = self._drafts.get(split.metadata.uid, (None, None))
        if draft is None or base != _essence(split.status):
            return split
        return msgspec.structs.replace(split, status=_with_conditions(draft, split.status.conditions))

    def hold(self, split: CanarySplit, status: CanarySplitStatus) -> None:
        """Keep a status in mind, made from the split's stored one."""
        self._drafts[split.metadata.uid] = (_essence(split.status), status)

    def due(self, split: CanarySplit) -> bool:
        """Tell whether figures alone are worth storing now."""
        return self._clock() - self._stored_at.get(split.metadata.uid, float("-inf")) >= FIGURES_SECONDS

    def stored(self, split: CanarySplit) -> None:
        """Note that the split's status was stored, or that it failed to be: either way the draft is done with."""
        self._drafts.pop(split.metadata.uid, None)
        self._stored_at[split.metadata.uid] = self._clock()

    def keep(self, uids: Collection[str]) -> None:
        """Forget all other splits."""
        self._drafts = {uid: draft for uid, draft in self._drafts.items() if uid in uids}
        self._stored_at = {uid: at for uid, at in self._stored_at.items() if uid in uids}

    def clear(self) -> None:
        """Forget everything: another leader may have decided since."""
        self._drafts.clear()
        self._stored_at.clear()


def _essence(status: CanarySplitStatus) -> CanarySplitStatus:
    """Return a status without what the loop writes besides the rollout."""
    return msgspec.structs.replace(status, conditions=(), observed_generation=0, synced_pods="")


def _with_conditions(status: CanarySplitStatus, conditions: tuple[Condition, ...]) -> CanarySplitStatus:
    return msgspec.structs.replace(status, conditions=conditions)
