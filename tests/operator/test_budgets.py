"""Money through the operator: reports in; status, events, calls and stored state out; leaders that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry, generate_latest

from sluice_core.sync import PodRef, Spend, SyncRequest, SyncResponse
from sluice_operator import alerts as alerts_module
from sluice_operator.alerts import GIVE_UP_SECONDS, LATER_SECONDS, MAX_IN_HAND, MOST_LATER_SECONDS, AlertCalls
from sluice_operator.budgets import Budgets
from sluice_operator.cluster import Cluster
from sluice_operator.events import Events
from sluice_operator.kinds import CONFIG_MAPS, EVENTS, NAMESPACES, PODS, QUOTA_ALLOCATIONS, SPEND_CONFIG_MAPS, UPSTREAMS
from sluice_operator.leader import Leader
from sluice_operator.observe import Observer
from sluice_operator.permissions import CLUSTER_RULES, NAMESPACE_RULES
from sluice_operator.reconcile import Reconciler
from sluice_operator.resource_metrics import BudgetMetrics, ResourceMetrics
from sluice_operator.rollouts import FleetRollouts
from sluice_operator.spend_store import STATE_KEY, STORE_SECONDS, SpendStore, shard_of
from sluice_operator.statuses import FIGURES_SECONDS
from sluice_operator.sync import PolicyBoard
from sluice_operator.webhook_secrets import ClusterSecrets
from sluice_operator.webhooks import Webhooks
from sluice_operator.world import World

NOON = datetime(2026, 5, 5, 12, tzinfo=UTC).timestamp()
TODAY = "2026-05-05"
HOME = "sluice-system"
CHAT = "team/openai/chat"


class Replica:
    """One leading operator, moved by hand."""

    def __init__(self, cluster: Cluster, clock: Any) -> None:
        started = clock()

        def wall() -> float:
            return NOON + clock() - started

        self.clock, self.world = clock, World()
        self.leader = Leader(clock=clock, wall=wall)
        self.observer = Observer(self.world, cluster, clock=clock, resync_seconds=60)
        webhooks = Webhooks(ClusterSecrets(cluster), answered=self.observer.changed)
        events = Events(cluster, identity="a", wall=wall)
        self.calls = AlertCalls(allow_local=True)
        store = SpendStore(cluster, HOME, clock=clock)
        self.budgets = Budgets(lambda: self.leader.spending, store, self.world, events, self.calls, wall=wall)
        self.reconciler = Reconciler(
            cluster,
            self.world,
            fleet=self.leader,
            rollouts=FleetRollouts(self.leader, webhooks, wall=wall),
            board=PolicyBoard(),
            events=events,
            clock=clock,
            wall=wall,
            budgets=self.budgets,
        )
        self.leader.lead(True, clock())

    async def round(self) -> None:
        self.clock.advance(max(STORE_SECONDS, FIGURES_SECONDS) + 1.0)
        await self.observer.relist()
        await self.reconciler.lead()

    async def told(self) -> None:
        """Do rounds until what has to be told is, and that is stored."""
        await self.round()
        await self.calls.idle()
        await self.round()

    def report(self, usd: float, instance: str = "a", sequence: int = 1, **fields: Any) -> SyncResponse:
        """Report what a process has spent today since it began."""
        spend = Spend(budget=CHAT, window=TODAY, usd_micros=round(usd * 1e6))
        pod = PodRef(namespace="team", name="chat-1", uid="u")
        return self.leader.report(SyncRequest(pod=pod, instance=instance, sequence=sequence, spends=(spend,), **fields))


class Listener:
    """An address that hears of alerts."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.statuses: list[int] = []
        self.hang = False
        self.url = ""

    async def reply(self, request: web.Request) -> web.Response:
        self.heard.append(await request.json())
        self.keys.append(request.headers["Idempotency-Key"])
        if self.hang:
            await asyncio.Event().wait()
        status = self.statuses.pop(0) if self.statuses else 204
        return web.Response(status=status, headers={"Location": "/alerts/secret-token"} if status == 307 else {})


@pytest.fixture
async def listener(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Listener]:
    monkeypatch.setattr(alerts_module, "BACKOFF_SECONDS", 0.001)
    handler, application = Listener(), web.Application()
    application.router.add_post("/alerts/secret-token", handler.reply)
    async with TestServer(application) as server:
        handler.url = str(server.make_url("/alerts/secret-token"))
        yield handler


@pytest.fixture
def team(api: Any, listener: Listener) -> None:
    api.enforce(CLUSTER_RULES, HOME, NAMESPACE_RULES)
    api.put(NAMESPACES, HOME)
    api.put(NAMESPACES, "team")
    api.put(UPSTREAMS, "openai", "team", spec={"baseURL": "http://mock/v1", "limits": {"tokensPerMinute": 90_000}})
    budget = {"dailyUSD": "10", "alertPercents": [50, 100], "alertURL": listener.url}
    chat = {"name": "chat", "sharePercent": 100, "budget": budget}
    api.put(QUOTA_ALLOCATIONS, "openai", "team", spec={"upstreamRef": {"name": "openai"}, "allocations": [chat]})
    containers = {"containers": [{"name": "app"}], "initContainers": [{"name": "sluice"}]}
    api.put(PODS, "chat-1", "team", metadata={"uid": "u"}, spec=containers, status={"phase": "Running"})


@pytest.fixture
async def replica(cluster: Cluster, clock: Any, team: None) -> AsyncIterator[Any]:
    """Make replicas, one after the other, on the same cluster."""
    made: list[Replica] = []

    def make() -> Replica:
        made.append(Replica(cluster, clock))
        return made[-1]

    yield make
    for each in made:
        await each.budgets.close()


def status(api: Any) -> dict[str, Any]:
    return api.object(QUOTA_ALLOCATIONS, "openai", "team").get("status", {})


def reasons(api: Any) -> list[str]:
    return [event["reason"] for event in api.all(EVENTS) if event["reason"].startswith(("Budget", "Spend"))]


async def test_what_is_spent_is_seen_stored_and_survives(api: Any, replica: Any) -> None:
    """The next leader goes on from it, to the micro-dollar, and counts only what is new."""
    first = replica()
    await first.round()
    assert first.report(1.234567).exhausted == ()
    await first.round()

    assert status(api)["spent"] == "1.23/10.00 today"
    assert status(api)["allocations"][0]["spentTodayUSD"] == "1.234567"
    assert status(api)["allocations"][0]["resetsAt"] == "2026-05-06T00:00:00Z"
    shard = api.object(CONFIG_MAPS, shard_of("team/openai"), HOME)
    assert set(shard["binaryData"]) == {STATE_KEY}

    second = replica()
    assert second.report(1.5, sequence=9).exhausted is None  # it does not know yet what was spent
    await second.round()
    second.report(1.5, sequence=10)
    second.report(0.25, instance="b")
    await second.round()
    assert status(api)["allocations"][0]["spentTodayUSD"] == "1.75"


async def test_the_status_says_when_money_runs_out_and_then_since_when(api: Any, replica: Any) -> None:
    """By the pace of what was spent; the next leader knows since when, too."""
    first = replica()
    await first.round()
    first.report(2)
    await first.round()  # a minute past noon: two dollars in five minutes leave twenty minutes
    assert status(api)["allocations"][0]["runsOutAt"] == "2026-05-05T12:20:00Z"
    assert "RunsOutEarly" in [each["reason"] for each in status(api)["conditions"]]
    first.report(11, sequence=2)
    await first.round()
    since = status(api)["allocations"][0]["runsOutAt"]
    assert since == "2026-05-05T12:01:33Z"
    second = replica()
    await second.round()
    second.report(11.5, sequence=3)
    await second.round()
    assert status(api)["allocations"][0]["runsOutAt"] == since
    assert status(api)["allocations"][0]["resetsAt"] == "2026-05-06T00:00:00Z"


async def test_a_leader_that_cannot_read_goes_on_without_guessing(api: Any, replica: Any) -> None:
    """Nothing is charged against an empty ledger, nothing stored over the real one; leases go on meanwhile."""
    first = replica()
    await first.round()
    first.report(9)
    await first.round()
    before = api.object(CONFIG_MAPS, shard_of("team/openai"), HOME)["binaryData"]

    second = replica()
    api.fail(503, "Unavailable", method="GET", path="sluice-spend", times=1)
    await second.round()
    assert second.report(9.5, sequence=2).exhausted is None
    assert status(api)["allocations"][0]["spentTodayUSD"] == "9.00"
    assert api.object(CONFIG_MAPS, shard_of("team/openai"), HOME)["binaryData"] == before
    await second.round()
    await second.round()
    assert status(api)["allocations"][0]["spentTodayUSD"] == "9.50"


async def test_a_write_that_fails_is_made_later(api: Any, replica: Any) -> None:
    """What could not be stored is not taken for stored."""
    first = replica()
    await first.round()
    first.report(2)
    api.fail(500, "InternalError", method="PATCH", path="sluice-spend", times=1)
    await first.round()
    assert api.object(CONFIG_MAPS, shard_of("team/openai"), HOME) is None
    await first.round()
    assert api.object(CONFIG_MAPS, shard_of("team/openai"), HOME) is not None


async def test_what_cannot_be_read_is_told_and_begun_anew(api: Any, replica: Any) -> None:
    """A ConfigMap that somebody has broken stops nothing."""
    api.put(CONFIG_MAPS, shard_of("team/openai"), HOME, binaryData={STATE_KEY: "anVuaw=="})
    first = replica()
    await first.round()
    assert first.budgets.store.unreadable == 1
    assert first.report(2).exhausted == ()


async def test_each_mark_is_told_once_by_event_and_call(api: Any, replica: Any, listener: Listener) -> None:
    """Also across leaders; the address itself is told nowhere."""
    first = replica()
    await first.round()
    first.report(6)
    await first.told()
    second = replica()
    await second.round()
    second.report(11, sequence=2)
    await second.told()
    third = replica()
    await third.told()

    assert sorted(reasons(api)) == ["BudgetAlert", "BudgetExhausted"]
    assert [(each["budget"], each["percent"], each["spentUSD"]) for each in listener.heard] == [
        (CHAT, 50, "6.00"),
        (CHAT, 100, "11.00"),
    ]
    within = next(each for each in status(api)["conditions"] if each["type"] == "WithinBudget")
    assert (within["status"], within["reason"]) == ("False", "BudgetExhausted")
    assert second.report(11, sequence=3).exhausted
    assert (
        b"secret-token" not in repr([each for key, each in api.stored.items() if key[0] != "quotaallocations"]).encode()
    )


async def test_an_address_that_fails_is_tried_again_and_holds_nobody_up(
    api: Any, replica: Any, listener: Listener
) -> None:
    """Twice a fault, then it hears; one that hangs leaves the rounds alone."""
    listener.statuses = [500, 429]
    first = replica()
    await first.round()
    first.report(6)
    await first.round()
    await first.calls.idle()
    assert first.calls.delivered == 1
    assert len({each["id"] for each in listener.heard}) == 1

    listener.hang = True
    first.report(11, sequence=2)
    async with asyncio.timeout(5):
        await first.round()
    assert "BudgetExhausted" in reasons(api)


class KilledError(BaseException):
    """The process ends here."""


STEPS = {
    "decided, not stored": (SpendStore, "save", False, 1),
    "stored, nobody told": (Events, "tell", False, 1),
    "event written, not called": (AlertCalls, "over", False, 1),
    "called, that is not stored": (SpendStore, "save", False, 2),
    "all of it stored": (SpendStore, "save", True, 2),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_leader_killed_at_any_step_loses_no_alert(
    api: Any, replica: Any, listener: Listener, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The next one tells it, again if need be, under the same id and in the same words; and then nobody does."""
    owner, name, after, at = STEPS[step]
    real, calls = getattr(owner, name), 0

    def dies(self: Any, *arguments: Any, **fields: Any) -> Any:
        nonlocal calls
        about_alert = name != "tell" or "Budget" in arguments[2]
        calls += about_alert and bool(name != "save" or arguments[1])
        if calls < at or not about_alert:
            return real(self, *arguments, **fields)
        if not after:
            raise KilledError

        async def finish() -> None:
            await real(self, *arguments, **fields)
            raise KilledError

        return finish()

    first = replica()
    await first.round()
    monkeypatch.setattr(owner, name, dies)
    first.report(6)
    with pytest.raises(KilledError):
        await first.told()
    monkeypatch.setattr(owner, name, real)
    await first.calls.close()

    second = replica()
    await second.round()
    second.report(6, sequence=2)
    await second.told()
    third = replica()
    await third.told()
    assert reasons(api) == ["BudgetAlert"]
    assert 1 <= len(listener.heard) <= 2
    assert all(each == listener.heard[0] for each in listener.heard)
    assert set(listener.keys) == {listener.heard[0]["id"]}
    if step == "all of it stored":
        assert len(listener.heard) == 1


async def test_an_address_that_is_down_for_long_hears_of_it_later(api: Any, replica: Any, listener: Listener) -> None:
    """Also from the next leader, with longer and longer pauses; the others do not wait for it."""
    listener.statuses = [500] * 7
    first = replica()
    await first.round()
    first.report(6)
    await first.round()
    await first.calls.idle()
    assert (first.calls.delivered, first.calls.failed, len(listener.heard)) == (0, 0, 3)
    first.clock.advance(LATER_SECONDS)
    await first.round()
    await first.calls.idle()
    assert len(listener.heard) == 6

    second = replica()
    await second.told()
    assert (second.calls.delivered, len({each["id"] for each in listener.heard})) == (1, 1)
    assert len(listener.heard) == 8


@pytest.mark.parametrize("status", [307, 400, 410])
async def test_an_address_that_does_not_want_it_is_left_alone(replica: Any, listener: Listener, status: int) -> None:
    """A redirect is not followed, a refusal not repeated, not even by the next leader."""
    listener.statuses = [status]
    first = replica()
    await first.round()
    first.report(6)
    await first.told()
    assert (first.calls.failed, first.leader.spending.untold()) == (1, ())
    second = replica()
    await second.told()
    assert len(listener.heard) == 1


async def test_old_news_is_not_told_for_ever(replica: Any, listener: Listener) -> None:
    """After some hours an alert that nobody took is given up."""
    listener.statuses = [503] * 1000
    first = replica()
    await first.round()
    first.report(6)
    await first.told()
    for _ in range(200):
        first.clock.advance(MOST_LATER_SECONDS)
        await first.told()
        if not first.leader.spending.untold():
            break
    assert (first.calls.failed, first.leader.spending.untold()) == (1, ())
    assert len(listener.heard) < 3 * (GIVE_UP_SECONDS / MOST_LATER_SECONDS + 8)


async def test_alerts_under_way_are_bounded(listener: Listener, replica: Any) -> None:
    """With too many addresses that hang, further alerts wait to be told."""
    listener.hang = True
    first = replica()
    await first.round()
    first.report(6)
    await first.round()
    (told,) = first.leader.spending.untold()
    for number in range(MAX_IN_HAND + 3):
        alert = msgspec.structs.replace(told.alert, id=str(number))
        assert not first.calls.over(msgspec.structs.replace(told, alert=alert), NOON)
    assert (len(first.calls._tasks), first.calls.failed) == (MAX_IN_HAND, 0)


async def test_a_late_write_of_an_old_leader_is_taken_in_not_written_over(api: Any, replica: Any) -> None:
    """Whoever writes replaces what it knows and nothing else; what each has counted is counted once."""
    first = replica()
    await first.round()
    first.report(2)
    first.report(1, instance="b")
    await first.round()
    second = replica()
    await second.round()
    first.report(6, sequence=2)  # the last that the old one hears and stores, when the new one has read already
    await first.told()

    second.report(2.5, sequence=3)
    second.report(1.25, instance="b", sequence=3)
    await second.round()
    await second.round()
    assert status(api)["allocations"][0]["spentTodayUSD"] == "7.25"
    assert second.leader.spending.untold() == ()


async def test_metrics_tell_of_money(api: Any, replica: Any, listener: Listener) -> None:
    """Spend, conditions and alerts have series; their labels are names of resources."""
    first = replica()
    await first.round()
    first.report(6)
    await first.told()
    await first.observer.relist()
    registry = CollectorRegistry()
    registry.register(ResourceMetrics(first.world.resources, lambda: True))
    registry.register(BudgetMetrics(first.budgets))
    names = {"namespace": "team", "name": "openai"}

    def value(family: str, **labels: str) -> float | None:
        return registry.get_sample_value(family, labels)

    assert value("sluice_allocation_spent_usd", **names, allocation="chat", window="day") == 6.0
    assert value("sluice_quota_condition", **names, type="Enforced", reason="Enforced") == 1.0
    assert value("sluice_budget_alerts_total", reason="BudgetAlert") == 1.0
    assert value("sluice_alert_calls_total", result="Delivered") == 1.0
    assert (value("sluice_alerts_pending"), value("sluice_alerts_lost_total")) == (0.0, 0.0)
    assert b"secret-token" not in generate_latest(registry)


async def test_a_removed_quota_leaves_its_money_behind(api: Any, replica: Any) -> None:
    """Applied again, it has spent what it had: nobody renews a budget by deleting it."""
    first = replica()
    await first.round()
    first.report(8)
    await first.round()
    spec = api.object(QUOTA_ALLOCATIONS, "openai", "team")["spec"]
    api.remove(QUOTA_ALLOCATIONS, "openai", "team")
    await first.round()
    second = replica()
    api.put(QUOTA_ALLOCATIONS, "openai", "team", spec=spec)
    await second.round()
    await second.round()
    assert status(api)["allocations"][0]["spentTodayUSD"] == "8.00"


def test_every_quota_has_its_config_map() -> None:
    """Spread over all of them, and always the same."""
    shards = {shard_of(f"team-{number}/openai") for number in range(200)}
    assert shards == set(SPEND_CONFIG_MAPS)


def with_steps(api: Any, daily_usd: str) -> None:
    """Write the quota with a ladder."""
    steps = [{"atPercent": 80, "level": "Economy"}, {"atPercent": 100, "level": "Static"}]
    budget = {"dailyUSD": daily_usd, "onExhausted": "Degrade", "alertPercents": [], "steps": steps}
    chat = {"name": "chat", "sharePercent": 100, "budget": budget}
    api.put(QUOTA_ALLOCATIONS, "openai", "team", spec={"upstreamRef": {"name": "openai"}, "allocations": [chat]})


def level(api: Any) -> tuple[str, str, str | None]:
    """Return the level of the whole, of its first allocation, and why."""
    first = status(api)["allocations"][0]
    return status(api)["level"], first["level"], first.get("levelCause")


def levels_told(api: Any) -> list[str]:
    """Return the events about levels, in the order in which they were told."""
    return [event["reason"] for event in api.all(EVENTS) if event["reason"] in ("Full", "Economy", "Static")]


async def test_steps_of_a_budget_are_told_to_pods_and_people_and_taken_back(api: Any, replica: Any) -> None:
    """Pods hear how much is spent from the first step on; status, condition and events tell each change once."""
    with_steps(api, "10")
    first = replica()
    await first.round()
    assert first.report(7.9).spent == ()
    await first.round()
    assert level(api) == ("Full", "Full", None)

    (share,) = first.report(8.5, sequence=2).spent
    assert (share.budget, share.percent) == (CHAT, 85)
    await first.round()
    await first.round()
    assert level(api) == ("Economy", "Economy", "Budget")
    (condition,) = [each for each in status(api)["conditions"] if each["type"] == "FullService"]
    assert (condition["status"], condition["reason"]) == ("False", "Economy")
    assert condition["message"] == "chat is at Economy, because of what is spent"
    assert levels_told(api) == ["Economy"]

    second = replica()
    assert second.report(8.5, sequence=3).spent == ()  # it does not know yet what was spent
    await second.round()
    assert level(api)[0] == "Economy"
    assert second.report(12.0, sequence=4).spent[0].percent == 120
    await second.round()
    with_steps(api, "100")
    await second.round()
    await second.round()
    assert second.report(12.0, sequence=5).spent == ()
    assert level(api) == ("Full", "Full", None)
    assert sorted(levels_told(api)) == ["Economy", "Full", "Static"]


async def test_a_level_set_by_hand_is_in_the_policy_and_told(api: Any, replica: Any) -> None:
    """What a person writes goes to pods with the next policy."""
    chat = {"name": "chat", "sharePercent": 100, "degradation": {"level": "Maintenance"}}
    degradation = {"level": "Economy", "exempt": ["Critical"]}
    spec = {"upstreamRef": {"name": "openai"}, "degradation": degradation, "allocations": [chat]}
    api.put(QUOTA_ALLOCATIONS, "openai", "team", spec=spec)
    first = replica()
    await first.round()
    await first.round()

    assert level(api) == ("Maintenance", "Maintenance", "Hand")
    rows = {each["name"]: each["level"] for each in status(api)["allocations"]}
    assert rows == {"chat": "Maintenance", "unallocated": "Economy"}
