"""Identical calls at the same time: the API is asked once, and nobody pays for another's failure or impatience."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from sluice_core.api.modelroute import Cache, OnClientDisconnect
from sluice_core.api.upstream import Retry

COLD: Any = {
    "model": "gpt-4.1-mini",
    "messages": [{"role": "user", "content": "planted prompt about the purple submarine"}],
    "temperature": 0,
}
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for applications."""
    with ThreadPoolExecutor(16) as threads:
        yield threads


class Gate:
    """Holds calls back at the API while it is closed."""

    def __init__(self) -> None:
        self._held: list[Future[None]] = []
        self._opened = False

    async def wait(self, _call: Any) -> None:
        """Let a call go on once the gate is open."""
        if not self._opened:
            self._held.append(Future())
            await asyncio.shield(asyncio.wrap_future(self._held[-1]))

    def let(self) -> None:
        """Let those through that have come so far."""
        held, self._held = self._held, []
        for each in held:
            each.set_result(None)

    def open(self) -> None:
        """Let all calls through."""
        self._opened = True
        self.let()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Hold every call back at the API until the test opens the gate."""
    made = Gate()
    monkeypatch.setattr("sluice_cli.mock.app._wait", made.wait)
    yield made
    made.open()


class Application:
    """One application: it asks, and reads the answer or goes away."""

    def __init__(self, port: int, **headers: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = {"Content-Type": "application/json", **headers}

    def ask(self, **fields: Any) -> Application:
        """Send the request."""
        self._connection.request("POST", "/v1/chat/completions", json.dumps({**COLD, **fields}), self._headers)
        return self

    def answer(self) -> Answer:
        """Read the whole answer."""
        answer = self._connection.getresponse()
        body = answer.read()
        self._connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body

    def begin(self) -> http.client.HTTPResponse:
        """Read the head of the answer."""
        return self._connection.getresponse()

    def leave(self) -> None:
        """Close the connection."""
        self._connection.close()


def started(start: Any, policies: Any, mock: Any, cache: Cache | None = None, **fields: Any) -> Any:
    """Start a sidecar whose one rule keeps nothing, but joins calls."""
    rule = policies.rule(cache=cache or Cache(ttl_seconds=0), **fields)
    return start(policies.snapshot(policies.upstream(mock.base_url, retry=Retry(attempts=1)), rules=(rule,)))


def first_and_others(
    sidecar: Any, mock: Any, pool: ThreadPoolExecutor, others: int, **fields: Any
) -> tuple[Application, list[Future[Answer]]]:
    """Send one call, and once it has reached the API, identical ones; return when all are under way."""
    first = Application(sidecar.port).ask(**fields)
    sidecar.wait_until(lambda: len(mock.ledger) == 1)
    waiting = [pool.submit(lambda: Application(sidecar.port).ask(**fields).answer()) for _ in range(others)]
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == others + 1)
    return first, waiting


@pytest.mark.parametrize("stream", [False, True])
def test_identical_calls_cost_one(
    start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor, gate: Gate, stream: bool
) -> None:
    """All get the same bytes, and each has a record of its own; tokens and dollars are those of one."""
    sidecar = started(start, policies, mock)
    first, waiting = first_and_others(sidecar, mock, pool, 9, stream=stream)
    gate.open()
    _, headers, body = first.answer()
    answers = [each.result() for each in waiting]
    assert headers["x-sluice-cache"] == "miss"
    assert {each[1]["x-sluice-cache"] for each in answers} == {"coalesced"}
    assert {each[2] for each in answers} == {body}
    assert body.endswith(b"data: [DONE]\n\n") is stream
    assert len(mock.ledger) == 1
    records = [sidecar.record(each[1]["x-sluice-call-id"]) for each in answers]
    assert {(each["cache"], each["outcome"], each["costUSDMicros"]) for each in records} == {
        ("Coalesced", "Success", 0)
    }
    assert sidecar.metric("sluice_cache_calls_total", result="coalesced") == 9
    assert sidecar.status()["cache"]["answers"] == 0
    assert Application(sidecar.port).ask(stream=stream).answer()[1]["x-sluice-cache"] == "miss"


def test_different_calls_wait_for_nobody(start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor) -> None:
    """Neither do identical ones whose rule does not want it, nor those that ask for a fresh answer."""
    sidecar = started(start, policies, mock)
    mock.faults.add(stall_seconds=20, count=1)
    first, _ = first_and_others(sidecar, mock, pool, 0)
    assert Application(sidecar.port).ask(seed=1).answer()[0] == 200
    assert Application(sidecar.port, **{"Cache-Control": "no-cache"}).ask().answer()[0] == 200
    first.leave()
    apart = started(start, policies, mock, Cache(coalesce=False))
    mock.reset()
    mock.faults.add(stall_seconds=20, count=1)
    first, _ = first_and_others(apart, mock, pool, 0)
    assert Application(apart.port).ask().answer()[0] == 200
    first.leave()


FAILURES: dict[str, Any] = {"an error": {"error": "server_error"}, "a lost connection": {"reset": True}}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_failure_of_the_first_is_its_own(
    start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor, gate: Gate, failure: str
) -> None:
    """The others go on by themselves, all at once, and one of them is the new first for those that come."""
    sidecar = started(start, policies, mock)
    mock.faults.add(count=1, **FAILURES[failure])
    first, waiting = first_and_others(sidecar, mock, pool, 5)
    gate.let()
    assert first.answer()[0] >= 500
    sidecar.wait_until(lambda: mock.ledger.in_flight == 5)
    late = pool.submit(lambda: Application(sidecar.port).ask().answer())
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == 6)
    gate.open()
    assert [each.result()[1]["x-sluice-cache"] for each in waiting] == ["miss"] * 5
    assert late.result()[1]["x-sluice-cache"] == "coalesced"
    assert len(mock.ledger) == 6


def test_an_answer_that_is_not_whole_is_not_shared(
    start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor, gate: Gate
) -> None:
    """Of a stream that breaks off, the others see nothing."""
    sidecar = started(start, policies, mock)
    mock.faults.add(cut_at_event=5, count=1)
    first, waiting = first_and_others(sidecar, mock, pool, 2, stream=True)
    gate.open()
    assert b"stream_interrupted" in first.answer()[2]
    assert all(each.result()[2].endswith(b"data: [DONE]\n\n") for each in waiting)


@pytest.mark.parametrize("moment", ["before its answer", "in the middle of its stream"])
def test_the_first_may_leave(
    start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor, gate: Gate, moment: str
) -> None:
    """Its call goes on for those who wait: the API is asked once, and they get the whole answer."""
    sidecar = started(start, policies, mock)
    streams = moment.startswith("in")
    if streams:
        mock.faults.add(gap_seconds=0.1, events=10)
    first, waiting = first_and_others(sidecar, mock, pool, 3, stream=streams)
    if streams:
        gate.open()
        assert first.begin().readline().startswith(b"data:")
    first.leave()
    assert sidecar.status()["inFlight"] == 4, "it has seen that by now, and goes on"
    gate.open()
    answers = [each.result() for each in waiting]
    assert [(each[0], each[1]["x-sluice-cache"]) for each in answers] == [(200, "coalesced")] * 3
    assert len({each[2] for each in answers}) == 1
    assert len(mock.ledger) == 1
    assert mock.ledger.last.outcome == "completed"


def test_a_call_that_nobody_waits_for_any_more_is_ended(
    start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor, gate: Gate
) -> None:
    """The first leaves, then the last of the others: the upstream call ends, and nothing is left behind."""
    sidecar = started(start, policies, mock)
    first, _ = first_and_others(sidecar, mock, pool, 0)
    second = Application(sidecar.port).ask()
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == 2)
    first.leave()
    second.leave()
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == 0)
    sidecar.wait_until(lambda: mock.ledger.last.outcome == "client_closed")
    assert len(mock.ledger) == 1
    assert sidecar.status()["cache"]["underWay"] == 0
    gate.open()
    assert Application(sidecar.port).ask().answer()[0] == 200


def test_one_that_waits_may_leave(start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor, gate: Gate) -> None:
    """Neither the first nor the others notice."""
    sidecar = started(start, policies, mock)
    first, waiting = first_and_others(sidecar, mock, pool, 2)
    leaver = Application(sidecar.port).ask()
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == 4)
    leaver.leave()
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == 3)
    gate.open()
    assert [first.answer()[0], *(each.result()[0] for each in waiting)] == [200] * 3
    assert len(mock.ledger) == 1


def test_nobody_waits_for_longer_than_half_of_its_time(
    start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor
) -> None:
    """A first one that hangs does not take the others with it."""
    sidecar = started(start, policies, mock)
    mock.faults.add(stall_seconds=30, count=1)
    first, _ = first_and_others(sidecar, mock, pool, 0)
    begun = time.monotonic()
    status, headers, _ = Application(sidecar.port, **{"x-stainless-read-timeout": "3"}).ask().answer()
    assert (status, headers["x-sluice-cache"]) == (200, "miss")
    assert 1.4 < time.monotonic() - begun < 3
    assert len(mock.ledger) == 2
    record = sidecar.record(headers["x-sluice-call-id"])
    assert record["upstreamMs"] > 1400, "the wait was not the sidecar's own time"
    first.leave()


def test_a_rule_that_drains_keeps_its_word(start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor) -> None:
    """With nobody waiting, a call whose application has gone is read to its end where the rule says so."""
    sidecar = started(start, policies, mock, on_client_disconnect=OnClientDisconnect.DRAIN)
    mock.faults.add(gap_seconds=0.1, events=10)
    first, _ = first_and_others(sidecar, mock, pool, 0, stream=True)
    assert first.begin().readline().startswith(b"data:")
    first.leave()
    sidecar.wait_until(lambda: mock.ledger.last.outcome == "completed")
    assert sidecar.records(1)[0]["outcome"] == "Success"


def test_a_large_stream_is_shown_but_not_recorded(
    start: Any, mock: Any, policies: Any, pool: ThreadPoolExecutor, gate: Gate
) -> None:
    """Beyond the room for one answer, those who wait go on by themselves."""
    rule = policies.rule(cache=Cache(ttl_seconds=0))
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url), rules=(rule,)), SLUICE_CACHE_BYTES="20000")
    first, waiting = first_and_others(sidecar, mock, pool, 1, stream=True)
    gate.open()
    assert first.answer()[2].endswith(b"data: [DONE]\n\n")
    assert waiting[0].result()[1]["x-sluice-cache"] == "miss"
    assert len(mock.ledger) == 2
    kept = sidecar.status()["cache"]
    assert (kept["answers"], kept["recordingBytes"], kept["underWay"]) == (0, 0, 0)
