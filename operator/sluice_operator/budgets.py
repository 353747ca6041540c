"""The leader's duties about money, once a round: know what was spent, alert, store."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from sluice_core.enforcement import message_of, reason_of
from sluice_core.spending import Spending, Told
from sluice_operator.alerts import AlertCalls
from sluice_operator.cluster import ApiError
from sluice_operator.events import Events
from sluice_operator.kinds import QUOTA_ALLOCATIONS
from sluice_operator.spend_store import SpendStore
from sluice_operator.world import World

_log = structlog.get_logger()


class Budgets:
    """Carries money from what pods report to where people and later leaders see it.

    Args:
        spending: returns the present leader's memory of money.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        spending: Callable[[], Spending],
        store: SpendStore,
        world: World,
        events: Events,
        calls: AlertCalls,
        *,
        wall: Callable[[], float],
    ) -> None:
        self._spending = spending
        self._world = world
        self._events = events
        self._wall = wall
        self.store = store
        self.calls = calls
        self.alerts: dict[str, int] = {}

    async def round(self) -> None:
        """Learn what was spent before, if that is not known; tell what has passed a mark; store what has changed."""
        spending = self._spending()
        if not spending.known:
            try:
                spending.restore(await self.store.load(), self._wall())
            except ApiError as error:
                _log.warning("spend_unknown", error=str(error))
                return
        told = spending.take_alerts(self._wall())
        # What was told must not be told again by the next leader, so alerts are stored at once.
        if told or self.store.due:
            await self.save()
        for each in told:
            await self._tell(each)

    async def save(self) -> None:
        """Store what has changed."""
        spending = self._spending()
        changed = spending.take_changes() if spending.known else frozenset()
        if changed:
            spending.put_back(await self.store.save(spending.states(), changed))

    async def _tell(self, told: Told) -> None:
        reason = reason_of(told.alert)
        self.alerts[reason] = self.alerts.get(reason, 0) + 1
        self.calls.send(told, self._wall())
        held = next((each for each in self._world.held() if each.id == ("QuotaAllocation", told.quota)), None)
        if held is not None:
            await self._events.tell(QUOTA_ALLOCATIONS, held.metadata, reason, message_of(told.alert), warning=True)

    async def close(self) -> None:
        """Stop calling addresses."""
        await self.calls.close()
