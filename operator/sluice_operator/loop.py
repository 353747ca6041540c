"""The loop: wakes on change, at least every few seconds, and does one round. Level-based: a lost wake costs seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from sluice_operator.fleet import Fleet
from sluice_operator.lease import Leadership
from sluice_operator.metrics import Metrics
from sluice_operator.reconcile import Reconciler
from sluice_operator.world import World

BUSY_SECONDS: Final = 1.0
"""Between rounds while a rollout is under way: harm is to be off within seconds."""

_log = structlog.get_logger()


class Loop:
    """Runs rounds as leader or standby.

    Args:
        wake: set by whoever sees something change.
        tick_seconds: longest time between two rounds.
        debounce_seconds: how long a burst of changes is waited out; it bounds the rounds per second.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        world: World,
        leadership: Leadership,
        fleet: Fleet,
        metrics: Metrics,
        *,
        wake: asyncio.Event,
        clock: Callable[[], float],
        tick_seconds: float,
        debounce_seconds: float,
    ) -> None:
        self._reconciler = reconciler
        self._world = world
        self._leadership = leadership
        self._fleet = fleet
        self._metrics = metrics
        self._wake = wake
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._debounce_seconds = debounce_seconds
        self.term = 0
        """The term of leadership that the fleet's memory is of, 0 while this process follows."""
        self.finished_at = clock()

    async def run(self) -> None:
        """Do rounds for ever."""
        while True:
            try:
                await self.round()
            except Exception as error:  # noqa: BLE001 -- the root of the loop: told, counted, and tried again
                self._metrics.failed_rounds.inc()
                _log.error("round_failed", error=type(error).__name__, exc_info=True)
            await self._pause()

    async def round(self) -> None:
        """Do one round, as leader if this process is sure to be it."""
        started = time.perf_counter()
        if not self._world.complete:
            self.finished_at = self._clock()  # waiting for the API server is no reason to be restarted
            return
        leading = await self._leadership.confirm()
        term = self._leadership.term if leading else 0
        if term != self.term:  # begun, ended, or lost and taken again while this process was stopped
            self.term = term
            self._fleet.lead(leading, self._clock())
            if leading:
                self._reconciler.take_over()
        if leading:
            await self._reconciler.lead()
        else:
            self._reconciler.follow()
        self.finished_at = self._clock()
        self._metrics.observe_round(self._reconciler, leading, time.perf_counter() - started)

    @property
    def _busy(self) -> bool:
        return self.term > 0 and self._reconciler.busy

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(min(BUSY_SECONDS, self._tick_seconds) if self._busy else self._tick_seconds):
                await self._wake.wait()
                await asyncio.sleep(self._debounce_seconds)
        except TimeoutError:
            pass
        self._wake.clear()
