"""How often statuses are written: figures seldom, and not at all while they say the same; what turns, at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from sluice_core.api.quotaallocation_status import AllocationStatus, QuotaAllocationStatus
from sluice_core.quota_figures import same_reading
from sluice_core.sync import AllocationGauge, Demand, PodRef, SyncRequest
from sluice_operator.kinds import EVENTS, MODEL_ROUTES, NAMESPACES, PODS, QUOTA_ALLOCATIONS, UPSTREAMS
from sluice_operator.leader import Leader
from sluice_operator.statuses import FIGURES_SECONDS

TICK_SECONDS = 5.0
REQUESTS = "team/openai|chat||requests"


@pytest.fixture
def leader(clock) -> Leader:
    made = Leader(clock=clock, wall=clock, fresh=True)
    made.lead(True, clock())
    return made


@pytest.fixture
def operator(operators, leader):
    return operators(fleet=leader)


@pytest.fixture
def shared(api) -> None:
    """Three pods of one allocation of one account."""
    api.put(NAMESPACES, "team")
    api.put(UPSTREAMS, "openai", "team", spec={"baseURL": "http://mock/v1", "limits": {"requestsPerMinute": 9000}})
    chat = {"name": "chat", "sharePercent": 100, "workloads": {"matchLabels": {"app": "chat"}}}
    api.put(QUOTA_ALLOCATIONS, "openai", "team", spec={"upstreamRef": {"name": "openai"}, "allocations": [chat]})
    for number in range(3):
        api.put(
            PODS,
            f"chat-{number}",
            "team",
            metadata={"uid": f"u{number}", "labels": {"app": "chat"}},
            spec={"containers": [{"name": "app"}], "initContainers": [{"name": "sluice"}]},
            status={"phase": "Running"},
        )


class Load:
    """Three sidecars that report every five seconds: the same rate, and never the same number."""

    def __init__(self, operator: Any, leader: Leader) -> None:
        self._operator, self._leader = operator, leader
        self._random = random.Random(7)
        self._sequence = 0

    async def run(self, seconds: float, rate: int, *, jitter: float = 0.03) -> None:
        for _ in range(int(seconds / TICK_SECONDS)):
            self._sequence += 1
            for number in range(3):
                used = round(rate * self._random.uniform(1 - jitter, 1 + jitter))
                self._leader.report(self._report(number, used))
            self._operator.clock.advance(TICK_SECONDS)
            await self._operator.reconciler.lead()

    def _report(self, number: int, used: int) -> SyncRequest:
        return SyncRequest(
            pod=PodRef(namespace="team", name=f"chat-{number}", uid=f"u{number}"),
            instance=f"i{number}",
            sequence=self._sequence,
            revision=self._operator.board.revision("team") or "",
            demands=(Demand(limit=REQUESTS, held=used, used=used, wanted=used, safe=used),),
            gauges=(AllocationGauge(quota="team/openai", allocation="chat", used_requests=used),),
        )


def patches(api: Any) -> int:
    count = sum(path.endswith("/status") for _, path in api.writes)
    api.writes.clear()
    return count


async def test_a_steady_load_is_not_worth_a_write(api, shared, operator, leader):
    """Ten minutes of the same rate cost next to no patches; a change of it is seen within the pace of figures."""
    load = Load(operator, leader)
    await operator.observer.relist()
    await load.run(120, rate=500)
    patches(api)
    await load.run(600, rate=500)
    assert patches(api) <= 1
    assert 1350 <= api.object(QUOTA_ALLOCATIONS, "openai", "team")["status"]["allocations"][0]["usedRequests"] <= 1650
    await load.run(FIGURES_SECONDS + TICK_SECONDS, rate=1500)
    assert api.object(QUOTA_ALLOCATIONS, "openai", "team")["status"]["allocations"][0]["usedRequests"] > 4000


async def test_a_wild_load_is_written_at_the_pace_of_figures(api, shared, operator, leader):
    """Whatever the figures do, an object is patched no more often than every so many seconds for them."""
    load = Load(operator, leader)
    await operator.observer.relist()
    await load.run(120, rate=500)
    patches(api)
    await load.run(600, rate=500, jitter=0.9)
    assert 5 <= patches(api) <= 600 / FIGURES_SECONDS


async def test_what_turns_is_written_at_once(api, shared, operator, leader, seen):
    """A condition does not wait for the pace of figures."""
    load = Load(operator, leader)
    await operator.observer.relist()
    await load.run(60, rate=500)
    assert seen.condition(UPSTREAMS, "openai", "team", "ConfigSynced")["status"] == "True"
    api.put(UPSTREAMS, "openai", "team", spec={"baseURL": "http://mock/v1", "limits": {"requestsPerMinute": 6000}})
    await operator.observer.relist()
    await operator.reconciler.lead()
    assert seen.condition(UPSTREAMS, "openai", "team", "ConfigSynced")["status"] == "False"


def _readings() -> Iterator[tuple[str, dict[str, Any], bool]]:
    yield "close", {"used_requests": 105, "granted_tokens_per_minute": 9_200}, True
    yield "apart", {"used_requests": 120}, False
    yield "ended", {"waiting": 0}, False
    yield "pods", {"pods": 21}, False
    yield "money", {"spent_today_usd": "1.01"}, False


@pytest.mark.parametrize(("changes", "same"), [pytest.param(c, s, id=name) for name, c, s in _readings()])
def test_a_reading_differs_by_more_than_noise(changes: dict[str, Any], same: bool):
    """Rates within a tenth are the same; pods, money, and whether there is anything at all are exact."""
    values = {"pods": 20, "used_requests": 100, "granted_tokens_per_minute": 10_000, "waiting": 1}
    before = AllocationStatus(name="chat", spent_today_usd="1.00", **values)
    after = AllocationStatus(**{"name": "chat", "spent_today_usd": "1.00", **values, **changes})
    readings = [QuotaAllocationStatus(used=str(each), allocations=(each,)) for each in (before, after)]
    assert same_reading(*readings) is same


async def test_that_nobody_is_selected_yet_is_no_warning(api, operator, team, seen):
    """Policy comes before its pods: told as a Normal event, and as a condition for as long as it is so."""
    spec = api.object(MODEL_ROUTES, "chat", "team")["spec"] | {"workloads": {"matchLabels": {"app": "later"}}}
    api.put(MODEL_ROUTES, "later", "team", spec=spec)
    await operator.round()
    assert [each["type"] for each in api.all(EVENTS) if each["reason"] == "NobodySelected"] == ["Normal"]
    assert seen.condition(MODEL_ROUTES, "later", "team", "WorkloadsSelected")["status"] == "False"
