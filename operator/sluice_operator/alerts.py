"""Calls the addresses that want to hear of budgets: one POST for each alert, in the background, tried a few times.

The body is JSON: `quota`, `budget`, `kind` (Threshold or Anomaly), `window`, `percent`, `spentUSD`, `limitUSD`, `time`
and `id`, which is the same for the same alert, should it come twice. An address often carries a token, so it is never
logged; only the operator knows it.
"""

from __future__ import annotations

import asyncio
import hashlib
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

_log = structlog.get_logger()


class AlertCalls:
    """Alerts under way. `allow_local`: addresses of this machine may be called; only tests want that."""

    def __init__(self, *, allow_local: bool = False) -> None:
        self._allow_local = allow_local
        self._gate = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self.delivered = 0
        self.failed = 0

    def send(self, told: Told, unix_now: float) -> None:
        """Begin to call the budget's address, if it has one. When too many are under way, this one is lost."""
        url = told.budget.alert_url
        if url is None:
            return
        if len(self._tasks) >= MAX_IN_HAND:
            self.failed += 1
            _log.warning("alert_not_delivered", budget=told.alert.budget, reason="too many alerts under way")
            return
        task = asyncio.create_task(self._deliver(url, told.alert.budget, body_of(told, unix_now)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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

    async def _deliver(self, url: str, budget: str, body: dict[str, Any]) -> None:
        async with self._gate:
            why = await self._call(url, msgspec.json.encode(body))
        if why is None:
            self.delivered += 1
            _log.info("alert_delivered", budget=budget)
        else:
            self.failed += 1
            _log.warning("alert_not_delivered", budget=budget, reason=why)

    async def _call(self, url: str, body: bytes) -> str | None:
        """Return why the alert could not be delivered, None if it was."""
        if not self._allow_local and is_local(urlsplit(url).hostname or ""):
            return "its address is that of a machine itself, which is never called"
        connector = aiohttp.TCPConnector(resolver=None if self._allow_local else OutsideResolver(), force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        headers = {"Content-Type": "application/json"}
        why = ""
        async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    # A redirect could lead anywhere.
                    async with session.post(url, data=body, allow_redirects=False) as response:
                        if response.status < 300:
                            return None
                        why = f"it answered {response.status}"
                        if response.status < 500 and response.status != 429:
                            return why
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                    why = f"it cannot be reached ({type(error).__name__})"
                if attempt < ATTEMPTS:
                    await asyncio.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        return why


def body_of(told: Told, unix_now: float) -> dict[str, Any]:
    """Return what an address is told."""
    alert = told.alert
    named = f"{alert.budget}\n{alert.kind}\n{alert.window}\n{alert.percent}"
    return {
        "id": hashlib.sha256(named.encode()).hexdigest()[:16],
        "quota": told.quota,
        "budget": alert.budget,
        "kind": alert.kind,
        "window": alert.window,
        "percent": alert.percent,
        "spentUSD": usd_text(alert.spent_usd_micros),
        "limitUSD": usd_text(alert.limit_usd_micros),
        "time": rfc3339(unix_now),
    }
