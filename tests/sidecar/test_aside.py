"""Large bodies do not hold up other calls."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest

from sluice_core.api.modelroute import Endpoint
from sluice_core.errors import BadRequestError
from sluice_core.request import peek
from sluice_sidecar.aside import aside


async def turns_during(work: Callable[[], Any]) -> int:
    """Return how often the loop turned while work was done aside."""
    turns, under_way = 0, True

    async def turn() -> None:
        nonlocal turns
        while under_way:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    await aside(work)
    under_way = False
    await turning
    return turns


async def test_the_loop_turns_while_a_large_body_is_read() -> None:
    """Between the steps of such work other calls go on."""
    body = json.dumps({"messages": [{"role": "user", "content": "w"}] * 20_000}).encode()
    assert await turns_during(lambda: [peek(Endpoint.CHAT_COMPLETIONS, body) for _ in range(20)]) > 2


async def test_what_fails_aside_fails_for_whoever_waits() -> None:
    """As it would have in line."""
    with pytest.raises(BadRequestError):
        await aside(peek, Endpoint.CHAT_COMPLETIONS, b"no object")


async def test_work_aside_is_done_by_one_thread() -> None:
    """More of them would contend for the interpreter, and hold up the loop together."""
    threads = await asyncio.gather(*(aside(threading.get_ident) for _ in range(20)))
    assert set(threads) == {threads[0]} != {threading.get_ident()}


@pytest.mark.parametrize("megabytes", [0.9, 3, 20])
def test_a_large_call_is_read_sent_and_booked_like_a_small_one(
    plain: Any, client: Any, mock: Any, megabytes: float
) -> None:
    """Its body arrives whole, and its usage is booked."""
    text = "word " * int(megabytes * 200_000)
    answer = client(plain.base_url).chat.completions.with_raw_response.create(
        model="gpt-4.1-mini", messages=[{"role": "user", "content": text}]
    )
    record = plain.record(answer.headers["x-sluice-call-id"])
    assert record["outcome"] == "Success"
    assert record["requestBytes"] > megabytes * 1_000_000
    assert record["usage"]["inputTokens"] == mock.ledger.last.usage.input_tokens


def test_a_large_body_that_is_no_json_is_refused_like_a_small_one(plain: Any, client: Any) -> None:
    """With the API's own error."""
    with pytest.raises(openai.BadRequestError, match="not a JSON object"):
        client(plain.base_url).post(
            "/chat/completions",
            cast_to=object,
            content=b"[" * 2_000_000,
            options={"headers": {"Content-Type": "application/json"}},
        )
