"""The waiting line of a real sidecar: who goes next, and who is told at once that waiting is in vain."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import pytest

from sluice_core.api.base import KeySource
from sluice_core.api.quotaallocation import PerUser, Priority, Queue
from sluice_core.api.upstream import Limits

MESSAGES: Any = [{"role": "user", "content": "hello"}]
PER_USER = PerUser(key=KeySource(header="x-user-id"), requests_per_minute=1_000_000)
MODELS = ("gpt-4.1", "gpt-4.1-mini")
SLOW = "gpt-4.1-nano"


@pytest.fixture
def one_at_a_time(start: Any, mock: Any, policies: Any) -> Any:
    """A sidecar that lets one call through at a time; one of the slow model holds it until all others wait."""
    mock.faults.add(latency_seconds=4.0, model=SLOW)
    return start(
        policies.snapshot(
            policies.upstream(mock.base_url, limits=Limits(concurrency=1)),
            quotas=(policies.quota(per_user=PER_USER, priority=Priority.REALTIME, queue=Queue(max_wait_seconds=30)),),
        )
    )


async def create(api: openai.AsyncOpenAI, user: str, model: str = MODELS[0], **headers: str) -> Any:
    """Make a call of a user; return the raw answer, errors included."""
    try:
        return await api.chat.completions.with_raw_response.create(
            model=model, messages=MESSAGES, max_tokens=10, extra_headers={"x-user-id": user, **headers}
        )
    except openai.APIStatusError as error:
        return error.response


async def waiting(sidecar: Any, count: int) -> None:
    """Return once so many calls wait."""
    await asyncio.to_thread(sidecar.wait_until, lambda: sidecar.status()["waiting"] == count)


async def held(sidecar: Any, group: asyncio.TaskGroup, api: openai.AsyncOpenAI, mock: Any) -> None:
    """Return once the slow call is under way."""
    group.create_task(create(api, "first", SLOW))
    await asyncio.to_thread(sidecar.wait_until, lambda: mock.ledger.in_flight == 1)


def served(mock: Any) -> list[str]:
    """Return the models of all calls in the order in which the upstream had them."""
    return [entry.model_requested for entry in sorted(mock.ledger, key=lambda entry: entry.started_at)]


def client(sidecar: Any) -> openai.AsyncOpenAI:
    """An official client that does not retry by itself."""
    return openai.AsyncOpenAI(base_url=sidecar.base_url, api_key="x", max_retries=0, timeout=60)


async def test_a_user_with_many_calls_delays_another_by_one(one_at_a_time: Any, mock: Any) -> None:
    """Users take turns: a single call that comes last is the second or third to go."""
    async with client(one_at_a_time) as api, asyncio.TaskGroup() as group:
        await held(one_at_a_time, group, api, mock)
        for _ in range(12):
            group.create_task(create(api, "many", MODELS[0]))
        await waiting(one_at_a_time, 12)
        group.create_task(create(api, "single", MODELS[1]))
        await waiting(one_at_a_time, 13)
    order = served(mock)
    assert len(order) == 14
    assert order.index(MODELS[1]) <= 2


async def test_retries_lose_rank(one_at_a_time: Any, mock: Any) -> None:
    """Calls that the application's SDK repeats wait behind fresh ones, though they came first."""
    async with client(one_at_a_time) as api, asyncio.TaskGroup() as group:
        await held(one_at_a_time, group, api, mock)
        for number in range(4):
            retry = {"x-stainless-retry-count": "2"}
            group.create_task(create(api, f"again-{number}", MODELS[1], **retry))
        await waiting(one_at_a_time, 4)
        for number in range(4):
            group.create_task(create(api, f"fresh-{number}", MODELS[0]))
        await waiting(one_at_a_time, 8)
    assert served(mock) == [SLOW, *[MODELS[0]] * 4, *[MODELS[1]] * 4]


async def test_who_cannot_make_it_is_refused_at_once(start: Any, mock: Any, policies: Any) -> None:
    """By the SDK's own time-out, told in a header: a call that would wait longer is refused now, with a true time."""
    sidecar = await asyncio.to_thread(
        start,
        policies.snapshot(
            policies.upstream(mock.base_url, limits=Limits(requests_per_minute=1)),
            quotas=(policies.quota(queue=Queue(max_wait_seconds=120)),),
        ),
    )
    async with client(sidecar) as api:
        assert (await create(api, "u")).status_code == 200
        begun = time.monotonic()
        patience = {"x-stainless-read-timeout": "20"}
        refused = await create(api, "u", **patience)
        assert time.monotonic() - begun < 15.0, "below its patience"
        assert refused.status_code == 429
        assert 55 <= int(refused.headers["retry-after"]) <= 61
        patient = asyncio.create_task(create(api, "u", **{"x-stainless-read-timeout": "100"}))
        await waiting(sidecar, 1)
        patient.cancel()
        await waiting(sidecar, 0)  # a client that goes away leaves the line at once
    assert len(mock.ledger) == 1
