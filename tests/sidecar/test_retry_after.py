"""What an upstream asks for in a 429 is obeyed by all calls of that model and key, as the upstream's own log shows."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import openai
import pytest

from sluice_core.api.quotaallocation import Mode, Queue
from sluice_core.api.upstream import Limits, Retry
from sluice_core.snapshot import FallbackPolicy

MESSAGES: Any = [{"role": "user", "content": "hello"}]
HELD, FREE = "gpt-4.1", "gpt-4.1-mini"


def governed(policies: Any, mock: Any, *, keys: int = 1, retry: Retry | None = None, **fields: Any) -> Any:
    """A snapshot without limits, with so many keys, whose calls may wait for ten seconds."""
    rule = {name: fields.pop(name) for name in ("fallbacks",) if name in fields}
    allocation = {"queue": Queue(max_wait_seconds=10), **fields}
    upstream = policies.upstream(
        mock.base_url, limits=Limits(), credentials=policies.BOTH_KEYS[:keys], retry=retry or policies.QUICK_RETRY
    )
    return policies.snapshot(upstream, rules=(policies.rule(**rule),), quotas=(policies.quota(**allocation),))


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


async def ask(api: openai.AsyncOpenAI, model: str, **fields: Any) -> tuple[int, float, dict[str, str]]:
    """Make one call; return its status, how long it took, and its header."""
    began = time.monotonic()
    try:
        raw = await api.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, **fields)
        return raw.status_code, time.monotonic() - began, dict(raw.headers)
    except openai.APIStatusError as error:
        return error.response.status_code, time.monotonic() - began, dict(error.response.headers)


async def storm(sidecar: Any, calls: int) -> list[tuple[str, int, float, dict[str, str]]]:
    """One call, and as soon as the upstream has refused it many more, of the same model and of another one."""
    async with openai.AsyncOpenAI(base_url=sidecar.base_url, api_key="x", max_retries=0, timeout=30) as api:
        first = asyncio.create_task(ask(api, HELD))
        await asyncio.to_thread(
            sidecar.wait_until,
            lambda: first.done() or sidecar.metric("sluice_hold_seconds", upstream="team/openai") > 0,
        )
        models = [HELD, FREE] * calls
        rest = await asyncio.gather(*(ask(api, model) for model in models))
        return list(zip([HELD, *models], *zip(await first, *rest, strict=True), strict=True))


def gap(mock: Any, model: str) -> float:
    """Return how long the upstream heard nothing of a model after it had refused a call of it, in seconds."""
    entries = mock.ledger.find(model=model)
    refused = next(each for each in entries if each.status == 429)
    answered_at = refused.started_at + (refused.duration_seconds or 0.0)
    return min(each.started_at for each in entries if each is not refused) - answered_at


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        ({"retry_after": "2"}, 2.0),
        ({"retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after": "1.5"}, 1.5),
        ({"error_message": "Rate limit reached. Please try again in 1.5s."}, 1.5),
        ({"error": "slow_down", "retry_after_ms": "1500"}, 1.5),
        (
            {
                "response_headers": {
                    "x-ratelimit-limit-requests": "60",
                    "x-ratelimit-remaining-requests": "0",
                    "x-ratelimit-reset-requests": "1m30s",
                }
            },
            1.5,
        ),
        (
            {
                "response_headers": {
                    "x-ratelimit-limit-project-tokens": "200000",
                    "x-ratelimit-remaining-project-tokens": "0",
                    "x-ratelimit-reset-project-tokens": "1h0m0s",
                }
            },
            0.15,
        ),
    ],
    ids=["seconds", "ms", "ms first", "fraction", "message", "slow_down", "reset", "project reset"],
)
async def test_no_call_of_the_model_leaves_before_the_time_that_was_told(
    start: Any, mock: Any, policies: Any, fault: dict[str, Any], seconds: float
) -> None:
    """However it was told. All are answered in the end, and other models do not wait."""
    sidecar = await asyncio.to_thread(start, governed(policies, mock))
    mock.faults.add(model=HELD, count=1, **{"error": "rate_limit_exceeded", **fault})
    answers = await storm(sidecar, 12)
    assert [status for _, status, _, _ in answers] == [200] * 25
    assert gap(mock, HELD) >= seconds - 0.002
    assert len(mock.ledger.find(model=HELD)) == 14
    if seconds > 1:
        assert max(took for model, _, took, _ in answers if model == FREE) < seconds


async def test_another_key_may_go_at_once(start: Any, mock: Any, policies: Any) -> None:
    """Only the key that was told so waits; with it the call that was told."""
    sidecar = await asyncio.to_thread(start, governed(policies, mock, keys=2))
    mock.faults.add(model=HELD, error="rate_limit_exceeded", count=1, key="primary", retry_after="3")
    answers = await storm(sidecar, 6)
    assert [status for _, status, _, _ in answers] == [200] * 13
    assert max(took for _, _, took, _ in answers[1:]) < 3
    used = [each.key_name for each in mock.ledger.find(model=HELD)]
    assert used.count("primary") == 1


async def test_longer_than_is_waited_for_fails_fast_and_truly(start: Any, mock: Any, policies: Any) -> None:
    """Above the cap nobody waits: a 429 at once, with what the upstream said; and none of them went to it."""
    retry = Retry(attempts=3, base_delay_milliseconds=1, max_delay_seconds=5, budget_percent=100)
    sidecar = await asyncio.to_thread(start, governed(policies, mock, retry=retry))
    mock.faults.add(model=HELD, error="rate_limit_exceeded", count=1, retry_after="40")
    answers = await storm(sidecar, 6)
    held = [(status, took, headers) for model, status, took, headers in answers[1:] if model == HELD]
    assert [status for status, _, _ in held] == [429] * 6
    assert all(took < 3 and 30 <= int(headers["retry-after"]) <= 40 for _, took, headers in held)
    assert all(headers["x-sluice-decision"].startswith("refused; code=rate_limit_exceeded") for _, _, headers in held)
    assert [status for model, status, _, _ in answers if model == FREE] == [200] * 6
    assert len(mock.ledger.find(model=HELD)) == 1
    assert sidecar.metric("sluice_hold_seconds", upstream="team/openai") > 0


async def test_a_fallback_is_taken_at_once(start: Any, mock: Any, policies: Any) -> None:
    """Who has one does not wait for seconds, nor does the upstream hear of it."""
    fallbacks = (FallbackPolicy(upstream="team/openai", model="gpt-4.1-nano"),)
    retry = Retry(attempts=3, base_delay_milliseconds=1, budget_percent=100)
    sidecar = await asyncio.to_thread(start, governed(policies, mock, retry=retry, fallbacks=fallbacks))
    mock.faults.add(model=HELD, error="rate_limit_exceeded", count=1, retry_after="3")
    answers = await storm(sidecar, 6)
    assert [status for _, status, _, _ in answers] == [200] * 13
    assert max(took for model, _, took, _ in answers[1:] if model == HELD) < 3
    assert len(mock.ledger.find(model="gpt-4.1-nano")) == 6
    assert gap(mock, HELD) >= 3


async def test_a_call_that_may_not_wait_so_long_is_told_so(start: Any, mock: Any, policies: Any) -> None:
    """By its queue or by its own deadline."""
    snapshot = governed(policies, mock, queue=Queue(max_wait_seconds=1))
    sidecar = await asyncio.to_thread(start, snapshot)
    mock.faults.add(model=HELD, error="rate_limit_exceeded", count=1, retry_after="3")
    answers = await storm(sidecar, 3)
    held = [(status, took) for model, status, took, _ in answers[1:] if model == HELD]
    assert [status for status, _ in held] == [429] * 3
    assert answers[0][1] == 200
    assert gap(mock, HELD) >= 3


async def test_shadow_mode_lets_calls_go(start: Any, mock: Any, policies: Any) -> None:
    """Nothing waits there, whatever the upstream says."""
    sidecar = await asyncio.to_thread(start, governed(policies, mock, mode=Mode.SHADOW))
    mock.faults.add(model=HELD, error="rate_limit_exceeded", count=1, retry_after="3")
    answers = await storm(sidecar, 3)
    assert max(took for _, _, took, _ in answers[1:]) < 3
    assert [status for _, status, _, _ in answers] == [200] * 7
