"""Real rollouts on one machine: `sluice dev` in process, a real sidecar, a mock upstream with faults, many users."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from sluice_cli.dev.session import Session
from sluice_cli.dev.upstreams import MockUpstreams
from sluice_cli.main import main
from sluice_cli.mock import MockOpenAI
from sluice_core.api.canarysplit_status import CanarySplitStatus, Phase

LOOK_SECONDS = 0.05
API = "sluice.dev/v1alpha1"


class Seen(NamedTuple):
    """One answer as a client saw it."""

    at: float
    user: str
    version: str
    status: int


class Judge:
    """An outside judge with one address per webhook; what it says can change at any time."""

    def __init__(self) -> None:
        self.says: dict[str, Callable[[dict[str, Any]], tuple[str, str]]] = {}
        self.asked: dict[str, list[dict[str, Any]]] = {}
        self.authorizations: set[str] = set()
        self.url = ""

    async def reply(self, request: web.Request) -> web.Response:
        name, question = request.match_info["name"], await request.json()
        self.asked.setdefault(name, []).append(question)
        self.authorizations.add(request.headers.get("Authorization", ""))
        verdict, message = self.says[name](question)
        return web.json_response({"verdict": verdict, "message": message})


class Stage:
    """One session with a rule, a split and a model of its own for each scenario."""

    def __init__(self, folder: Path, judge: Judge, state: Path | None = None) -> None:
        self.judge = judge
        self._folder = folder
        self._state = state
        self._rules: list[dict[str, Any]] = []
        self._splits: dict[str, dict[str, Any]] = {}
        self._upstreams = MockUpstreams()

    def scenario(self, name: str, *, upstream: str = "openai", **spec: Any) -> None:
        """Declare a split `name` on calls for model `name`; its arms use models of their own, told apart by faults."""
        self._rules.append(
            {
                "name": name,
                "match": [{"models": [name]}],
                "targets": [{"name": "main", "upstreamRef": {"name": upstream}, "model": f"{name}-stable"}],
            }
        )
        self._splits[name] = {
            "routeRef": {"name": "all", "rule": name},
            "stable": {"version": "v1", "model": f"{name}-stable"},
            "candidate": {"version": "v2", "model": f"{name}-candidate"},
            "assignment": {"key": [{"header": "x-user-id"}]},
            "analysis": {"errorRate": {}},
            **spec,
        }

    def change(self, name: str, **spec: Any) -> None:
        """Apply a changed spec."""
        self._splits[name] = self._splits[name] | spec
        self._write()

    def _write(self) -> None:
        quiet = {"minimumRequests": 10_000, "consecutiveFailures": 0}
        upstreams = {"openai": {"breaker": quiet}, "flaky": {"breaker": {"openSeconds": 1}}}
        price = {"model": "*", "inputPerMillion": "0.40", "outputPerMillion": "1.60"}
        documents = [
            _resource("Upstream", name, {"retry": {"attempts": 1}, "prices": [price], **spec})
            for name, spec in upstreams.items()
        ]
        documents.append(_resource("ModelRoute", "all", {"rules": self._rules}))
        documents += [_resource("CanarySplit", name, spec) for name, spec in self._splits.items()]
        partial = self._folder / "policies.partial"
        partial.write_text(yaml.safe_dump_all(documents))
        partial.replace(self._folder / "policies.yaml")

    async def __aenter__(self) -> Self:
        self._write()
        self.session = Session(self._folder, self._upstreams, state=self._state)
        await self.session.__aenter__()
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        (self.sidecar,) = self.session.sidecars.values()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self.session.__aexit__()

    def mock(self, upstream: str = "openai") -> MockOpenAI:
        return self._upstreams.mocks[f"default/{upstream}"]

    def status(self, name: str) -> CanarySplitStatus:
        split = next(each for each in self.session.store.of_kind("CanarySplit") if each.metadata.name == name)
        assert isinstance(split.status, CanarySplitStatus)
        return split.status

    def events(self, name: str) -> list[str]:
        return [event.split(": ")[1] for event in self.session.plane.events if event.startswith(f"{name}: ")]

    async def until(self, condition: Callable[[], object], what: str, seconds: float = 30.0) -> float:
        """Wait for something to be seen; return the seconds that it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() < began + seconds, f"{what} was not seen: {self._where()}"
            await asyncio.sleep(LOOK_SECONDS)
        return time.monotonic() - began

    def _where(self) -> str:
        return "; ".join(self._line(name, self.status(name)) for name in self._splits)

    def _line(self, name: str, status: CanarySplitStatus) -> str:
        metrics = [(metric.name, metric.n, metric.evidence) for metric in status.metrics]
        where = f"{name} {status.phase} {status.step} {status.weight}: {status.reason}"
        return f"{where} discount={status.evidence_discount} {metrics} {status.webhooks}"

    async def phase(self, name: str, phase: Phase, seconds: float = 30.0) -> float:
        """Wait until a rollout is in a phase."""
        return await self.until(lambda: self.status(name).phase is phase, f"{name} in {phase}", seconds)

    def in_force(self, name: str) -> bool:
        """Tell whether every pod is known to run the weight that was decided."""
        status = self.status(name)
        return any(each.type == "ConfigSynced" and each.status == "True" for each in status.conditions)

    async def ask(self, verb: str, name: str, *options: str) -> None:
        """Run a verb of the command line as a person would."""
        assert await asyncio.to_thread(main, [verb, name, *options, "--dev", self.session.control_url]) == 0

    async def call(self, name: str, user: str, **headers: str) -> tuple[Seen, dict[str, Any]]:
        """Make one call as a user; return what came back."""
        body = {"model": name, "messages": [{"role": "user", "content": f"Hello from {user}"}]}
        async with self._client.post(
            f"{self.sidecar.base_url}/chat/completions", json=body, headers={"x-user-id": user, **headers}
        ) as answer:
            content = await answer.json()
            content["call_id"] = answer.headers["x-sluice-call-id"]
            return Seen(time.monotonic(), user, answer.headers.get("x-sluice-arm", ""), answer.status), content

    async def score(self, score: float, **answer: str) -> bool:
        """Post a score for an answer, by `response_id` or `call_id`, as an application would."""
        url = self.sidecar.base_url.removesuffix("/v1") + "/sluice/v1/feedback"
        async with self._client.post(url, json={"score": score, **answer}) as reply:
            counted: bool = (await reply.json())["counted"]
            return counted

    @contextlib.asynccontextmanager
    async def traffic(
        self,
        name: str,
        per_second: float,
        *,
        users: Callable[[int], str] = lambda number: f"user-{number % 300}",
        then: Callable[[Seen, dict[str, Any]], Awaitable[object]] | None = None,
    ) -> AsyncIterator[list[Seen]]:
        """Call at a steady rate while the block runs; what clients see grows in the list."""
        seen: list[Seen] = []
        calls: set[asyncio.Task[None]] = set()

        async def call(number: int) -> None:
            answer, content = await self.call(name, users(number))
            seen.append(answer)
            if then is not None:
                await then(answer, content)

        async def keep_calling() -> None:
            began = time.monotonic()
            for number in itertools.count():
                await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
                task = asyncio.create_task(call(number))
                calls.add(task)
                task.add_done_callback(calls.discard)

        caller = asyncio.create_task(keep_calling())
        try:
            yield seen
        finally:
            caller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await caller
            await asyncio.gather(*calls)


def _resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture
async def judge() -> AsyncIterator[Judge]:
    handler = Judge()
    application = web.Application()
    application.router.add_post("/{name}", handler.reply)
    async with TestServer(application) as server:
        handler.url = str(server.make_url("/"))
        yield handler


@pytest.fixture
def stage(tmp_path: Path, judge: Judge) -> Stage:
    folder = tmp_path / "policies"
    folder.mkdir()
    return Stage(folder, judge)


@pytest.fixture
def versions() -> Callable[[list[Seen]], Counter[str]]:
    """Count what versions were seen."""
    return lambda seen: Counter(each.version for each in seen)


@pytest.fixture
def returns() -> Callable[[list[Seen]], list[str]]:
    """Find the users who were moved from the candidate back to stable."""

    def find(seen: list[Seen]) -> list[str]:
        found: list[str] = []
        on_candidate: set[str] = set()
        for each in seen:
            if each.version == "v2":
                on_candidate.add(each.user)
            elif each.user in on_candidate:
                found.append(each.user)
        return found

    return find
