"""A real leader for real sidecars: what the operator runs, without a cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from sluice_core.compile import Compiled
from sluice_core.snapshot import Snapshot, seal
from sluice_core.sync import PodRef, Spend, SyncRequest
from sluice_operator.leader import Leader
from sluice_operator.sync import PolicyBoard, SyncServer


class Plane:
    """The leader, its server, and what is in force."""

    def __init__(self) -> None:
        self.leader = Leader(clock=time.monotonic, fresh=True)
        self.leader.lead(True, time.monotonic())
        self.url = ""
        self._instances = 0

    def adopt(self, snapshot: Snapshot) -> None:
        """Put a snapshot of namespace `team` into force."""
        sealed = seal(snapshot)
        compiled = Compiled(
            snapshots={"team": sealed}, problems={}, upstreams=sealed.upstreams, quotas=sealed.quotas, consumers={}
        )
        self.leader.adopt(compiled, time.monotonic())

    def charge(self, budget: str, usd_micros: int) -> None:
        """Have some other pod spend money today."""
        self._instances += 1
        day = time.strftime("%Y-%m-%d", time.gmtime())
        self.leader.report(
            SyncRequest(
                pod=PodRef(namespace="team", name="somebody"),
                instance=f"somebody-{self._instances}",
                sequence=1,
                spends=(Spend(budget=budget, window=day, usd_micros=usd_micros),),
            )
        )

    def spent(self, budget: str) -> int:
        """Return what was spent this month, in micro-dollars."""
        return self.leader.spending.assess("team/openai-quota", time.time())[budget].spent_month_usd_micros


async def _anybody(_token: str | None) -> PodRef:
    return PodRef(namespace="team", name="")


@pytest.fixture
def plane(loop_thread: Any) -> Iterator[Plane]:
    """A leader that answers reports."""

    async def start() -> tuple[Plane, web.AppRunner]:
        plane = Plane()
        application = SyncServer(plane.leader, PolicyBoard(), _anybody).application()
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        plane.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return plane, runner

    plane, runner = loop_thread.run(start())
    yield plane
    loop_thread.run(runner.cleanup())


@pytest.fixture
def policies() -> Any:
    """The snapshots of the folder above."""
    return sys.modules["policies"]
