"""`sluice dev` killed with SIGKILL in mid-rollout and begun again: the decisions are those that it had made."""

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
from pathlib import Path
from typing import Any

import pytest

POLICIES = """
apiVersion: sluice.dev/v1alpha1
kind: Upstream
metadata: {name: openai}
spec: {retry: {attempts: 1}}
---
apiVersion: sluice.dev/v1alpha1
kind: ModelRoute
metadata: {name: chat}
spec: {rules: [{name: default, targets: [{upstreamRef: {name: openai}, model: good}]}]}
---
apiVersion: sluice.dev/v1alpha1
kind: CanarySplit
metadata: {name: chat}
spec:
  routeRef: {name: chat}
  stable: {version: v1, model: good}
  candidate: {version: v2, model: new}
  assignment: {key: [{header: x-user-id}]}
  strategy:
    steps:
      - {weight: 30, bakeSeconds: 1, minRequests: 20}
      - {weight: 60, bakeSeconds: 600, minRequests: 20}
      - {weight: 100}
"""
USERS = [f"user-{number}" for number in range(60)]
REMEMBERED = ("revision", "salt", "attempt", "stepNumber", "startedAt", "stepStartedAt", "history", "stableArm")


class Plane:
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
        self.until(lambda: "control " in self.printed, "the address of the control plane")
        self.control = self._found(r"^control\s+(\S+)")
        self.base_url = self._found(r"OPENAI_BASE_URL=(\S+)")
        self.mock = self._found(r"^mock of\s+\S+\s+(\S+)")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line

    def _found(self, pattern: str) -> str:
        found = re.search(pattern, self.printed, re.MULTILINE)
        assert found, self.printed
        return found.group(1)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 25.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended: {self.printed}"
            assert time.monotonic() < end, f"{what} was not seen:\n{self.printed[-3000:]}"
            time.sleep(0.05)

    @property
    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.control}/dev/resources", timeout=10) as answer:
            items = json.load(answer)["items"]
        status: dict[str, Any] = next(each for each in items if each["kind"] == "CanarySplit")["status"]
        return status

    def fail(self, model: str) -> None:
        body = json.dumps([{"model": model, "error": "server_error"}]).encode()
        urllib.request.urlopen(urllib.request.Request(self.mock, body, method="PUT"), timeout=10).close()

    def versions(self) -> dict[str, str]:
        """Let every user call once; return what version each got."""
        return {user: self._call(user) for user in USERS}

    def _call(self, user: str) -> str:
        body = json.dumps({"model": "any", "messages": [{"role": "user", "content": "hello"}]}).encode()
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions", body, {"x-user-id": user, "Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(answer.headers["x-sluice-arm"])
        except urllib.error.HTTPError as error:
            with error:
                return str(error.headers["x-sluice-arm"])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        self._reader.join(timeout=10)  # its sidecars hold the pipe for as long as they live
        assert not self._reader.is_alive()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], Plane]]:
    (tmp_path / "policies.yaml").write_text(POLICIES)
    begun: list[Plane] = []

    def start() -> Plane:
        begun.append(Plane(tmp_path))
        return begun[-1]

    yield start
    for plane in begun:
        if plane.process.poll() is None:
            plane.kill()


def test_a_killed_control_plane_goes_on_where_it_was(begin: Callable[[], Plane]) -> None:
    """Killed on a step and again after harm: same step, same users, same figures; what failed stays out."""
    plane = begin()
    seen = plane.versions()
    while plane.status["weight"] < 60:
        seen |= plane.versions()
    plane.until(lambda: plane.status["appliedWeight"] == 60, "the second step in force")
    seen |= plane.versions()
    plane.until(lambda: plane.status["candidate"]["requests"] > 20, "figures of the candidate")
    before = plane.status
    plane.kill()

    plane = begin()
    after = plane.status
    assert [after.get(name) for name in REMEMBERED] == [before.get(name) for name in REMEMBERED]
    assert (after["phase"], after["weight"]) == ("Progressing", 60)
    plane.until(lambda: plane.status["syncedPods"] == "1/1", "the weight")
    again = plane.versions()
    assert [user for user in USERS if seen[user] == "v2" and again[user] == "v1"] == []
    plane.until(lambda: plane.status["candidate"]["requests"] > before["candidate"]["requests"], "new figures")

    plane.fail("new")
    plane.until(lambda: plane.versions() and plane.status["phase"] == "RolledBack", "the rollback")
    reason = plane.status["reason"]
    plane.kill()

    plane = begin()
    plane.until(lambda: plane.status["syncedPods"] == "1/1", "a sidecar under the policy")
    assert set(plane.versions().values()) == {"v1"}
    status = plane.status
    assert (status["phase"], status["weight"], status["reason"]) == ("RolledBack", 0, reason)
    assert [each["result"] for each in status["history"]] == ["RolledBack"]
