"""The line's benchmark judges what was measured. How waits hold over whole minutes, `python -m bench.line` shows."""

from __future__ import annotations

from bench.line import run


async def test_a_flood_of_batch_calls_is_served_beside_realtime_calls() -> None:
    """Two real sidecars over some seconds: the realtime calls all go, at once, and the flood gets its part."""
    alone, flooded = await run(6.0, 600)

    assert alone.calls == flooded.calls > 20
    assert (alone.refused, flooded.refused) == (0, 0)
    assert alone.batch == 0 < flooded.batch
    assert flooded.p50_seconds < 1.0, "behind the flood it would be tens of seconds"
    assert alone.throttled == flooded.throttled == 0
