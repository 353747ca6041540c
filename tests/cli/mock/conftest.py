"""A running mock server and the official SDK's clients on it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from threading import Thread

import openai
import pytest

from sluice_cli.mock import MockOpenAI


@pytest.fixture(scope="session", autouse=True)
def _no_implicit_loop() -> None:
    """Keep looptime's look at the current loop, in a synchronous test, from making one that nobody closes."""
    asyncio.set_event_loop(None)


@pytest.fixture
async def mock() -> AsyncIterator[MockOpenAI]:
    """A server whose ids and times depend on the requests alone."""
    async with MockOpenAI(stable=True, seed=7) as server:
        yield server


@pytest.fixture
async def client(mock: MockOpenAI) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK's asynchronous client, without retries of its own."""
    async with openai.AsyncOpenAI(base_url=mock.base_url, api_key="sk-test", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def threaded_mock() -> Iterator[MockOpenAI]:
    """A server in a thread of its own, for the synchronous client."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()

    async def start() -> MockOpenAI:
        server = MockOpenAI()
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def sync_client(threaded_mock: MockOpenAI) -> Iterator[openai.OpenAI]:
    """The SDK's synchronous client, without retries of its own."""
    with openai.OpenAI(base_url=threaded_mock.base_url, api_key="sk-test", max_retries=0) as sdk:
        yield sdk
