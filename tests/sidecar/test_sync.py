"""The sync channel: leases and pushed policies come in, counts and demand go out, and nothing depends on it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import openai
import pytest
from aiohttp import web

from sluice_core.api.quotaallocation import Budget, Queue
from sluice_core.api.upstream import Limits
from sluice_core.snapshot import TargetPolicy, encode, seal
from sluice_core.sync import Exhausted, Lease, SyncRequest, SyncResponse

Client = Callable[..., openai.OpenAI]
MESSAGES: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


class Control:
    """A control plane that grants what it is told to."""

    def __init__(self) -> None:
        self.reports: list[SyncRequest] = []
        self.tokens: list[str] = []
        self.amounts: dict[str, int] = {}
        self.exhausted: tuple[Exhausted, ...] = ()
        self.pushed: bytes | None = None
        self.down = False
        self.wake = asyncio.Event()
        self.interval_seconds = 0.5

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the channel."""
        self.tokens.append(request.headers.get("Authorization", ""))
        if self.down:
            return web.Response(status=503)
        if request.path == "/v1/policy":
            return await self._policy(request)
        report = msgspec.json.decode(await request.read(), type=SyncRequest)
        self.reports.append(report)
        leases = tuple(
            Lease(limit=demand.limit, amount=self.amounts.get(demand.limit.split("|")[2], 0), ttl_seconds=30.0)
            for demand in report.demands
        )
        answer = SyncResponse(
            sequence=report.sequence, leases=leases, exhausted=self.exhausted, interval_seconds=self.interval_seconds
        )
        return web.Response(body=msgspec.json.encode(answer))

    async def _policy(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            async with asyncio.timeout(25):
                await self.wake.wait()
        except TimeoutError:
            return web.Response(status=204)
        pushed = self.pushed or b""
        if request.query.get("revision", "none").encode() in pushed:
            self.wake.clear()
            return web.Response(status=204)
        return web.Response(body=pushed)


@pytest.fixture
def control(loop_thread: Any) -> Iterator[Any]:
    """A running control plane and its address."""

    async def start() -> Any:
        plane = Control()
        runner = web.ServerRunner(web.Server(plane.handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return plane, runner

    plane, runner = loop_thread.run(start())
    plane.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    plane.push = lambda data: loop_thread.loop.call_soon_threadsafe(_push, plane, data)
    yield plane
    loop_thread.run(runner.cleanup())


def _push(plane: Control, data: bytes) -> None:
    plane.pushed = data
    plane.wake.set()


def create(client: openai.OpenAI, **fields: Any) -> Any:
    """Make a small chat call; return the raw answer, errors included."""
    fields = {"model": "gpt-4.1-mini", "messages": MESSAGES, "max_tokens": 10, **fields}
    try:
        return client.chat.completions.with_raw_response.create(**fields)
    except openai.APIStatusError as error:
        return error.response


def governed(policies: Any, mock: Any, limits: Limits, **allocation: Any) -> Any:
    """A snapshot with limits and one allocation without a safe share."""
    return policies.snapshot(policies.upstream(mock.base_url, limits=limits), quotas=(policies.quota(**allocation),))


def test_a_lease_comes_for_whoever_waits(start: Any, client: Client, mock: Any, policies: Any, control: Any) -> None:
    """A call without capacity is reported at once, and goes when the answer brings a lease; no more go than leased."""
    control.amounts = {"requests": 2}
    snapshot = governed(policies, mock, Limits(requests_per_minute=100), queue=Queue(max_wait_seconds=5))
    sidecar = start(snapshot, SLUICE_SYNC_URL=control.url)
    chat = client(sidecar.base_url)
    statuses = [create(chat).status_code for _ in range(2)]
    assert statuses == [200, 200]
    sidecar.wait_until(lambda: any(demand.used == 2 for demand in control.reports[-1].demands))
    assert create(chat, extra_headers={"x-stainless-read-timeout": "1"}).status_code == 429


def test_reports_carry_counts_spend_and_who_speaks(
    start: Any, client: Client, mock: Any, policies: Any, control: Any, tmp_path: Any
) -> None:
    """Counts are cumulative; the last report comes at the stop; the token is read from its file each time."""
    token = tmp_path / "token"
    token.write_text("first\n")
    budget = Budget(daily_usd="1000")
    control.amounts = {"requests": 50}
    snapshot = governed(policies, mock, Limits(), budget=budget)
    sidecar = start(snapshot, SLUICE_SYNC_URL=control.url, SLUICE_SYNC_TOKEN_FILE=str(token))
    mock.faults.add(prompt_tokens=1_000_000)
    assert create(client(sidecar.base_url)).status_code == 200
    sidecar.wait_until(lambda: bool(control.reports))
    token.write_text("second\n")
    assert sidecar.terminate() == 0
    last = control.reports[-1]
    assert last.stopping
    assert (last.pod.namespace, last.pod.name) == ("team", "chat-0")
    assert last.revision == seal(snapshot).revision
    assert sum(spend.usd_micros for spend in last.spends) >= 400_000
    assert {"Bearer first", "Bearer second"} <= set(control.tokens)
    assert [report.sequence for report in control.reports] == sorted({report.sequence for report in control.reports})


def test_a_spent_budget_refuses_or_degrades(start: Any, client: Client, mock: Any, policies: Any, control: Any) -> None:
    """Once the control plane says that it is spent, calls are refused with the time of its renewal."""
    import time

    budget = Budget(daily_usd="1")
    control.exhausted = (Exhausted(budget="team/openai-quota/chat", until=time.time() + 1000),)
    sidecar = start(governed(policies, mock, Limits(), budget=budget), SLUICE_SYNC_URL=control.url)
    chat = client(sidecar.base_url)
    sidecar.wait_until(lambda: create(chat).status_code == 429)
    refused = create(chat)
    assert refused.json()["error"]["code"] == "budget_exceeded"
    assert refused.headers["x-should-retry"] == "false"
    assert 900 < int(refused.headers["retry-after"]) <= 1000


def test_a_pushed_policy_is_in_force_at_once(
    start: Any, client: Client, mock: Any, policies: Any, control: Any
) -> None:
    """It needs no kubelet; a bad push changes nothing."""
    sidecar = start(policies.plain(mock.base_url), SLUICE_SYNC_URL=control.url)
    target = TargetPolicy(name="main", upstream="team/openai", model="gpt-4.1-nano")
    pushed = seal(policies.snapshot(policies.upstream(mock.base_url), rules=(policies.rule(targets=(target,)),)))
    control.push(encode(pushed))
    sidecar.wait_until(lambda: sidecar.status()["revision"] == pushed.revision)
    create(client(sidecar.base_url))
    assert mock.ledger.last.model_requested == "gpt-4.1-nano"
    control.push(b"{}")
    sidecar.wait_until(lambda: bool(sidecar.status()["configError"]))
    assert sidecar.status()["revision"] == pushed.revision


def test_calls_go_on_without_the_control_plane(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """With nobody at the other end, the mounted policy and the safe share do."""
    snapshot = governed(policies, mock, Limits(requests_per_minute=100), safe=Limits(requests_per_minute=2))
    sidecar = start(snapshot, SLUICE_SYNC_URL="http://127.0.0.1:1")
    chat = client(sidecar.base_url)
    assert [create(chat).status_code for _ in range(3)] == [200, 200, 429]
    sidecar.wait_until(lambda: bool(sidecar.status()["sync"]["error"]))
    assert sidecar.metric("sluice_sync_healthy") == 0
    assert sidecar.terminate() == 0


def test_a_budget_holds_without_a_control_plane(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """A sidecar that is alone counts money itself."""
    sidecar = start(governed(policies, mock, Limits(), budget=Budget(daily_usd="0.10")))
    mock.faults.add(prompt_tokens=1_000_000)
    chat = client(sidecar.base_url)
    assert create(chat).status_code == 200
    sidecar.wait_until(lambda: create(chat).status_code == 429)


def test_a_refusal_asks_for_more_at_once(start: Any, client: Client, mock: Any, policies: Any, control: Any) -> None:
    """Where calls do not wait, the first one refused brings the lease that the next one uses."""
    control.amounts = {"requests": 5}
    control.interval_seconds = 30.0
    sidecar = start(governed(policies, mock, Limits(requests_per_minute=100)), SLUICE_SYNC_URL=control.url)
    sidecar.wait_until(lambda: bool(control.reports))
    chat = client(sidecar.base_url)
    control.amounts = {"requests": 50}
    statuses = [create(chat).status_code for _ in range(8)]
    assert 429 in statuses
    sidecar.wait_until(lambda: create(chat).status_code == 200)
