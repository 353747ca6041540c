"""Money in `sluice dev`: alerts come once each, and what was spent outlives a SIGKILL of all of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

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


class Dev:
    """A `sluice dev` process over the same folder and the same state file as the one before it."""

    def __init__(self, directory: Path) -> None:
        arguments = ["dev", "-f", "policies.yaml", "--state", "state.json", "--port", "0", "--control-port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sluice_cli.main", *arguments],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "SLUICE_DEV_URL"} | {"COLUMNS": "300"},
        )
        self.printed = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.until(lambda: "allocations, last minute" in self.printed, "the first table")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line

    def _address(self, pattern: str) -> str:
        found = re.search(pattern, self.printed, re.MULTILINE)
        assert found, self.printed
        return found.group(1)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended: {self.printed}"
            assert time.monotonic() < end, f"{what} was not seen:\n{self.printed[-3000:]}"
            time.sleep(0.05)

    def call(self) -> int:
        """Make a call and return its status."""
        url = self._address(r"OPENAI_BASE_URL=(\S+)") + "/chat/completions"
        messages = [{"role": "user", "content": "hello"}]
        body = json.dumps({"model": "gpt-4.1", "messages": messages, "max_tokens": 10}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    @property
    def spent_usd(self) -> float:
        control = self._address(r"^control +(\S+)")
        with urllib.request.urlopen(f"{control}/dev/resources", timeout=10) as answer:
            items: list[dict[str, Any]] = json.load(answer)["items"]
        (status,) = [each["status"] for each in items if each["kind"] == "QuotaAllocation"]
        return float(status["allocations"][0].get("spentTodayUSD", "0"))

    def told(self, what: str) -> int:
        """Return how often an event was printed."""
        return self.printed.count(f"default/openai/chat: {what}: ")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        self._reader.join(timeout=10)  # its sidecars hold the pipe for as long as they live
        assert not self._reader.is_alive()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], Dev]]:
    (tmp_path / "policies.yaml").write_text(POLICIES)
    begun: list[Dev] = []

    def start() -> Dev:
        begun.append(Dev(tmp_path))
        return begun[-1]

    yield start
    for each in begun:
        if each.process.returncode is None:
            each.kill()


def test_money_survives_a_kill_and_alerts_come_once(begin: Callable[[], Dev], tmp_path: Path) -> None:
    """No alert is told twice by two runs, none is missing, and a budget that is spent stays so until its day ends."""
    first = begin()
    assert [first.call() for _ in range(3)] == [200] * 3
    first.until(lambda: first.told("BudgetAlert"), "the alert at 10 percent")
    spent = first.spent_usd
    assert spent == 0.15
    first.kill()

    second = begin()
    second.until(lambda: second.spent_usd >= spent, "what was spent before")
    second.until(lambda: second.call() == 429, "the end of the budget")
    second.until(lambda: second.told("BudgetExhausted"), "the alert at 100 percent")
    assert (second.told("BudgetAlert"), second.told("BudgetExhausted")) == (0, 1)
    spent = second.spent_usd
    second.kill()

    third = begin()
    third.until(lambda: third.call() == 429, "a call is refused for the budget")
    assert third.spent_usd == spent >= 1.0
    assert (third.told("BudgetAlert"), third.told("BudgetExhausted")) == (0, 0)
    third.kill()

    state = tmp_path / "state.json"
    today = datetime.now(UTC).date()
    state.write_text(state.read_text().replace(today.isoformat(), (today - timedelta(days=1)).isoformat()))
    next_day = begin()
    next_day.until(lambda: next_day.call() == 200, "a call of the new day")
    assert [next_day.call() for _ in range(2)] == [200] * 2
    next_day.until(lambda: next_day.told("BudgetAlert"), "an alert of the new day")
    assert next_day.spent_usd < 1.0
