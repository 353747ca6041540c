"""Conversations over a WebSocket: they may go on for an hour, so each answer in them is allowed and charged."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from sluice_core.api.base import KeySource
from sluice_core.api.quotaallocation import Budget, Mode, PerUser
from sluice_core.api.upstream import Limits, ModelLimits

CHAT = "team/openai-quota/chat"
NONE = {"requests_per_minute": 0, "tokens_per_minute": 0, "requests_per_day": 0, "concurrency": 0}
MODEL = "gpt-realtime"


def policy(policies: Any, mock: Any, *, limits: Any = None, rows: Any = None, **allocation: Any) -> Any:
    """An account with these limits, its model with those of `rows`, one allocation."""
    model_limits = (ModelLimits(model=MODEL, **(NONE | rows)),) if rows else ()
    upstream = policies.upstream(mock.base_url, limits=Limits(**(NONE | (limits or {}))), model_limits=model_limits)
    return policies.snapshot(upstream, quotas=(policies.quota(**allocation),))


async def ask(connection: Any) -> dict[str, Any]:
    """Ask for an answer; return the event that ends it, or the error."""
    await connection.send_json({"type": "response.create"})
    return await ending(connection)


async def ending(connection: Any) -> dict[str, Any]:
    async for message in connection:
        event: dict[str, Any] = json.loads(message.data)
        if event["type"] in ("response.done", "error"):
            return event
    return {"type": "closed", "code": connection.close_code}


def address(sidecar: Any) -> str:
    return f"{sidecar.base_url}/realtime?model={MODEL}"


async def test_a_conversation_is_priced_and_ends_at_a_spent_budget(
    start: Any, mock: Any, policies: Any, plane: Any
) -> None:
    """What was asked for is not begun; the conversation itself stays, for tomorrow there is money again."""
    snapshot = policy(policies, mock, budget=Budget(daily_usd="1"))
    plane.adopt(snapshot)
    sidecar = await asyncio.to_thread(start, snapshot, SLUICE_SYNC_URL=plane.url)
    async with aiohttp.ClientSession() as session, session.ws_connect(address(sidecar)) as connection:
        assert [(await ask(connection))["type"] for _ in range(2)] == ["response.done"] * 2
        await asyncio.to_thread(sidecar.wait_until, lambda: plane.spent(CHAT) > 0)  # long before it is over
        turns = mock.ledger.last.usage.output_tokens
        plane.charge(CHAT, 1_000_000)

        async def refused() -> dict[str, Any]:
            while (event := await ask(connection))["type"] == "response.done":
                pass
            return event

        error = (await asyncio.wait_for(refused(), 20))["error"]
        assert (error["code"], error["type"]) == ("budget_exceeded", "sluice_error")
        asked = mock.ledger.last.usage.output_tokens
        assert (await ask(connection))["type"] == "error"
        assert mock.ledger.last.usage.output_tokens == asked >= turns
    record = (await asyncio.to_thread(sidecar.records, 1))[0]
    assert (record["model"], record["outcome"]) == (MODEL, "Success")
    assert record["costUSDMicros"] > 0


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"limits": {"requests_per_minute": 3}}, "rate_limit_exceeded"),
        ({"rows": {"requests_per_minute": 3}}, "rate_limit_exceeded"),
        ({"limits": {"tokens_per_minute": 80}}, "rate_limit_exceeded"),
        ({"per_user": PerUser(key=KeySource(header="x-user-id"), requests_per_minute=3)}, "rate_limit_exceeded"),
        ({"per_user": PerUser(key=KeySource(header="x-user-id"), daily_usd="0.001")}, "budget_exceeded"),
    ],
    ids=["requests", "the model's requests", "tokens", "the user's requests", "the user's money"],
)
async def test_each_answer_counts(start: Any, mock: Any, policies: Any, fields: Any, code: str) -> None:
    """Requests, tokens and money of every answer, for the account, the model and the user; calls elsewhere see it."""
    sidecar = await asyncio.to_thread(start, policy(policies, mock, **fields))
    user = {"x-user-id": "u"}
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(address(sidecar), headers=user) as connection:
            answers = [await ask(connection) for _ in range(5)]
            assert [each["type"] for each in answers[:2]] == ["response.done"] * 2
            assert answers[-1]["error"]["code"] == code
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(address(sidecar), headers=user)
        assert caught.value.status == 429


async def test_shadow_mode_lets_a_conversation_go_on(start: Any, mock: Any, policies: Any) -> None:
    """What would be refused is counted."""
    snapshot = policy(policies, mock, limits={"requests_per_minute": 1}, mode=Mode.SHADOW)
    sidecar = await asyncio.to_thread(start, snapshot)
    async with aiohttp.ClientSession() as session, session.ws_connect(address(sidecar)) as connection:
        assert [(await ask(connection))["type"] for _ in range(3)] == ["response.done"] * 3
        assert (await asyncio.to_thread(sidecar.status))["allocations"][0]["refused"] == 2
