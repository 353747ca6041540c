"""A mock OpenAI in a thread of its own, real sidecar processes before it, and a search for secrets in all they say."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest

from sluice_cli.mock import MockOpenAI
from sluice_core.snapshot import Snapshot, seal


def _sibling(name: str) -> ModuleType:
    """Import a module beside this file; test folders are no packages."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sidecars = _sibling("sidecars")
policies = _sibling("policies")


class LoopThread:
    """An event loop in a thread, for servers that must answer while a test blocks."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any, timeout_seconds: float = 20.0) -> Any:
        """Return the result of a coroutine that runs on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_seconds)

    def close(self) -> None:
        """Stop the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    """One loop for all servers of the session."""
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def shared_mock(loop_thread: LoopThread) -> Iterator[MockOpenAI]:
    """The mock of the session; `mock` hands it out clean."""

    async def build() -> MockOpenAI:
        return MockOpenAI(stable=True, keys={"primary": policies.KEY, "next": policies.NEXT_KEY})

    mock = loop_thread.run(build())
    loop_thread.run(mock.start())
    yield mock
    loop_thread.run(mock.stop())


@pytest.fixture
def mock(shared_mock: MockOpenAI) -> MockOpenAI:
    """A mock OpenAI without faults and with an empty ledger. It knows two keys."""
    shared_mock.reset()
    return shared_mock


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start sidecars. At the end of the test they are searched for what must never leave them."""
    running: list[Any] = []

    def start_one(snapshot: Snapshot | None = None, **environment: str) -> Any:
        sidecar = sidecars.Sidecar(tmp_path / f"sidecar{len(running)}", snapshot, **environment)
        sidecar.credentials.write(**policies.CREDENTIAL_FILES)
        running.append(sidecar)
        return sidecar.start()

    yield start_one
    for sidecar in running:
        pages = b""
        if sidecar.process.poll() is None:
            pages = "".join(sidecar.admin(page)[1] for page in ("/status", "/metrics")).encode()
        sidecar.kill()
        for secret in policies.SECRETS:
            assert secret.encode() not in sidecar.output() + pages, "a secret or a prompt has left the sidecar"


@pytest.fixture(scope="session")
def shared_sidecars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The sidecars of the session, by the revision of their policy."""
    running: dict[str, Any] = {}
    yield running
    for sidecar in running.values():
        sidecar.kill()
        for secret in policies.SECRETS:
            assert secret.encode() not in sidecar.output(), "a secret or a prompt has left the sidecar"


@pytest.fixture
def share(shared_sidecars: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Get a sidecar that tests with the same policy share: for those that leave nothing behind in it."""

    def get(snapshot: Snapshot) -> Any:
        revision = seal(snapshot).revision
        if revision not in shared_sidecars:
            sidecar = sidecars.Sidecar(tmp_path_factory.mktemp("shared"), snapshot)
            sidecar.credentials.write(**policies.CREDENTIAL_FILES)
            shared_sidecars[revision] = sidecar.start()
        return shared_sidecars[revision]

    return get


@pytest.fixture
def plain(share: Start, mock: MockOpenAI) -> Any:
    """A sidecar that only passes calls on to the mock."""
    return share(policies.plain(mock.base_url))


@pytest.fixture
def client() -> Iterator[Callable[..., openai.OpenAI]]:
    """Build official clients that do not retry, and close them."""
    opened: list[openai.OpenAI] = []

    def build(base_url: str, **options: Any) -> openai.OpenAI:
        options = {"api_key": policies.PLACEHOLDER_KEY, "max_retries": 0, "timeout": 20.0, **options}
        opened.append(openai.OpenAI(base_url=base_url, **options))
        return opened[-1]

    yield build
    for each in opened:
        each.close()
