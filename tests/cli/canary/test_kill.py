"""`sluice dev` killed with SIGKILL in mid-rollout and begun again: the decisions are those that it had made."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dev_process import DevProcess, lives

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


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[], DevProcess]]:
    with lives(tmp_path, POLICIES) as begin:
        yield begin


def status_of(plane: DevProcess) -> dict[str, Any]:
    return plane.status("CanarySplit")


def fail(plane: DevProcess, model: str) -> None:
    body = json.dumps([{"model": model, "error": "server_error"}]).encode()
    urllib.request.urlopen(urllib.request.Request(plane.mock, body, method="PUT"), timeout=10).close()


def versions(plane: DevProcess) -> dict[str, str]:
    """Let every user call once; return what version each got."""
    return {user: str(plane.call("any", **{"x-user-id": user})[1]["x-sluice-arm"]) for user in USERS}


def test_a_killed_control_plane_goes_on_where_it_was(begin: Callable[[], DevProcess]) -> None:
    """Killed on a step and again after harm: same step, same users, same figures; what failed stays out."""
    plane = begin()
    seen = versions(plane)
    while status_of(plane)["weight"] < 60:
        seen |= versions(plane)
    plane.until(lambda: status_of(plane)["appliedWeight"] == 60, "the second step in force")
    seen |= versions(plane)
    plane.until(lambda: status_of(plane)["candidate"]["requests"] > 20, "figures of the candidate")
    before = status_of(plane)
    plane.kill()

    plane = begin()
    after = status_of(plane)
    assert [after.get(name) for name in REMEMBERED] == [before.get(name) for name in REMEMBERED]
    assert (after["phase"], after["weight"]) == ("Progressing", 60)
    plane.until(lambda: status_of(plane)["syncedPods"] == "1/1", "the weight")
    again = versions(plane)
    assert [user for user in USERS if seen[user] == "v2" and again[user] == "v1"] == []
    plane.until(lambda: status_of(plane)["candidate"]["requests"] > before["candidate"]["requests"], "new figures")

    fail(plane, "new")
    plane.until(lambda: versions(plane) and status_of(plane)["phase"] == "RolledBack", "the rollback")
    reason = status_of(plane)["reason"]
    plane.kill()

    plane = begin()
    plane.until(lambda: status_of(plane)["syncedPods"] == "1/1", "a sidecar under the policy")
    assert set(versions(plane).values()) == {"v1"}
    status = status_of(plane)
    assert (status["phase"], status["weight"], status["reason"]) == ("RolledBack", 0, reason)
    assert [each["result"] for each in status["history"]] == ["RolledBack"]
