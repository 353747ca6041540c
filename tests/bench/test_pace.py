"""Five real sidecars under more demand than the account allows: the account's own limiter is the judge.

How much of the limit is used shows only over whole minutes: `python -m bench.pace` measures that.
"""

from __future__ import annotations

import pytest
from bench.pace import Trouble, judge, run

LIMIT = 90


@pytest.mark.parametrize("by_tokens", [False, True], ids=["requests", "tokens"])
async def test_the_upstream_never_throttles(by_tokens: bool) -> None:
    """Offered more in ten seconds than a minute allows, with the busiest sidecar killed half way and replaced."""
    found = await run(10.0, LIMIT, by_tokens=by_tokens, trouble=Trouble.KILL, offered_per_minute=LIMIT * 8)

    assert found.throttled == 0
    assert LIMIT // 2 < found.most_in_a_minute <= LIMIT
    assert found.refused > 0


def test_the_judge_counts_over_sliding_minutes() -> None:
    """The fullest minute counts, wherever it begins, and every 429 of the upstream."""
    starts = [float(at) for at in (*range(0, 60, 2), *range(70, 130))]
    found = judge(starts, 1, 60, 200, 5)

    assert (found.most_in_a_minute, found.best_minute_percent, found.last_minute_percent) == (60, 100.0, 100.0)
    assert found.throttled_percent == round(100 / 91, 3)
    gap = judge([*(float(at) for at in range(60)), 120.0], 0, 60, 61, 0)
    assert gap.mean_minute_percent == round(100 * (sum(range(60)) + 1) / 61 / 60, 1)
