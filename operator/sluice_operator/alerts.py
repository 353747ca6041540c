"""Calls the addresses that want to hear of budgets: one POST for each alert, in the background, tried again for hours.

The body is JSON: `quota`, `budget`, `kind` (Threshold or Anomaly), `window`, `percent`, `spentUSD`, `limitUSD`, `time`
and `id`, which is also the `Idempotency-Key` and the same for the same alert, should it come twice. An address often
carries a token, so it is never logged; only the operator knows it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog

from sluice_core.api.conditions import rfc3339
from sluice_core.limits.money import usd_text
from sluice_core.spending import Told
from sluice_operator.webhooks import ATTEMPTS, BACKOFF_SECONDS, OutsideResolver, is_local

MAX_IN_HAND: Final = 128
MAX_AT_ONCE: Final = 8
TIMEOUT_SECONDS: Final = 10.0
LATER_SECONDS: Final = 30.0
"""Between two rounds of attempts at first; twice as long after each that failed."""

MOST_LATER_SECONDS: Final = 600.0
GIVE_UP_SECONDS: Final = 6 * 3600.0
"""After this an alert is old news: who has not heard of it by then will read it in the resource's status."""

_log = structlog.get_logger()


class _Delivery:
    """One alert on its way."""

    __slots__ = ("next_at", "over", "rounds", "task")

    def __init__(self) -> None:
        self.next_at = float("-inf")
        self.over = False
        self.rounds = 0
        self.task: asyncio.Task[None] | None = None


class AlertCalls:
    """Alerts under way. `allow_local`: addresses of this machine may be called; only tests want that."""

    def __init__(self, *, allow_local: bool = False) -> None:
        self._allow_local = allow_local
        self._gate = asyncio.Semaphore(MAX_AT_ONCE)
        self._deliveries: dict[str, _Delivery] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.delivered = 0
        self.failed = 0

    def over(self, told: Told, unix_now: float) -> bool:
        """Tell whether an alert needs no further call; else see to it that one is made when it is due.

        With too many under way it has to wait for the next time that this is asked.
        """
        url = told.budget.alert_url if told.budget is not None else None
        if url is None:
            return True
        delivery = self._deliveries.setdefault(told.alert.id, _Delivery())
        due = delivery.task is None and unix_now >= delivery.next_at
        if not delivery.over and due and len(self._tasks) < MAX_IN_HAND:
            delivery.task = asyncio.create_task(self._deliver(url, told, delivery, unix_now))
            self._tasks.add(delivery.task)
            delivery.task.add_done_callback(self._tasks.discard)
        return delivery.over

    def forget(self, alert_id: str) -> None:
        """Forget an alert that is over."""
        self._deliveries.pop(alert_id, None)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Stop calling."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, url: str, told: Told, delivery: _Delivery, unix_now: float) -> None:
        budget = told.alert.budget
        async with self._gate:
            why, final = await self._call(url, told.alert.id, msgspec.json.encode(body_of(told)))
        delivery.task = None
        delivery.rounds += 1
        delivery.next_at = unix_now + min(LATER_SECONDS * 2.0 ** (delivery.rounds - 1), MOST_LATER_SECONDS)
        if why is None:
            delivery.over = True
            self.delivered += 1
            _log.info("alert_delivered", budget=budget)
        elif final or delivery.next_at - told.alert.at > GIVE_UP_SECONDS:
            delivery.over = True
            self.failed += 1
            _log.warning("alert_not_delivered", budget=budget, reason=why)
        else:
            _log.info("alert_delayed", budget=budget, reason=why)

    async def _call(self, url: str, alert_id: str, body: bytes) -> tuple[str | None, bool]:
        """Return why the alert could not be delivered, None if it was; and whether it is pointless to try again."""
        if not self._allow_local and is_local(urlsplit(url).hostname or ""):
            return "its address is that of a machine itself, which is never called", True
        connector = aiohttp.TCPConnector(resolver=None if self._allow_local else OutsideResolver(), force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        headers = {"Content-Type": "application/json", "Idempotency-Key": alert_id}
        why = ""
        async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    # A redirect could lead anywhere.
                    async with session.post(url, data=body, allow_redirects=False) as response:
                        if response.status < 300:
                            return None, True
                        why = f"it answered {response.status}"
                        if response.status < 500 and response.status not in (408, 429):
                            return why, True
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                    why = f"it cannot be reached ({type(error).__name__})"
                if attempt < ATTEMPTS:
                    await asyncio.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        return why, False


def body_of(told: Told) -> dict[str, Any]:
    """Return what an address is told: the same each time."""
    alert = told.alert
    return {
        "id": alert.id,
        "quota": told.quota,
        "budget": alert.budget,
        "kind": alert.kind,
        "window": alert.window,
        "percent": alert.percent,
        "spentUSD": usd_text(alert.spent_usd_micros),
        "limitUSD": usd_text(alert.limit_usd_micros),
        "time": rfc3339(alert.at),
    }
