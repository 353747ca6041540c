"""After any mix of endings, the sidecar's ledger is the upstream's, and nothing is held."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from sluice_core.api.upstream import Limits, Retry
from sluice_core.pricing import PriceBook
from sluice_core.usage import Usage

MESSAGES: Any = [{"role": "user", "content": "hello"}]
CALLS = 150


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


def storm(mock: Any) -> None:
    """Order a bit of everything that can go wrong."""
    for percent, effect in (
        (8, {"error": "server_error"}),
        (6, {"error": "rate_limit_exceeded", "retry_after_ms": "3"}),
        (4, {"error": "invalid_request"}),
        (4, {"reset": True}),
        (5, {"cut_at_event": 4}),
        (4, {"stream_error": "server_error"}),
        (10, {"latency_seconds": 0.05}),
        (10, {"chunking": "random"}),
        (5, {"cached_tokens": 3, "reasoning_tokens": 7, "output_tokens": 30}),
    ):
        mock.faults.add(percent=percent, **effect)


async def call(api: openai.AsyncOpenAI, number: int) -> None:
    """Make one call of some kind, and sometimes leave it in the middle."""
    try:
        if number % 3 == 0:
            await api.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES)
        elif number % 3 == 1:
            stream: Any = await api.chat.completions.create(model="gpt-4.1", messages=MESSAGES, stream=True)
            await _read(stream, number)
        else:
            events: Any = await api.responses.create(model="gpt-4.1-mini", input="hello", stream=True)
            await _read(events, number)
    except (openai.APIError, httpx2.HTTPError):
        pass


async def _read(stream: Any, number: int) -> None:
    count = 0
    async for _ in stream:
        count += 1
        if number % 10 == 7 and count == 3:
            await stream.close()
            return


async def test_ledgers_are_equal_after_a_storm(start: Any, mock: Any, policies: Any) -> None:
    """Every attempt is in both ledgers; completed ones agree to the token and the micro-dollar."""
    retry = Retry(attempts=3, base_delay_milliseconds=1, budget_percent=100)
    limits = Limits(concurrency=40, requests_per_minute=100_000, tokens_per_minute=100_000_000)
    snapshot = policies.snapshot(
        policies.upstream(mock.base_url, retry=retry, limits=limits),
        quotas=(policies.quota(queue=policies.Queue(max_wait_seconds=20)),),
    )
    sidecar = await asyncio.to_thread(start, snapshot)
    storm(mock)
    async with openai.AsyncOpenAI(base_url=sidecar.base_url, api_key="x", max_retries=0, timeout=30) as api:
        await asyncio.gather(*(call(api, number) for number in range(CALLS)))
    await asyncio.to_thread(sidecar.wait_until, lambda: sidecar.status()["inFlight"] == 0)
    records = await asyncio.to_thread(sidecar.records, CALLS)
    assert len(records) == CALLS
    assert len({record["callId"] for record in records}) == CALLS

    attempts = [attempt for record in records for attempt in record.get("attempts", ())]
    never_arrived = sum(attempt["outcome"] == "ClientClosed" for attempt in attempts)
    assert len(mock.ledger) <= len(attempts) <= len(mock.ledger) + never_arrived
    _compare_completed(records, mock)

    status = sidecar.status()
    assert status["waiting"] == 0
    assert status["upstreams"]["team/openai"]["inUse"] == 0
    slots = next(each for each in status["limits"] if "concurrency" in each["limit"])
    assert slots["used"] == 0
    assert sum(1 for record in records if record["outcome"] == "Success") > CALLS // 2


def _compare_completed(records: list[dict[str, Any]], mock: Any) -> None:
    book = PriceBook.from_data()
    served = {entry.request_id: entry for entry in mock.ledger}
    compared = 0
    for record in records:
        entry = served.get(record.get("upstreamRequestId", ""))
        if record["outcome"] != "Success" or entry is None:
            continue
        compared += 1
        usage = record["usage"]
        assert usage["inputTokens"] == entry.usage.input_tokens
        assert usage.get("outputTokens", 0) == entry.usage.output_tokens
        assert usage.get("cachedInputTokens", 0) == entry.usage.cached_tokens
        assert usage.get("reasoningTokens", 0) == entry.usage.reasoning_tokens
        billed = Usage(
            input_tokens=entry.usage.input_tokens,
            output_tokens=entry.usage.output_tokens,
            cached_input_tokens=entry.usage.cached_tokens,
        )
        assert record["costUSDMicros"] == book.cost_usd_micros(
            billed, entry.model_served, entry.tier_served, record["time"]
        )
    assert compared > CALLS // 2


@pytest.mark.parametrize("kind", ["chat", "responses"])
async def test_a_stream_that_was_left_is_booked_close_to_what_is_billed(
    start: Any, mock: Any, policies: Any, kind: str
) -> None:
    """No usage was reported, so that the pieces that came are counted: about one token each."""
    sidecar = await asyncio.to_thread(start, policies.plain(mock.base_url))
    mock.faults.add(output_tokens=200, gap_seconds=0.005)
    async with openai.AsyncOpenAI(base_url=sidecar.base_url, api_key="x", max_retries=0, timeout=30) as api:
        stream: Any
        if kind == "chat":
            stream = await api.chat.completions.create(model="gpt-4.1", messages=MESSAGES, stream=True)
        else:
            stream = await api.responses.create(model="gpt-4.1", input="hello", stream=True)
        for _ in range(40):
            await anext(stream)
        await stream.close()
        record = (await asyncio.to_thread(sidecar.records, 1))[0]
    await asyncio.to_thread(sidecar.wait_until, lambda: mock.ledger.last.usage is not None)
    assert record["outcome"] == "ClientClosed"
    assert record["usageEstimated"]
    assert abs(record["usage"]["outputTokens"] - mock.ledger.last.usage.output_tokens) <= 4


def test_a_client_that_closes_on_the_terminal_event_has_its_whole_answer(start: Any, policies: Any) -> None:
    """The call is a success, although the upstream had not closed its side of the stream when the client went."""
    events = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    upstream = socket.create_server(("127.0.0.1", 0))

    def answer_without_end() -> None:
        connection, _ = upstream.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"%x\r\n%b\r\n" % (len(events), events)
            )
            connection.recv(1)  # until the sidecar closes

    thread = threading.Thread(target=answer_without_end)
    thread.start()
    sidecar = start(policies.plain(f"http://127.0.0.1:{upstream.getsockname()[1]}/v1"))
    body = b'{"model":"gpt-4.1-mini","stream":true,"messages":[{"role":"user","content":"hello"}]}'
    target = urlsplit(sidecar.base_url)
    with socket.create_connection((target.hostname, target.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        received = b""
        while b"data: [DONE]" not in received:
            received += connection.recv(65_536)

    assert sidecar.records(1)[0]["outcome"] == "Success"
    thread.join(timeout=10)
    upstream.close()
