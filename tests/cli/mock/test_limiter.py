"""The rate limiter: by itself under any sequence of calls, and as the SDK sees it."""

import asyncio
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_cli.mock import MockOpenAI, ModelLimit, RateLimiter
from sluice_cli.mock.limiter import Admitted, Refused
from sluice_cli.mock.wire import go_duration

CALLS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 400)), max_size=80)


@given(CALLS)
def test_never_more_than_the_bucket_and_its_refill(calls: list[tuple[float, int]]) -> None:
    """What is admitted up to any moment stays within one minute's limit plus the refill since the start."""
    limiter = RateLimiter([ModelLimit(requests_per_minute=10, tokens_per_minute=1000)])
    now, requests, tokens = 0.0, 0, 0
    for gap, cost in calls:
        now += gap
        if isinstance(limiter.admit("m", cost, now), Admitted):
            requests, tokens = requests + 1, tokens + cost
        assert requests <= 10 + now * 10 / 60 + 1e-3
        assert tokens <= 1000 + now * 1000 / 60 + 1e-3


@given(CALLS)
def test_retry_after_is_true(calls: list[tuple[float, int]]) -> None:
    """A request that waits as long as it was told is admitted; one a little earlier is not."""
    limits = [ModelLimit(requests_per_minute=10, tokens_per_minute=1000, requests_per_day=50)]
    limiter, now = RateLimiter(limits), 0.0
    for gap, cost in calls:
        now += gap
        decision = limiter.admit("m", cost, now)
        if isinstance(decision, Refused):
            wait = decision.retry_after_seconds
            assert wait is not None
            if wait > 0.01:
                assert isinstance(limiter.admit("m", cost, now + wait - 0.01), Refused)
            now += wait + 1e-6
            assert isinstance(limiter.admit("m", cost, now), Admitted)


def test_refused_requests_cost_nothing() -> None:
    """A request refused for its tokens takes no request from the other bucket."""
    limiter = RateLimiter([ModelLimit(requests_per_minute=2, tokens_per_minute=100)])
    limiter.admit("m", 100, 0.0)
    for _ in range(5):
        assert isinstance(limiter.admit("m", 50, 0.0), Refused)

    admitted = limiter.admit("m", 50, 30.0)
    assert isinstance(admitted, Admitted)
    assert admitted.headers["x-ratelimit-remaining-requests"] == "1"
    assert (limiter.admitted, limiter.refused) == ({"m": 2}, {"m": 5})


def test_a_request_larger_than_the_limit_has_nothing_to_wait_for() -> None:
    """No waiting makes it fit, so no time is told."""
    decision = RateLimiter([ModelLimit(tokens_per_minute=100)]).admit("m", 101, 0.0)

    assert isinstance(decision, Refused)
    assert decision.retry_after_seconds is None
    assert "too large" in decision.message


@pytest.mark.parametrize(("shared", "admitted"), [(False, 2), (True, 1)])
def test_models_share_a_bucket_only_when_told(shared: bool, admitted: int) -> None:
    """Each model of a glob has its own bucket unless the family shares one."""
    limiter = RateLimiter([ModelLimit(model="gpt-*", requests_per_minute=1, shared=shared)])
    decisions = [limiter.admit(model, 1, 0.0) for model in ("gpt-a", "gpt-b")]

    assert sum(isinstance(decision, Admitted) for decision in decisions) == admitted


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0ms"),
        (0.012, "12ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (360, "6m0s"),
        (252.172, "4m12.172s"),
        (84_209.144, "23h23m29.144s"),
    ],
)
def test_durations_as_in_the_headers(seconds: float, written: str) -> None:
    """Reset times are written the Go way."""
    assert go_duration(seconds) == written


async def test_sdk_sees_limit_headers_and_429() -> None:
    """Headers count down; the request over the limit gets a 429 with its code, its figures and a true time."""
    limit = ModelLimit(model="gpt-4.1", requests_per_minute=60, tokens_per_minute=1000, project_tokens_per_minute=5000)
    create: dict[str, Any] = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400}
    async with (
        MockOpenAI(limits=[limit]) as mock,
        openai.AsyncOpenAI(base_url=mock.base_url, api_key="sk-x", max_retries=0) as sdk,
    ):
        first = await sdk.chat.completions.with_raw_response.create(**create)
        await sdk.chat.completions.create(**create)
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat.completions.create(**create)
        headers = caught.value.response.headers

        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        assert first.headers["x-ratelimit-remaining-tokens"] == "600"
        assert first.headers["x-ratelimit-remaining-requests"] == "59"
        assert first.headers["x-ratelimit-remaining-project-tokens"] == "4600"
        assert first.headers["x-ratelimit-reset-requests"] == "1s"
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.type == "tokens"
        assert "Limit 1000" in caught.value.message
        assert 1 <= int(headers["retry-after"]) <= 13
        assert int(headers["retry-after-ms"]) <= 12_000
        await sdk.embeddings.create(model="text-embedding-3-small", input="other models are not limited")
        assert (mock.limiter.admitted, mock.limiter.refused) == ({"gpt-4.1": 2}, {"gpt-4.1": 1})


async def test_parallel_requests_cannot_pass_the_limit() -> None:
    """Of fifty calls at once exactly as many are admitted as fit."""
    async with (
        MockOpenAI(limits=[ModelLimit(requests_per_minute=20)]) as mock,
        openai.AsyncOpenAI(base_url=mock.base_url, api_key="sk-x", max_retries=0) as sdk,
    ):
        calls = [sdk.embeddings.create(model="text-embedding-3-small", input="x", dimensions=2) for _ in range(50)]
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert sum(not isinstance(result, BaseException) for result in results) in (20, 21)
