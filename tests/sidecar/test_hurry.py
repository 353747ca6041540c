"""When the next report is sent."""

from __future__ import annotations

import asyncio

import pytest

from sluice_core.sync import Lease
from sluice_sidecar.hurry import Hurry


class _Clock:
    """A loop whose time moves as fast as nobody has anything to do."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self._select = loop._selector.select  # type: ignore[attr-defined]
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop._selector, "select", self._leap)  # type: ignore[attr-defined]

    def _leap(self, timeout: float | None) -> object:
        self.now += timeout or 0.0
        return self._select(0)


async def _paused(hurry: Hurry, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await hurry.pause(seconds)
    return round(loop.time() - begin, 2)


def _lease(amount: int) -> tuple[Lease, ...]:
    return (Lease(limit="a", amount=amount, ttl_seconds=30.0),)


def test_a_hurry_slows_down_while_it_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits in vain asks half as often each time, within bounds; more of anything makes it quick again."""

    async def scenario() -> list[float]:
        _Clock(asyncio.get_running_loop(), monkeypatch)
        hurry = Hurry(0.5, 2.0)
        pauses = [await _paused(hurry, 5.0)]
        for amount in (100, 100, 100, 90, 90, 91):
            hurry.weigh(_lease(amount))
            hurry.set()
            pauses.append(await _paused(hurry, 5.0))
        return pauses

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(scenario()) == [5.0, 0.5, 1.0, 2.0, 2.0, 2.0, 0.5]
