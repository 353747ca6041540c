"""The sync server over real HTTP: who may report what, and how a policy reaches those who wait for it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from aiohttp import web

from sluice_core.snapshot import Snapshot, UpstreamPolicy, decode, seal
from sluice_core.sync import Lease, PodRef, SyncRequest, SyncResponse
from sluice_operator.sync import PolicyBoard, SyncServer

TOKENS = {
    "token-a": PodRef(namespace="team-a", name="pod-1"),
    "token-any": PodRef(namespace="team-a", name=""),
    "token-b": PodRef(namespace="team-b", name="pod-9"),
}


class ScriptedLeader:
    """Answers every report with one lease."""

    def __init__(self) -> None:
        self.leading = True
        self.reports: list[SyncRequest] = []

    def report(self, request: SyncRequest) -> SyncResponse:
        self.reports.append(request)
        return SyncResponse(sequence=request.sequence, leases=(Lease(limit="x", amount=3, ttl_seconds=30.0),))


class Served:
    def __init__(self, leader: ScriptedLeader, board: PolicyBoard, session: aiohttp.ClientSession) -> None:
        self.leader, self.board, self.session = leader, board, session

    async def sync(self, token: str | None, report: SyncRequest | bytes) -> tuple[int, bytes]:
        body = io.BytesIO(report if isinstance(report, bytes) else msgspec.json.encode(report))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.session.post("/v1/sync", data=body, headers=headers) as answer:
            return answer.status, await answer.read()

    async def policy(self, token: str, namespace: str, revision: str = "", wait: str = "5") -> tuple[int, bytes]:
        query = {"namespace": namespace, "revision": revision, "waitSeconds": wait}
        async with self.session.get("/v1/policy", params=query, headers={"Authorization": f"Bearer {token}"}) as answer:
            return answer.status, await answer.read()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async def authenticate(token: str | None) -> PodRef | None:
        return TOKENS.get(token or "")

    leader, board = ScriptedLeader(), PolicyBoard()
    runner = web.AppRunner(SyncServer(leader, board, authenticate).application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield Served(leader, board, session)
    await runner.cleanup()


def a_report(namespace: str = "team-a", name: str = "pod-1") -> SyncRequest:
    return SyncRequest(pod=PodRef(namespace=namespace, name=name), instance="i", sequence=7)


def a_policy(namespace: str = "team-a", **changes: object) -> Snapshot:
    return seal(Snapshot(namespace=namespace, **changes))  # type: ignore[arg-type]


async def test_a_report_is_answered_with_leases(served: Served) -> None:
    """The answer names the report that it answers."""
    status, body = await served.sync("token-a", a_report())

    assert status == 200
    assert msgspec.json.decode(body, type=SyncResponse).leases[0].amount == 3
    assert served.leader.reports[0].sequence == 7


@pytest.mark.parametrize(
    ("token", "report", "status"),
    [
        pytest.param(None, a_report(), 401, id="no-token"),
        pytest.param("forged", a_report(), 401, id="unknown-token"),
        pytest.param("token-b", a_report(), 403, id="another-namespace"),
        pytest.param("token-a", a_report(name="pod-2"), 403, id="another-pod"),
        pytest.param("token-any", a_report(name="pod-2"), 200, id="token-for-any-pod"),
        pytest.param("token-a", b"{", 400, id="half-a-report"),
        pytest.param("token-a", b'{"pod":{"namespace":"team-a","name":"pod-1"}}', 400, id="fields-missing"),
        pytest.param("token-a", b"\xff\xfe", 400, id="not-utf-8"),
        pytest.param("token-a", b" " * 3_000_000, 413, id="too-large"),
    ],
)
async def test_only_a_proven_pod_reports_and_only_for_itself(
    served: Served, token: str | None, report: SyncRequest | bytes, status: int
) -> None:
    """What is refused never reaches the leader."""
    assert (await served.sync(token, report))[0] == status
    assert len(served.leader.reports) == (status == 200)


async def test_a_standby_says_that_it_is_not_the_leader(served: Served) -> None:
    """The sidecar tries again and finds the leader."""
    served.leader.leading = False

    assert (await served.sync("token-a", a_report()))[0] == 503
    assert served.leader.reports == []


async def test_a_policy_is_given_at_once_to_whoever_runs_another(served: Served) -> None:
    """And not at all to other namespaces."""
    policy = a_policy()
    served.board.publish(policy)

    status, body = await served.policy("token-a", "team-a", revision="old")

    assert (status, decode(body)) == (200, policy)
    assert (await served.policy("token-b", "team-a"))[0] == 403


async def test_who_runs_the_current_policy_waits_for_the_next(served: Served) -> None:
    """Every waiter of the namespace is told at once; those of other namespaces are left alone."""
    first, changed = a_policy(), a_policy(upstreams=(UpstreamPolicy(key="team-a/x", base_url="https://x/v1"),))
    served.board.publish(first)
    waiting = [asyncio.create_task(served.policy("token-a", "team-a", first.revision)) for _ in range(5)]
    other = asyncio.create_task(served.policy("token-b", "team-b", "", wait="0.3"))
    while served.board.waiters < 6:  # noqa: ASYNC110 - the board has no need to announce its waiters
        await asyncio.sleep(0)

    served.board.publish(changed)

    assert {status for status, _ in await asyncio.gather(*waiting)} == {200}
    assert {decode(body).revision for _, body in [await task for task in waiting]} == {changed.revision}
    assert (await other)[0] == 204
    assert served.board.waiters == 0


async def test_a_wait_is_bounded(served: Served) -> None:
    """A wait that is no number is refused; a short one ends with nothing new."""
    assert (await served.policy("token-a", "team-a", wait="soon"))[0] == 400
    assert (await served.policy("token-a", "team-a", wait="0"))[0] == 204


async def test_a_withdrawn_policy_is_not_given_out(served: Served) -> None:
    """Sidecars go on with what they have."""
    served.board.publish(a_policy())
    served.board.withdraw("team-a")

    assert (await served.policy("token-a", "team-a", wait="0"))[0] == 204
    assert served.board.namespaces() == frozenset()
