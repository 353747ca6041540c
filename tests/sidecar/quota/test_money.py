"""Money over several real sidecars and a real leader: counted to the micro-dollar, and what a spent budget changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest

from sluice_core.api.degradation import Degraded
from sluice_core.api.quotaallocation import Budget, Mode, OnExhausted
from sluice_core.api.upstream import Limits
from sluice_core.pricing import PriceBook
from sluice_core.snapshot import FallbackPolicy
from sluice_core.usage import Usage

Client = Callable[..., openai.OpenAI]
MESSAGES: Any = [{"role": "user", "content": "hello"}]
CHAT = "team/openai-quota/chat"
PROCESSES = 3
CALLS = 90


def governed(policies: Any, mock: Any, rule: dict[str, Any] | None = None, **allocation: Any) -> Any:
    """A snapshot without limits whose one allocation has a budget."""
    return policies.snapshot(
        policies.upstream(mock.base_url, limits=Limits()),
        rules=(policies.rule(**(rule or {})),),
        quotas=(policies.quota(**{"budget": Budget(daily_usd="1"), **allocation}),),
    )


async def call(api: openai.AsyncOpenAI, number: int) -> None:
    """Make one call of some kind, and leave some streams in the middle."""
    try:
        if number % 2:
            await api.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES)
            return
        stream: Any = await api.chat.completions.create(model="gpt-4.1", messages=MESSAGES, stream=True)
        count = 0
        async for _ in stream:
            count += 1
            if number % 10 == 8 and count == 3:
                await stream.close()
                return
    except (openai.APIError, httpx2.HTTPError):
        pass


async def test_money_is_that_of_the_upstream_to_the_micro_dollar(
    start: Any, mock: Any, policies: Any, plane: Any
) -> None:
    """The leader has what all processes together charged; what the upstream reported is charged as it bills it."""
    snapshot = governed(policies, mock, budget=Budget(daily_usd="100000"))
    plane.adopt(snapshot)
    sidecars = [
        await asyncio.to_thread(start, snapshot, SLUICE_SYNC_URL=plane.url, SLUICE_POD_NAME=f"chat-{number}")
        for number in range(PROCESSES)
    ]
    mock.faults.add(percent=10, error="server_error")
    mock.faults.add(percent=8, cut_at_event=4)
    mock.faults.add(percent=10, cached_tokens=3, reasoning_tokens=7, output_tokens=30_000)
    async with asyncio.TaskGroup() as group:
        for sidecar in sidecars:
            group.create_task(_calls(sidecar.base_url))
    for sidecar in sidecars:  # the last report has the last call
        assert await asyncio.to_thread(sidecar.terminate) == 0
    records = [record for sidecar in sidecars for record in sidecar.records(CALLS)]

    assert len(records) == PROCESSES * CALLS
    assert plane.spent(CHAT) == sum(record.get("costUSDMicros") or 0 for record in records) > 0
    exact, billed = _billed(records, mock)
    assert sum(record["costUSDMicros"] for record in exact) == billed
    assert len(exact) > len(records) // 2
    inexact = [record for record in records if record.get("usageEstimated")]
    assert {record["outcome"] for record in inexact} <= {"ClientClosed", "Truncated", "Success"}


async def _calls(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0, timeout=30) as api:
        await asyncio.gather(*(call(api, number) for number in range(CALLS)))


def _billed(records: list[dict[str, Any]], mock: Any) -> tuple[list[dict[str, Any]], int]:
    """Return the records whose usage the upstream reported, and what it billed for just these calls."""
    book, served = PriceBook.from_data(), {entry.request_id: entry for entry in mock.ledger}
    exact = [each for each in records if each.get("costUSDMicros") is not None and not each.get("usageEstimated")]
    total = 0
    for record in exact:
        entry = served[record["upstreamRequestId"]]
        usage = Usage(
            input_tokens=entry.usage.input_tokens,
            output_tokens=entry.usage.output_tokens,
            cached_input_tokens=entry.usage.cached_tokens,
            reasoning_tokens=entry.usage.reasoning_tokens,
        )
        cost = book.cost_usd_micros(usage, entry.model_served, entry.tier_served, record["time"])
        assert cost == record["costUSDMicros"]
        total += cost
    return exact, total


def test_a_killed_process_loses_no_more_than_it_had_not_reported(
    start: Any, client: Client, mock: Any, policies: Any, plane: Any
) -> None:
    """What it had reported stays spent, and the process that replaces it is counted on top."""
    snapshot = governed(policies, mock)
    plane.adopt(snapshot)
    pod = {"SLUICE_SYNC_URL": plane.url, "SLUICE_POD_UID": "u"}
    first = start(snapshot, **pod)
    mock.faults.add(prompt_tokens=100_000)
    assert create(client(first.base_url)).status_code == 200
    first.wait_until(lambda: plane.spent(CHAT) > 0)
    before = plane.spent(CHAT)
    first.kill()
    second = start(snapshot, **pod)
    assert create(client(second.base_url)).status_code == 200
    assert second.terminate() == 0

    assert before == first.records(1)[0]["costUSDMicros"]
    assert plane.spent(CHAT) == sum(each.records(1)[0]["costUSDMicros"] for each in (first, second))


def create(client: openai.OpenAI, **fields: Any) -> Any:
    """Make a small chat call; return the raw answer, errors included."""
    fields = {"model": "gpt-4.1", "messages": MESSAGES, "max_tokens": 50, **fields}
    try:
        return client.chat.completions.with_raw_response.create(**fields)
    except openai.APIStatusError as error:
        return error.response


def spent_out(start: Any, policies: Any, plane: Any, snapshot: Any) -> Any:
    """Start a sidecar that has heard that its budget is spent."""
    plane.adopt(snapshot)
    plane.charge(CHAT, 1_000_000)
    sidecar = start(snapshot, SLUICE_SYNC_URL=plane.url)
    sidecar.wait_until(lambda: sidecar.status()["sync"]["secondsSinceSuccess"] is not None)
    return sidecar


def test_a_spent_budget_refuses_until_its_window_ends(
    start: Any, client: Client, mock: Any, policies: Any, plane: Any
) -> None:
    """With the true time of the renewal, and no retry that could not help."""
    sidecar = spent_out(start, policies, plane, governed(policies, mock))
    refused = create(client(sidecar.base_url))
    (exhausted,) = plane.leader.spending.exhausted("team", time.time())

    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "budget_exceeded"
    assert refused.headers["x-should-retry"] == "false"
    assert abs(int(refused.headers["retry-after"]) - (exhausted.until - time.time())) < 20
    assert len(mock.ledger) == 0


DEGRADE = Budget(daily_usd="1", on_exhausted=OnExhausted.DEGRADE)
CHEAPER = Budget(
    daily_usd="1", on_exhausted=OnExhausted.DEGRADE, degrade_to=Degraded(model="gpt-4.1-nano", max_output_tokens=20)
)
FALLBACKS = (
    FallbackPolicy(upstream="team/openai", model="gpt-4.1"),
    FallbackPolicy(upstream="team/openai", model="gpt-4.1-mini"),
)


@pytest.mark.parametrize(
    ("budget", "fallbacks", "model", "max_tokens"),
    [
        (CHEAPER, (), "gpt-4.1-nano", 20),
        (CHEAPER, FALLBACKS, "gpt-4.1-nano", 20),
        (DEGRADE, FALLBACKS, "gpt-4.1-mini", 50),
    ],
    ids=["as written", "as written despite fallbacks", "the first fallback with another model"],
)
def test_a_spent_budget_degrades(
    start: Any, client: Client, mock: Any, policies: Any, plane: Any, budget: Budget, fallbacks: Any, model: str,
    max_tokens: int,
) -> None:  # fmt: skip
    """The call goes on with a cheaper model and a shorter output, and says so."""
    sidecar = spent_out(start, policies, plane, governed(policies, mock, {"fallbacks": fallbacks}, budget=budget))
    answer = create(client(sidecar.base_url))

    assert answer.status_code == 200
    assert answer.headers["x-sluice-decision"].startswith("degraded; code=budget_exceeded")
    assert (mock.ledger.last.model_requested, mock.ledger.last.max_tokens) == (model, max_tokens)
    assert sidecar.record(answer.headers["x-sluice-call-id"])["degraded"] is True
    assert sidecar.metric("sluice_degraded_calls_total", allocation="chat") == 1

    def degraded() -> int:
        status = plane.leader.quota_status("team/openai-quota", time.time())
        assert status is not None
        return status.allocations[0].degraded  # type: ignore[no-any-return]

    sidecar.wait_until(lambda: degraded() == 1)


def test_what_cannot_be_made_cheaper_is_refused(
    start: Any, client: Client, mock: Any, policies: Any, plane: Any
) -> None:
    """A chat without a cheaper model and an embedding: a spent budget is not spent on. What costs nothing goes on."""
    sidecar = spent_out(start, policies, plane, governed(policies, mock, budget=DEGRADE))
    api = client(sidecar.base_url)

    assert create(api).status_code == 429
    with pytest.raises(openai.RateLimitError):
        api.embeddings.create(model="text-embedding-3-small", input="hello")
    assert len(mock.ledger) == 0
    assert api.models.list().data


@pytest.mark.parametrize("budget", [Budget(daily_usd="1"), CHEAPER], ids=["reject", "degrade"])
def test_shadow_mode_spends_on(
    start: Any, client: Client, mock: Any, policies: Any, plane: Any, budget: Budget
) -> None:
    """Nothing is refused or changed; what would have been refused is counted."""
    sidecar = spent_out(start, policies, plane, governed(policies, mock, budget=budget, mode=Mode.SHADOW))
    answer = create(client(sidecar.base_url))

    assert answer.status_code == 200
    assert mock.ledger.last.model_requested == "gpt-4.1"
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert record["wouldRefuse"] == "team/openai-quota/chat/budget"
    assert "degraded" not in record
    assert sidecar.metric("sluice_refusals_total", mode="Shadow") == 1
    assert sidecar.status()["allocations"][0]["refused"] == 1
