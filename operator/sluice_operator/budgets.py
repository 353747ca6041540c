"""The leader's duties about money, once a round: know what was spent, alert, store."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from sluice_core.enforcement import message_of, reason_of
from sluice_core.spending import Spending, Told
from sluice_operator.alerts import GIVE_UP_SECONDS, AlertCalls
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
        self._begun: dict[str, bool] = {}  # alerts that are being told, and whether their event stands

    async def round(self) -> None:
        """Learn what was spent before, if that is not known; tell what has passed a mark; store what has changed."""
        spending = self._spending()
        if not spending.known:
            try:
                spending.restore(await self.store.load(), self._wall())
            except ApiError as error:
                _log.warning("spend_unknown", error=str(error))
                return
        spending.decide_alerts(self._wall())
        # Nobody hears of an alert that the next leader would not know of.
        if spending.unstored_alerts() or self.store.due:
            await self.save()
        untold = spending.untold()
        over = [each for each in untold if await self._tell(each)]
        for each in over:
            spending.told(each)
            self.calls.forget(each.alert.id)
        if over:
            await self.save()  # or the next leader tells it once more
        self._begun = {each.alert.id: self._begun[each.alert.id] for each in untold if each not in over}

    async def save(self) -> None:
        """Store what has changed, once what somebody else has stored since is taken in."""
        spending = self._spending()
        if not spending.known:
            return
        try:
            spending.merge(await self.store.reread(), self._wall())
        except ApiError as error:
            _log.warning("spend_not_stored", error=str(error))
            return
        changed, alerts = spending.take_changes(), spending.unstored_alerts()
        if changed:
            failed = await self.store.save(spending.states(), changed)
            spending.put_back(failed)
            spending.alerts_stored(each for each, quota in alerts.items() if quota not in failed)

    async def _tell(self, told: Told) -> bool:
        """Tell of an alert by event, metric and call, as far as that is still to be done; tell whether it is over."""
        alert, now = told.alert, self._wall()
        reason = reason_of(alert)
        if alert.id not in self._begun:
            self._begun[alert.id] = False
            self.alerts[reason] = self.alerts.get(reason, 0) + 1
        if not self._begun[alert.id]:
            self._begun[alert.id] = await self._write_event(told, reason) or now - alert.at > GIVE_UP_SECONDS
        return self.calls.over(told, now) and self._begun[alert.id]

    async def _write_event(self, told: Told, reason: str) -> bool:
        held = next((each for each in self._world.held() if each.id == ("QuotaAllocation", told.quota)), None)
        if held is None:
            return True
        message = message_of(told.alert)
        return await self._events.tell(QUOTA_ALLOCATIONS, held.metadata, reason, message, warning=True)

    @property
    def pending(self) -> int:
        """Return how many alerts are not told to everybody yet."""
        return len(self._spending().untold())

    @property
    def lost(self) -> int:
        """Return how many alerts found no room among those."""
        return self._spending().lost_alerts

    async def close(self) -> None:
        """Stop calling addresses."""
        await self.calls.close()
