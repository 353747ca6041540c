"""What each kind of call costs, against the upstream's own ledger and prices worked out by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import wave
from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import Any

import openai
import pytest

from sluice_core.api.quotaallocation import Budget
from sluice_core.api.upstream import Limits, Price
from sluice_core.pricing import PriceBook
from sluice_core.snapshot import FallbackPolicy

TEXT: Any = [{"role": "user", "content": "hello there, how are you on this fine day"}]
LONG: Any = [{"role": "user", "content": "a rather long question that costs something " * 40}]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
Make = Callable[[openai.AsyncOpenAI], Awaitable[Any]]


def sound(seconds: int) -> bytes:
    """Silence as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(8000)
        written.writeframes(bytes(16_000 * seconds))
    return file.getvalue()


async def drain(stream: Awaitable[Any], events: int | None = None) -> None:
    """Read a stream, or leave it after some events."""
    opened = await stream
    async for _ in opened:
        if events is not None:
            events -= 1
            if not events:
                await opened.close()
                return


def chat(model: str = "gpt-4.1", messages: Any = TEXT, **fields: Any) -> Make:
    return lambda api: api.chat.completions.create(model=model, messages=messages, **fields)


def stream(model: str = "gpt-4.1", messages: Any = TEXT, events: int | None = None, **fields: Any) -> Make:
    return lambda api: drain(api.chat.completions.create(model=model, messages=messages, stream=True, **fields), events)


@pytest.fixture
async def cost(start: Any, mock: Any, policies: Any) -> Any:
    """Make a call; return what the sidecar booked for it, and what the upstream has in its ledger."""
    upstream = policies.upstream(
        mock.base_url,
        limits=Limits(),
        prices=(Price(model="house-model", input_per_million="3", output_per_million="7"),),
    )
    fallbacks = (FallbackPolicy(upstream="team/openai", model="gpt-4.1-nano"),)
    quotas = (policies.quota(budget=Budget(daily_usd="100000")),)
    snapshot = policies.snapshot(upstream, rules=(policies.rule(fallbacks=fallbacks),), quotas=quotas)
    sidecar = await asyncio.to_thread(start, snapshot)

    async def made(make: Make, **fault: Any) -> tuple[dict[str, Any], list[Any], dict[str, Any]]:
        if fault:
            mock.faults.add(**fault)
        async with openai.AsyncOpenAI(base_url=sidecar.base_url, api_key="x", max_retries=0, timeout=30) as api:
            with contextlib.suppress(openai.APIError):
                await make(api)
        record = (await asyncio.to_thread(sidecar.records, 1))[0]
        await asyncio.to_thread(sidecar.wait_until, lambda: all(each.outcome != "in_flight" for each in mock.ledger))
        return record, list(mock.ledger), (await asyncio.to_thread(sidecar.status))["allocations"][0]

    return made


def usd(text: str) -> Fraction:
    """Micro-dollars of one token, from the price of a million."""
    return Fraction(text)


def rounded(micros: Fraction) -> int:
    """To whole micro-dollars, half to even."""
    return round(micros)


EXACT: dict[str, tuple[Make, dict[str, Any], Callable[[Any], Fraction]]] = {
    "chat": (chat(), {}, lambda used: 2 * used.input_tokens + 8 * used.output_tokens),
    "several answers": (chat(n=3), {}, lambda used: 2 * used.input_tokens + 8 * used.output_tokens),
    "stream": (stream(), {}, lambda used: 2 * used.input_tokens + 8 * used.output_tokens),
    "stream of several": (stream(n=3), {}, lambda used: 2 * used.input_tokens + 8 * used.output_tokens),
    "cached input": (
        chat(),
        {"prompt_tokens": 5000, "cached_tokens": 4096},
        lambda used: 2 * (used.input_tokens - 4096) + Fraction(4096, 2) + 8 * used.output_tokens,
    ),
    "reasoning": (
        stream("o3"),
        {"output_tokens": 500, "reasoning_tokens": 400},
        lambda used: 2 * used.input_tokens + 8 * used.output_tokens,
    ),
    "flex": (
        chat("o3", service_tier="flex"),
        {},
        lambda used: Fraction(2 * used.input_tokens + 8 * used.output_tokens, 2),
    ),
    "completion": (
        lambda api: api.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello", n=2),
        {},
        lambda used: usd("1.5") * used.input_tokens + 2 * used.output_tokens,
    ),
    "embeddings": (
        lambda api: api.embeddings.create(model="text-embedding-3-large", input=["hello " * 300] * 3),
        {},
        lambda used: usd("0.13") * used.input_tokens,
    ),
    "image": (
        lambda api: api.images.generate(model="gpt-image-1", prompt="a cat", n=2, size="1024x1536", quality="high"),
        {},
        lambda used: 5 * used.input_tokens + 40 * used.output_tokens,
    ),
    "image edit": (
        lambda api: api.images.edit(model="gpt-image-1", image=("a.png", PNG), prompt="a cat"),
        {},
        lambda used: 5 * (used.input_tokens - 765) + 10 * 765 + 40 * used.output_tokens,
    ),
    "transcript": (
        lambda api: api.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", sound(3))),
        {},
        lambda used: 6 * used.audio_input_tokens + 10 * used.output_tokens,
    ),
    "transcript by time": (
        lambda api: api.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound(3))),
        {},
        lambda used: usd("6000") * Fraction(str(used.audio_seconds)) / 60,
    ),
    "the account's own price": (chat("house-model"), {}, lambda used: 3 * used.input_tokens + 7 * used.output_tokens),
    "a fallback's price": (
        chat(),
        {"model": "gpt-4.1", "error": "server_error"},
        lambda used: usd("0.1") * used.input_tokens + usd("0.4") * used.output_tokens,
    ),
    "a second attempt": (
        chat(),
        {"error": "rate_limit_exceeded", "count": 1, "retry_after_ms": "5"},
        lambda used: 2 * used.input_tokens + 8 * used.output_tokens,
    ),
}


@pytest.mark.parametrize("kind", EXACT)
async def test_what_the_upstream_reports_is_booked_to_the_micro_dollar(cost: Any, kind: str) -> None:
    """Each token at the price of its kind, of the model and tier that served it; rounded once for a call."""
    make, fault, by_hand = EXACT[kind]
    record, served, _ = await cost(make, **fault)
    used = next(each.usage for each in served if each.outcome == "completed")
    assert record["costUSDMicros"] == rounded(Fraction(by_hand(used)))
    assert "usageEstimated" not in record


ESTIMATED: dict[str, tuple[Make, dict[str, Any], float]] = {
    "speech": (
        lambda api: api.audio.speech.create(model="gpt-4o-mini-tts", voice="alloy", input="hello world " * 50),
        {},
        0.25,
    ),
    "transcript as text": (
        lambda api: api.audio.transcriptions.create(
            model="whisper-1", file=("a.wav", sound(8)), response_format="text"
        ),
        {},
        1.1,
    ),
    "a stream that was left": (stream(messages=LONG, events=30), {"gap_seconds": 0.005, "output_tokens": 300}, 0.1),
    "a stream that broke off": (stream(messages=LONG), {"cut_at_event": 40, "output_tokens": 300}, 0.1),
}


@pytest.mark.parametrize("kind", ESTIMATED)
async def test_what_is_not_reported_is_estimated_and_says_so(cost: Any, kind: str) -> None:
    """A budget counts it all the same, close to what the upstream's ledger has."""
    make, fault, most = ESTIMATED[kind]
    record, (served,), _ = await cost(make, **fault)
    used = served.usage
    book = PriceBook.from_data()
    seconds = usd("6000") * Fraction(str(used.audio_seconds)) / 60
    truth = {"speech": Fraction(6, 10) * used.input_tokens + 12 * used.output_tokens}.get(
        kind, seconds or 2 * used.input_tokens + 8 * used.output_tokens
    )
    assert book.knows(served.model_served)
    assert record["usageEstimated"] is True
    assert abs(record["costUSDMicros"] - truth) <= most * truth


@pytest.mark.parametrize("at", [0, 1])
async def test_an_attempt_that_broke_off_unseen_is_charged_too(cost: Any, at: int) -> None:
    """The upstream has charged both; of the first it is estimated, and told apart."""
    record, served, _ = await cost(stream(messages=LONG), cut_at_event=at, count=1)
    assert len(served) == 2
    billed = sum(2 * each.usage.input_tokens + 8 * each.usage.output_tokens for each in served)
    assert record["costUSDMicros"] == 2 * served[1].usage.input_tokens + 8 * served[1].usage.output_tokens
    assert abs(record["costUSDMicros"] + record["lostUSDMicros"] - billed) <= 0.1 * billed


async def test_a_failure_that_the_upstream_reports_in_a_stream_costs_nothing(cost: Any) -> None:
    """As one that it reports by its status."""
    record, (served,), _ = await cost(stream(), stream_error="server_error", output_tokens=50)
    assert served.outcome == "failed"
    assert "costUSDMicros" not in record


@pytest.mark.parametrize(
    "make",
    [
        chat("gpt-nobody-knows"),
        lambda api: api.images.generate(model="dall-e-3", prompt="a cat"),
        lambda api: api.audio.speech.create(model="tts-1", voice="alloy", input="hello"),
    ],
    ids=["unknown model", "by the image", "by the character"],
)
async def test_what_has_no_price_is_told(cost: Any, make: Make) -> None:
    """It escapes every budget, so somebody has to hear of it; also where the answer reports no usage."""
    record, _, allocation = await cost(make)
    assert "costUSDMicros" not in record
    assert allocation["unpriced"] == 1


async def test_moderations_are_free(cost: Any) -> None:
    """No cost, and nothing to complain of."""
    record, _, allocation = await cost(
        lambda api: api.moderations.create(model="omni-moderation-latest", input="hello")
    )
    assert not record.get("costUSDMicros")
    assert "unpriced" not in json.dumps(allocation)
