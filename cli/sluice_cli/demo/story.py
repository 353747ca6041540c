"""The demo's story: four things that Sluice does, each made to happen, watched, and checked on figures of the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sluice_cli.demo.traffic import Crowd, Tally, one_sync_call
from sluice_cli.dev.session import Session
from sluice_cli.dev.upstreams import MockUpstreams
from sluice_cli.dev.workloads import Workload
from sluice_cli.documents import document, kind_table
from sluice_cli.tables import render
from sluice_core.api.canarysplit_status import CanarySplit, CanarySplitStatus, Phase
from sluice_core.api.crd import BY_NAME
from sluice_core.records import CallRecord

CHAT_PER_SECOND: Final = 80.0
LOOK_SECONDS: Final = 0.1


class NotObservedError(Exception):
    """Something that the story promises did not happen. The message says what."""


class Records:
    """What the sidecars' decision records say, as far as the story needs it."""

    def __init__(self) -> None:
        self.total = 0
        self.by_fallback = 0
        self.waited = 0
        self.refused_by: dict[str, int] = {}

    def add(self, _workload: Workload, record: CallRecord) -> None:
        """Count one record."""
        self.total += 1
        self.by_fallback += record.fallback is not None
        self.waited += record.queue_ms >= 1
        if record.refused_by:
            self.refused_by[record.refused_by] = self.refused_by.get(record.refused_by, 0) + 1


class Story:
    """The four acts over one session of local mode."""

    def __init__(self, session: Session, upstreams: MockUpstreams, folder: Path, records: Records) -> None:
        self._session = session
        self._upstreams = upstreams
        self._folder = folder
        self._records = records
        self._urls = {sidecar.name: sidecar.base_url for sidecar in session.sidecars.values()}

    # --- act 1 ------------------------------------------------------------------------------------------------------

    async def healthy_candidate(self) -> None:
        """A candidate that does no harm climbs step by step and is promoted."""
        say("1. A new prompt, v2, for the chat service. It is as good as the old one.")
        text = await asyncio.to_thread(one_sync_call, self._urls["chat"])
        say(f"   The application's first call, with the synchronous client: {text[:40]!r}...")
        crowd = Crowd(self._urls["chat"])
        weights: list[int] = []
        async with crowd.calling(CHAT_PER_SECOND) as tally:
            await self._watch_split(weights, lambda status: status.phase is Phase.PROMOTED, seconds=60)
        await crowd.close()
        self._show("CanarySplit")
        say(f"   weights seen: {weights}; {_calls(tally)}; versions: {dict(sorted(tally.versions.items()))}")
        expect(weights[:4] == [5, 25, 50, 100], f"the weights went {weights}, not 5, 25, 50, 100")
        expect(sum(tally.errors.values()) == 0, f"calls failed in a healthy rollout: {dict(tally.errors)}")
        expect(tally.versions["v2"] > 0 and tally.versions["v1"] > 0, "both versions should have answered")

    # --- act 2 ------------------------------------------------------------------------------------------------------

    async def failing_candidate(self) -> None:
        """A candidate that fails a third of its calls is taken back within seconds."""
        say("2. Now v3 comes, on another model. A third of its calls will fail.")
        self._mock("openai").faults.add(model="gpt-4.1-nano", error="server_error", percent=33)
        self._edit(
            "split.yaml",
            "stable: {version: v1, instructions: Be helpful., overrides: {temperature: 0.7}}",
            "stable: {version: v2, instructions: Be helpful and brief., overrides: {temperature: 0.6}}",
        )
        self._edit(
            "split.yaml",
            "candidate: {version: v2, instructions: Be helpful and brief., overrides: {temperature: 0.6}}",
            "candidate: {version: v3, model: gpt-4.1-nano, instructions: Be helpful and brief.}",
        )
        self._edit("split.yaml", "{weight: 5, bakeSeconds: 2, minRequests: 15}", "{weight: 20, bakeSeconds: 600}")
        crowd = Crowd(self._urls["chat"])
        started: list[float] = []
        async with crowd.calling(CHAT_PER_SECOND) as tally:
            await self._until(lambda: self._split().phase is Phase.PROGRESSING, 10, "v3 never got users")
            started.append(time.monotonic())
            await self._until(lambda: self._split().phase is Phase.ROLLED_BACK, 30, "v3 was not taken back")
            seconds = time.monotonic() - started[0]
        await crowd.close()
        status = self._split()
        after = await self._versions_after(crowd_users=60)
        self._mock("openai").faults.clear()
        self._show("CanarySplit")
        say(f"   back at {status.weight} percent {seconds:.1f} s after it began; {_calls(tally)}")
        say(f"   why: {status.reason}")
        say(f"   60 users afterwards: {after}")
        expect(status.weight == 0, f"the weight is {status.weight}, not 0")
        expect(set(after) == {"v2"}, f"after the rollback calls got {after}")

    async def _versions_after(self, crowd_users: int) -> dict[str, int]:
        """Return the versions that users get once every sidecar runs the policy of after the rollback."""
        await self._until(self._all_synced, 10, "the sidecars did not take up the rollback")
        crowd = Crowd(self._urls["chat"], users=crowd_users)
        await asyncio.gather(*(crowd.call() for _ in range(crowd_users)))
        await crowd.close()
        return dict(crowd.tally.versions)

    # --- act 3 ------------------------------------------------------------------------------------------------------

    async def greedy_neighbour(self) -> None:
        """A service over its share waits or is refused, while the other one is untouched."""
        say("3. Search and tools share an account of 120 requests per minute, half each. Tools floods it.")
        search, tools = Crowd(self._urls["search"]), Crowd(self._urls["tools"])
        async with tools.calling(20.0) as greedy, search.calling(0.9) as modest:
            await self._until(lambda: greedy.errors["429"] >= 5 and modest.calls >= 8, 40, "tools was never held back")
        await search.close()
        await tools.close()
        self._show("QuotaAllocation")
        served = sum(1 for entry in self._mock("shared").ledger if entry.status == 200)
        times = sorted(greedy.retry_after)
        say(f"   tools: {_calls(greedy)}, {greedy.waited} waited, Retry-After {times[0]:g} to {times[-1]:g} s")
        say(f"   search: {_calls(modest)}, {modest.waited} waited; the account served {served} of its 120")
        expect(not modest.errors and not modest.waited, f"search was touched: {_calls(modest)}, {modest.waited} waited")
        expect(served <= 120, f"the account served {served} calls within a minute, above its limit of 120")
        expect(min(times) >= 1, "a Retry-After must be at least a second")

    # --- act 4 ------------------------------------------------------------------------------------------------------

    async def failing_upstream(self) -> None:
        """A failing upstream opens its breaker, the fallback answers, and the breaker closes again."""
        say("4. The main account fails altogether. The route has a fallback.")
        crowd = Crowd(self._urls["chat"])
        async with crowd.calling(40.0) as tally:
            self._mock("openai").faults.add(error="server_error", percent=100)
            await self._until(lambda: self._breaker_states() != set(), 15, "the breaker did not open")
            opened = sorted(self._breaker_states())
            reached = len(self._mock("openai").ledger)
            await self._until(lambda: tally.fallbacks >= 40, 15, "the fallback did not answer")
            spared = tally.fallbacks - (len(self._mock("openai").ledger) - reached)
            self._mock("openai").faults.clear()
            say(f"   breaker {', '.join(opened)}; {tally.fallbacks} calls answered by the fallback")
            await self._until(lambda: self._breaker_states() == set(), 25, "the breaker did not close")
            before = tally.fallbacks
            await self._until(lambda: tally.answers - before >= 40, 15, "the main account was not used again")
        await crowd.close()
        say(f"   closed again; {_calls(tally)}, {tally.fallbacks} of them by the fallback")
        expect(spared > 0, "an open breaker should spare the failing account")
        expect(tally.answers > tally.fallbacks, "the main account should answer again")
        expect(sum(tally.errors.values()) == 0, f"clients saw errors: {dict(tally.errors)}")

    # --- what the acts share ----------------------------------------------------------------------------------------

    def summary(self) -> str:
        """Return the last line: every call that a client made has its decision record, and what they say."""
        return f"{self._records.total} calls settled, each with one decision record"

    async def _watch_split(self, weights: list[int], done: Callable[[CanarySplitStatus], bool], seconds: float) -> None:
        def look() -> bool:
            status = self._split()
            if status.weight and (not weights or weights[-1] != status.weight):
                weights.append(status.weight)
            return done(status)

        await self._until(look, seconds, "the candidate was not promoted")

    async def _until(self, condition: Callable[[], bool], seconds: float, failure: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                self._show("CanarySplit")
                raise NotObservedError(f"{failure} within {seconds:g} s")
            await asyncio.sleep(LOOK_SECONDS)

    def _split(self) -> CanarySplitStatus:
        split = self._session.store.of_kind("CanarySplit")[0]
        if not isinstance(split, CanarySplit):
            raise TypeError("the demo has one split")
        return split.status

    def _all_synced(self) -> bool:
        running, _, wanted = self._split().synced_pods.partition("/")
        return bool(wanted) and running == wanted

    def _breaker_states(self) -> set[str]:
        breakers = self._session.plane.leader.fleet.breakers(time.monotonic())
        return {f"{each.upstream} {each.state}" for _, each in breakers}

    def _mock(self, name: str):  # type: ignore[no-untyped-def]  # the mock's own type
        return self._upstreams.mocks[f"default/{name}"]

    def _edit(self, file: str, before: str, after: str) -> None:
        path = self._folder / file
        text = path.read_text()
        if before not in text:
            raise NotObservedError(f"{file} does not hold {before!r}")
        path.write_text(text.replace(before, after))

    def _show(self, kind: str) -> None:
        """Print the table of `kubectl get`."""
        documents = [document(each) for each in self._session.store.of_kind(kind)]
        header, rows = kind_table(BY_NAME[kind], documents, datetime.now(UTC))
        lines = render(header, rows).splitlines()
        say(f"   $ kubectl get {BY_NAME[kind].plural}", *(f"   {line}" for line in lines))


def say(*lines: str) -> None:
    """Print lines at once, so that a pipe shows the story as it happens."""
    print(*lines, sep="\n", flush=True)


def expect(held: bool, failure: str) -> None:
    """Raise if something that the story promises was not so."""
    if not held:
        raise NotObservedError(failure)


def _calls(tally: Tally) -> str:
    errors = ", ".join(f"{count} x {name}" for name, count in sorted(tally.errors.items()))
    return f"{tally.answers} answers" + (f", {errors}" if errors else ", no errors")
