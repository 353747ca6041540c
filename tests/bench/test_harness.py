"""The benchmark's harness: what it measures answers rightly. How fast it is, no test asserts."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import lifecycle, streams, wrk
from bench.client import connect, post
from bench.fleet import compiled_fleet, resources
from bench.page import BARS, bars
from bench.paths import Reloads, status, wait_until
from bench.policy import compiled, refuse_errors
from bench.results import Results
from bench.targets import BARE, GOVERNED, PASSTHROUGH, Cores, Target, all_targets, upstream
from bench.upstream import OK

ANYWHERE = Cores(None, None)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[int, list[Target]]]:
    with (
        upstream(ANYWHERE, events=20, gap_seconds=0.001) as port,
        all_targets(port, ANYWHERE, [PASSTHROUGH, BARE, GOVERNED]) as targets,
    ):
        yield port, targets


async def _call(target: Target, body: bytes) -> tuple[int, bytes]:
    connection = await connect(target.port)
    try:
        return await connection.call(post(body)), connection.body
    finally:
        connection.close()


@pytest.mark.parametrize("size", [1_000, 100_000, 3_000_000])
async def test_every_target_passes_the_same_bytes(running: tuple[int, list[Target]], size: int) -> None:
    """The upstream's answer reaches the load generator byte for byte, whatever is between."""
    expected = OK.partition(b"\r\n\r\n")[2]

    for target in running[1]:
        assert await _call(target, wrk.chat_body(size)) == (200, expected), target.name


async def test_streams_arrive_whole(running: tuple[int, list[Target]]) -> None:
    """Streams beside a large call fail nowhere, and hold the upstream's bytes and no others."""
    for target in running[1]:
        load = streams.Load(target.port, streams=3, every_seconds=0.01, events=20, large_bytes=1_000_000)
        figures = await asyncio.to_thread(streams.run, load, ANYWHERE)
        assert (figures.failed, figures.intact) == (0, 3), target.name


@pytest.mark.parametrize(("model", "statuses"), [("mostly-1", {200}), ("fail-1", {200}), ("tight", {200, 429})])
async def test_the_paths_that_are_measured_are_those(
    running: tuple[int, list[Target]], model: str, statuses: set[int]
) -> None:
    """A failing upstream is answered by the fallback; a spent limit is answered by 429."""
    governed = running[1][-1]
    answers = [(await _call(governed, wrk.chat_body(1_000, model)))[0] for _ in range(20)]

    assert set(answers) == statuses


async def test_a_policy_that_is_replaced_under_load_loses_no_call(running: tuple[int, list[Target]]) -> None:
    """The sidecar runs the last policy at the end, and every call until then was answered."""
    port, targets = running
    governed = targets[-1]
    assert governed.mount is not None
    with Reloads(governed.mount, port) as reloads:
        while reloads.count < 2:
            assert (await _call(governed, wrk.chat_body(1_000)))[0] == 200

    await asyncio.to_thread(wait_until, lambda: status(governed)["revision"] == reloads.revision, "not in force")


async def test_a_soak_leaves_nothing_in_flight(running: tuple[int, list[Target]]) -> None:
    """Mixed traffic, with clients that go away, gets the answers that it should and holds nothing afterwards."""
    found = await lifecycle.soak(running[1][-1], minutes=0.02, workers=4)

    assert found.calls > 0
    assert (found.unexpected, found.in_flight_after) == (0, 0)


def test_every_policy_is_on() -> None:
    """The governed policy has what the benchmark claims that it has, and the compiler has no fault to find."""
    policy = compiled("governed", "http://127.0.0.1:1")
    quota = next(each for each in policy.quotas if each.key == "bench/main")
    rules = [rule for route in policy.routes for rule in route.rules]

    assert quota.budget is not None
    assert quota.allocations[0].per_user is not None
    assert any(rule.split is not None and rule.split.weight == 50 for rule in rules)
    assert any(rule.fallbacks for rule in rules)


def test_the_fleet_of_the_benchmark_is_sound() -> None:
    """A thousand resources in two hundred namespaces, none of which the compiler objects to."""
    everything = resources()
    result = compiled_fleet(everything)

    refuse_errors(result)
    assert len(everything) >= 1000
    assert len(result.snapshots) == 201


def test_a_csv_has_medians_and_their_spread(tmp_path: Path) -> None:
    """Each metric is one line, with the median of its samples, the lowest, the highest and how many there were."""
    results = Results()
    for value in (3.0, 1.0, 2.0):
        results.add("Calls", "1 connection", "direct", "p50", "ms", value)
    results.write_csv(tmp_path / "figures.csv", {"cores": "2"})

    with (tmp_path / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["row"] == "cores"
    assert [rows[1][name] for name in ("median", "lowest", "highest", "runs")] == ["2", "1", "3", "3"]


def test_a_slope_is_that_of_the_line() -> None:
    """Memory that grows by one MiB a second has slope one, whatever it began with."""
    assert lifecycle.slope([(float(second), 50.0 + second) for second in range(10)]) == pytest.approx(1.0)
    assert lifecycle.slope([(0.0, 50.0)]) == 0.0


def test_a_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The tables made from a CSV are those of the run that wrote it, and so is the verdict on every bar."""
    results = Results()
    for bar in BARS:
        results.add(bar.section, bar.row, bar.target, bar.metric, bar.unit, bar.limit * 2)
    results.write_csv(tmp_path / "figures.csv", {"cores": "2"})

    read, machine = Results.read_csv(tmp_path / "figures.csv")
    assert (read.tables(), machine) == (results.tables(), {"cores": "2"})
    verdicts = [line.split("|")[-2].strip() for line in bars(read).splitlines()[2:]]
    assert verdicts == ["met" if bar.at_least else "missed" for bar in BARS]


def test_a_bar_without_a_figure_says_so() -> None:
    """What was not measured is neither met nor missed."""
    assert "not measured" in bars(Results())
