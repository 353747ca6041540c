"""Money in `sluice dev`: alerts come once each, and what was spent outlives a SIGKILL of all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dev_process import DevProcess, lives

POLICIES = """
apiVersion: sluice.dev/v1alpha1
kind: Upstream
metadata: {name: openai}
spec:
  prices: [{model: gpt-4.1, inputPerMillion: "0", outputPerMillion: "10000"}]
---
apiVersion: sluice.dev/v1alpha1
kind: QuotaAllocation
metadata: {name: openai}
spec:
  upstreamRef: {name: openai}
  allocations:
    - name: chat
      sharePercent: 100
      budget: {dailyUSD: "1", alertPercents: [10, 100], onExhausted: Reject}
"""


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], DevProcess]]:
    with lives(tmp_path, POLICIES) as begin:
        yield begin


def call(dev: DevProcess) -> int:
    return dev.call("gpt-4.1")[0]


def spent_usd(dev: DevProcess) -> float:
    return float(dev.status("QuotaAllocation")["allocations"][0].get("spentTodayUSD", "0"))


def told(dev: DevProcess, what: str) -> int:
    """Return how often an event was printed."""
    return dev.printed.count(f"default/openai/chat: {what}: ")


def kept(state: Path) -> bool:
    """Tell whether all that was told is noted in the state file: until then the next run tells it once more."""
    return not any(each.get("pending") for each in json.loads(state.read_text())["spending"].values())


def test_money_survives_a_kill_and_alerts_come_once(begin: Callable[[], DevProcess], tmp_path: Path) -> None:
    """No alert is told twice by two runs, none is missing, and a budget that is spent stays so until its day ends."""
    first = begin()
    assert [call(first) for _ in range(3)] == [200] * 3
    state = tmp_path / "state.json"
    first.until(lambda: told(first, "BudgetAlert") and kept(state), "the alert at 10 percent")
    spent = spent_usd(first)
    assert spent == 0.15
    first.kill()

    second = begin()
    second.until(lambda: spent_usd(second) >= spent, "what was spent before")
    second.until(lambda: call(second) == 429, "the end of the budget")
    second.until(lambda: told(second, "BudgetExhausted") and kept(state), "the alert at 100 percent")
    assert (told(second, "BudgetAlert"), told(second, "BudgetExhausted")) == (0, 1)
    spent = spent_usd(second)
    second.kill()

    third = begin()
    third.until(lambda: call(third) == 429, "a call is refused for the budget")
    assert spent_usd(third) == spent >= 1.0
    assert (told(third, "BudgetAlert"), told(third, "BudgetExhausted")) == (0, 0)
    third.kill()

    today = datetime.now(UTC).date()
    state.write_text(state.read_text().replace(today.isoformat(), (today - timedelta(days=1)).isoformat()))
    next_day = begin()
    next_day.until(lambda: call(next_day) == 200, "a call of the new day")
    assert [call(next_day) for _ in range(2)] == [200] * 2
    next_day.until(lambda: told(next_day, "BudgetAlert"), "an alert of the new day")
    assert spent_usd(next_day) < 1.0
