"""Traffic of the official OpenAI client: many users, unchanged code, only the base URL points at a sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import openai

PLACEHOLDER_KEY: Final = "sk-the-application-has-no-key"
MAX_IN_FLIGHT: Final = 64


class Tally:
    """What clients saw."""

    def __init__(self) -> None:
        self.answers = 0
        self.errors: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.fallbacks = 0
        self.waited = 0
        self.retry_after: list[float] = []

    @property
    def calls(self) -> int:
        """Return the number of calls that came to an end."""
        return self.answers + sum(self.errors.values())

    def answered(self, headers: Mapping[str, str]) -> None:
        """Count an answer by what Sluice says in its headers."""
        get = headers.get
        self.answers += 1
        if version := get("x-sluice-arm"):
            self.versions[version] += 1
        if get("x-sluice-fallback"):
            self.fallbacks += 1
        if float(get("x-sluice-queue-ms") or 0) >= 1:
            self.waited += 1

    def failed(self, error: openai.APIError) -> None:
        """Count an error by its status."""
        if isinstance(error, openai.APIStatusError):
            self.errors[str(error.status_code)] += 1
            if retry_after := error.response.headers.get("retry-after"):
                self.retry_after.append(float(retry_after))
        else:
            self.errors[type(error).__name__] += 1


class Crowd:
    """Users of one service, calling at a steady rate."""

    def __init__(self, base_url: str, *, users: int = 1000, model: str = "gpt-4.1-mini") -> None:
        self.tally = Tally()
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=PLACEHOLDER_KEY, max_retries=0, timeout=30.0)
        self._users = itertools.cycle(range(users))
        self._model = model
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def call(self, *, stream: bool = False) -> None:
        """Make one call as the next user."""
        user = f"user-{next(self._users)}"
        async with self._slots:
            try:
                if stream:
                    await self._stream(user)
                else:
                    await self._ask(user)
            except openai.APIError as error:
                self.tally.failed(error)

    async def _ask(self, user: str) -> None:
        raw = await self._client.chat.completions.with_raw_response.create(
            model=self._model,
            messages=[{"role": "user", "content": f"Hello from {user}"}],
            max_tokens=32,
            extra_headers={"x-user-id": user},
        )
        self.tally.answered(raw.headers)

    async def _stream(self, user: str) -> None:
        async with self._client.chat.completions.with_streaming_response.create(
            model=self._model,
            messages=[{"role": "user", "content": f"Hello from {user}"}],
            max_tokens=32,
            stream=True,
            extra_headers={"x-user-id": user},
        ) as raw:
            async for _ in await raw.parse():
                pass
            self.tally.answered(raw.headers)

    @asynccontextmanager
    async def calling(self, per_second: float) -> AsyncIterator[Tally]:
        """Call at this rate while the block runs, every fifth time with a stream; then let the last calls end."""
        self.tally = Tally()
        calls: set[asyncio.Task[None]] = set()

        async def keep_calling() -> None:
            start = time.monotonic()
            for number in itertools.count():
                await asyncio.sleep(max(0.0, start + number / per_second - time.monotonic()))
                if len(calls) < 4 * MAX_IN_FLIGHT:  # a service that does not answer is not buried in calls
                    task = asyncio.create_task(self.call(stream=number % 5 == 4))
                    calls.add(task)
                    task.add_done_callback(calls.discard)

        caller = asyncio.create_task(keep_calling())
        try:
            yield self.tally
        finally:
            caller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await caller
            await asyncio.gather(*calls, return_exceptions=True)

    async def close(self) -> None:
        """Close the client."""
        await self._client.close()


def one_sync_call(base_url: str, model: str = "gpt-4.1-mini") -> str:
    """Make one call with the synchronous client and return the answer's text."""
    with openai.OpenAI(base_url=base_url, api_key=PLACEHOLDER_KEY, max_retries=0) as client:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Hello, who are you?"}], max_tokens=32
        )
    return answer.choices[0].message.content or ""
