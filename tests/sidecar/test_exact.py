"""Exact counting of tokens: with a vocabulary made here, without one, and never at the price of holding up calls."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import tiktoken

from sluice_core.api.modelroute import Endpoint
from sluice_sidecar.exact import INLINE_BYTES, LARGEST_BYTES, ExactCounter, ExactCountError

CHAT = Endpoint.CHAT_COMPLETIONS
Client = Callable[..., openai.OpenAI]


def tiny(_model: str = "") -> tiktoken.Encoding:
    """An encoding that knows all bytes and the word "hello"."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in ("he", "ll", "hell", "hello"):
        ranks[word.encode()] = len(ranks)
    return tiktoken.Encoding("tiny", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<|end|>": 9999})


def chat(text: str) -> bytes:
    """A request whose framing is six tokens, and its role four."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


async def counted(counter: ExactCounter, body: bytes) -> int | None:
    """Count once the encoding is loaded; the first call never waits for that."""
    assert await counter.count(CHAT, "m", body) is None
    await counter.loaded()
    return await counter.count(CHAT, "m", body)


@pytest.mark.parametrize(
    ("text", "tokens"), [("hello", 1), ("hello hello", 3), ("<|end|>", 7), ("hello " * 5000, 10_000)]
)
async def test_tokens_are_those_of_the_vocabulary(text: str, tokens: int) -> None:
    """In place for small inputs, in a thread for large ones; what looks like a special token is text."""
    counter = ExactCounter(Path(), tiny)
    assert await counted(counter, chat(text)) == 6 + 4 + tokens
    assert (counter.exact, counter.estimated, counter.error) == (1, 1, "")
    await counter.close()


async def test_a_count_that_takes_long_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop runs on, the call is estimated, and so are further large ones while the threads are busy."""
    release = threading.Event()

    class Slow:
        def encode_ordinary(self, text: str) -> list[int]:
            release.wait(30)
            return [0] * len(text)

    monkeypatch.setattr("sluice_sidecar.exact.MAX_SECONDS", 0.05)
    counter = ExactCounter(Path(), lambda _: Slow())
    try:
        assert await counter.count(CHAT, "m", b"{}") is None
        await counter.loaded()
        large = chat("x" * INLINE_BYTES)
        assert await asyncio.gather(*(counter.count(CHAT, "m", large) for _ in range(12))) == [None] * 12
        assert await counter.count(CHAT, "m", chat("x" * LARGEST_BYTES)) is None
    finally:
        release.set()
        await counter.close()


async def test_without_an_encoding_tokens_are_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    """One warning, however many calls and models; nothing is loaded twice."""
    asked: list[str] = []

    def missing(model: str) -> tiktoken.Encoding:
        asked.append(model)
        raise ExactCountError("no vocabulary")

    counter = ExactCounter(Path(), missing)
    for model in ("a", "b", "a", "b"):
        assert await counter.count(CHAT, model, chat("hello")) is None
    await counter.close()
    assert sorted(asked) == ["a", "b"]
    assert (counter.estimated, counter.error) == (4, "no vocabulary")
    assert capsys.readouterr().out.count("estimated") <= 1


def test_a_sidecar_without_its_vocabulary_says_so_and_goes_on(
    start: Any, client: Client, mock: Any, tmp_path: Path
) -> None:
    """Nothing is fetched over the network; calls are estimated, one warning is given, the metric tells."""
    sidecar = start(sys.modules["policies"].plain(mock.base_url), TIKTOKEN_CACHE_DIR=str(tmp_path))
    api = client(sidecar.base_url)
    for _ in range(3):
        api.chat.completions.create(model="gpt-4.1-mini", messages=[{"role": "user", "content": "hello"}])
    sidecar.wait_until(lambda: b"tokens are estimated" in sidecar.output())
    assert sidecar.metric("sluice_token_counts_total", how="estimated") == 3
    assert sidecar.metric("sluice_token_counts_total", how="exact") == 0
    assert sidecar.output().count(b"tokens are estimated") == 1
    assert b"no intact file" in sidecar.output()


def test_counting_is_off_by_default(start: Any, client: Client, mock: Any) -> None:
    """Without a directory there is no metric of it."""
    sidecar = start(sys.modules["policies"].plain(mock.base_url))
    client(sidecar.base_url).chat.completions.create(
        model="gpt-4.1-mini", messages=[{"role": "user", "content": "hello"}]
    )
    assert sidecar.metric("sluice_token_counts_total", how="estimated") == 0
