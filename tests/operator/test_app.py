"""The whole operator in process: kopf's watches, our listings, the Lease and the loop against one API server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import aiohttp
import kopf
import pytest
from kubernetes.aio.client import Configuration

from sluice_core.snapshot import decode
from sluice_operator.app import Operator
from sluice_operator.kinds import CONFIG_MAPS, LEASES, MODEL_ROUTES, NAMESPACES, UPSTREAMS
from sluice_operator.observe import Observer
from sluice_operator.permissions import CLUSTER_RULES, NAMESPACE_RULES
from sluice_operator.settings import Settings
from sluice_operator.world import World


def route(model: str) -> dict[str, object]:
    return {"rules": [{"name": "default", "targets": [{"upstreamRef": {"name": "openai"}, "model": model}]}]}


@pytest.fixture(autouse=True)
def rbac(api) -> None:
    """Everything here works with the permissions that the chart gives, and not one more."""
    api.enforce(CLUSTER_RULES, "sluice-system", NAMESPACE_RULES)


@pytest.fixture(autouse=True)
def kopf_ends(monkeypatch) -> Iterator[None]:
    """No test leaves kopf behind: tasks left at the interpreter's end would be destroyed in mid-work."""
    monkeypatch.setattr("sluice_operator.observe.EXIT_SECONDS", 20.0)  # a busy machine is no fault
    yield
    assert "kopf" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def team(api):
    api.put(NAMESPACES, "team", metadata={"labels": {"sluice.dev/inject": "true"}})
    api.put(UPSTREAMS, "openai", "team", spec={"baseURL": "http://mock.team:8000/v1"})
    api.put(MODEL_ROUTES, "chat", "team", spec=route("gpt-4.1"))


def model_in_force(api) -> str | None:
    stored = api.object(CONFIG_MAPS, "sluice-policy", "team")
    if stored is None:
        return None
    routes = decode(stored["data"]["snapshot.json"].encode()).routes
    return routes[0].rules[0].targets[0].model if routes else None


async def eventually(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 -- the other side is a server and a thread, with no event to wait on
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(configuration: Configuration, name: str = "a", **values) -> AsyncIterator[Operator]:
    settings = Settings(pod_name=name, http="127.0.0.1:0", **{"debounce_seconds": 0.02, **values})
    operator, stop = Operator(settings, configuration), asyncio.Event()
    task = asyncio.create_task(operator.run(stop))
    try:
        yield operator
        await eventually(lambda: operator.observer.watched)  # kopf does not end well while it is still beginning
    finally:
        stop.set()
        await task


async def test_an_edit_is_published_by_its_watch_event(configuration, api, team):
    """From nothing to policy, then a change seen by the watch alone: no listing and no tick is due."""
    async with running(configuration, tick_seconds=600, resync_seconds=600) as operator:
        await eventually(lambda: model_in_force(api) == "gpt-4.1")
        await eventually(lambda: len(api.watchers) == 6)
        api.put(MODEL_ROUTES, "chat", "team", spec=route("gpt-4.1-mini"))
        await eventually(lambda: model_in_force(api) == "gpt-4.1-mini")
        assert operator.leadership.leading
    assert api.object(LEASES, "sluice-operator", "sluice-system")["spec"]["holderIdentity"] == ""


async def test_a_user_without_a_name_watches_as_well(configuration, api, team, monkeypatch):
    """In its image the operator runs under a number that no name belongs to; the watches work all the same."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    async with running(configuration):
        await eventually(lambda: len(api.watchers) == 6)


async def test_watches_that_were_cut_for_too_long_are_taken_up_again(configuration, api, team):
    """After 410 the watch lists anew; what was deleted meanwhile is missed by it and found by the next listing."""
    async with running(configuration, resync_seconds=1.0) as operator:
        await eventually(lambda: model_in_force(api) == "gpt-4.1" and len(api.watchers) == 6)
        api.put(MODEL_ROUTES, "other", "team", spec=route("gpt-4.1-nano"))
        await eventually(lambda: len(operator.world.held()) == 3)
        api.remove(MODEL_ROUTES, "other", "team")
        api.drop_watches(forget=True)
        await eventually(lambda: len(operator.world.held()) == 2)
        await eventually(lambda: len(api.watchers) == 6)
        api.put(MODEL_ROUTES, "chat", "team", spec=route("gpt-4.1-mini"))
        await eventually(lambda: model_in_force(api) == "gpt-4.1-mini")


async def test_a_standby_serves_policy_writes_nothing_and_takes_over(configuration, api, team):
    """Of two replicas one writes; when it leaves, the other goes on at once."""
    async with running(configuration, "b", tick_seconds=0.2) as standby:
        async with running(configuration, "a", tick_seconds=0.2) as other:
            await eventually(lambda: model_in_force(api) == "gpt-4.1")
            await eventually(lambda: bool(standby.board.revision("team") and other.board.revision("team")))
            assert standby.leadership.leading != other.leadership.leading
            assert standby.board.revision("team") == other.board.revision("team")
        await eventually(lambda: standby.leadership.leading)
        api.put(MODEL_ROUTES, "chat", "team", spec=route("gpt-4.1-mini"))
        await eventually(lambda: model_in_force(api) == "gpt-4.1-mini")


async def test_whoever_led_before_forgets_what_it_granted_if_others_have_led_since(configuration, cluster, api, team):
    """The Lease is its own again, but in between another one granted capacity that it knows nothing of."""
    async with running(configuration, tick_seconds=0.2) as operator:
        await eventually(lambda: operator.loop.term > 0)
        first, known = operator.loop.term, operator.budgets._spending()
        lease = await cluster.get(LEASES, "sluice-system", "sluice-operator")
        lease["spec"] |= {"holderIdentity": "", "leaseTransitions": 5}  # another one led and gave it up
        await cluster.replace(LEASES, "sluice-system", "sluice-operator", lease)
        await operator.leadership.campaign()
        assert operator.leadership.leading
        await eventually(lambda: operator.loop.term > first)
        assert operator.budgets._spending() is not known


async def test_without_watches_the_listings_do(cluster, api, team, monkeypatch):
    """As long as no event comes the observer lists every few seconds; once events come, at the resync's pace."""
    monkeypatch.setattr("sluice_operator.observe.RESTART_SECONDS", 0.05)
    observer = Observer(World(), cluster, clock=time.monotonic, resync_seconds=600)
    task = asyncio.create_task(observer.run())
    await eventually(lambda: len([each for each in api if "/modelroutes" in each.url.path]) >= 3)
    observer.take(MODEL_ROUTES, None, api.object(MODEL_ROUTES, "chat", "team"))
    assert observer.watched
    observer.lose_watches()
    assert not observer.watched
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_watches_that_fail_are_counted_and_begun_anew(configuration, api, team, monkeypatch):
    """A fault of kopf's ends up in a metric, for an alert; meanwhile and afterwards changes are seen."""
    watch, faults = kopf.operator, iter([RuntimeError("no such user"), RuntimeError("no such user")])

    def failing(**options):
        if (fault := next(faults, None)) is not None:
            raise fault
        return watch(**options)

    monkeypatch.setattr("sluice_operator.observe.RESTART_SECONDS", 0.05)
    monkeypatch.setattr("sluice_operator.observe.kopf.operator", failing)
    async with running(configuration) as operator:
        await eventually(lambda: operator.observer.watched)
        assert b"sluice_operator_watch_faults_total 2.0" in operator.metrics.render()


async def test_probes_and_metrics_tell_what_the_operator_does(configuration, api, team):
    """Ready once everything was listed; alive while rounds end; metrics count writes."""
    api.fail(503, "ServiceUnavailable", path="/modelroutes")
    async with running(configuration) as operator, aiohttp.ClientSession() as session:
        await eventually(lambda: "http" in operator.ports)
        base = f"http://127.0.0.1:{operator.ports['http']}"
        await eventually(lambda: operator.world.complete)
        async with session.get(f"{base}/readyz") as answer:
            assert answer.status == 200
        async with session.get(f"{base}/livez") as answer:
            assert answer.status == 200
        await eventually(lambda: model_in_force(api) == "gpt-4.1")
        await eventually(lambda: b'writes_total{type="policy"} 1.0' in operator.metrics.render())
        operator.loop.finished_at -= 1000
        async with session.get(f"{base}/metrics") as answer:
            assert b"sluice_operator_leader 1.0" in await answer.read()


async def test_no_object_of_a_user_is_touched_but_its_status(configuration, api, team):
    """No finalizer, no annotation, no write to spec or metadata: deleting works with the operator gone."""
    async with running(configuration):
        await eventually(lambda: "status" in api.object(MODEL_ROUTES, "chat", "team"))
    for type_, name in ((MODEL_ROUTES, "chat"), (UPSTREAMS, "openai")):
        metadata = api.object(type_, name, "team")["metadata"]
        assert not metadata.get("finalizers")
        assert not metadata.get("annotations")
    written = [path for _, path in api.writes if "sluice.dev" in path]
    assert written
    assert all(path.endswith("/status") for path in written)
