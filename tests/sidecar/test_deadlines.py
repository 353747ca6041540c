"""Deadlines of many calls under one timer."""

from __future__ import annotations

import asyncio

import pytest

from sluice_sidecar.deadlines import Deadlines

pytestmark = pytest.mark.looptime


async def _sleep_until(deadlines: Deadlines, when: float, seconds: float) -> float:
    """Sleep under a deadline; return the time at which it was over, negative if the deadline came first."""
    loop = asyncio.get_running_loop()
    try:
        with deadlines.until(when):
            await asyncio.sleep(seconds)
    except TimeoutError:
        return -loop.time()
    return loop.time()


async def test_what_takes_too_long_is_timed_out_at_its_deadline() -> None:
    """At the deadline, not before and not at the next look."""
    assert await _sleep_until(Deadlines(), 5.0, 60.0) == -5.0


async def test_what_is_done_in_time_is_left_alone() -> None:
    """A deadline that is over says nothing to what its task does afterwards."""
    deadlines = Deadlines()

    assert await _sleep_until(deadlines, 5.0, 1.0) == 1.0
    await asyncio.sleep(10.0)


async def test_each_has_its_own() -> None:
    """However they come, one after the other or the earliest last, each ends at its own time."""
    deadlines = Deadlines()
    ends = [30.0, 7.0, 7.0, 1.0, 20.0]

    found = await asyncio.gather(*(_sleep_until(deadlines, end, 15.0) for end in ends))

    assert found == [15.0, -7.0, -7.0, -1.0, 15.0]


async def test_a_deadline_that_has_passed_cancels_at_once() -> None:
    """What has no time left does not begin to wait."""
    await asyncio.sleep(3.0)

    assert await _sleep_until(Deadlines(), 2.0, 60.0) == -3.0


async def test_a_cancellation_from_outside_stays_one() -> None:
    """Whoever cancels a task, even in the moment of its deadline, is not told that it timed out."""
    deadlines = Deadlines()
    task = asyncio.create_task(_sleep_until(deadlines, 5.0, 60.0))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    both = asyncio.create_task(_sleep_until(deadlines, 5.0, 60.0))
    asyncio.get_running_loop().call_at(5.0, both.cancel)
    with pytest.raises(asyncio.CancelledError):
        await both


async def test_other_errors_pass() -> None:
    """An error inside is that error, whether or not there is time left."""
    with pytest.raises(KeyError), Deadlines().until(5.0):
        raise KeyError
