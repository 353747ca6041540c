"""How fast things happen on a cluster. Each story measures what it promises, and prints it (`pytest -s`)."""

from __future__ import annotations

import statistics
import time

import pytest

from .story import Json, Story, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
_NANO = {"model: gpt-4.1-mini": "model: gpt-4.1-nano"}


def _settled(story: Story, model: str, pods: int) -> list[Json]:
    """Return the diary once every pod's newest answer is of a model."""

    def calls() -> list[Json]:
        diary = story.diary()
        newest = {call["pod"]: call["model"] or "" for call in diary}
        return diary if len(newest) == pods and all(model in each for each in newest.values()) else []

    return eventually(calls, 150, f"all pods use {model}")


def _delays(diary: list[Json], edited_at: float, model: str) -> list[float]:
    """Return for each pod how long after the edit its first answer of the model was asked for."""
    first: dict[str, float] = {}
    for call in diary:
        if call["at"] >= edited_at and model in (call["model"] or ""):
            first.setdefault(call["pod"], call["at"] - edited_at)
    return sorted(first.values())


def _measure(story: Story, pods: int, edits: int) -> list[float]:
    delays: list[float] = []
    for number in range(edits):
        model, words = ("nano", _NANO) if number % 2 == 0 else ("mini", {})
        offset = story.clock_offset()
        story.apply("policy", **words)
        edited_at = time.time() + offset  # the route comes last, so the API server has it since a moment ago
        delays += _delays(_settled(story, model, pods), edited_at, model)
    assert len(delays) == pods * edits
    return sorted(delays)


def test_an_edit_is_in_force_everywhere_within_two_seconds(policed: Story) -> None:
    """Given ten pods with traffic, when a route is edited, then nineteen of twenty enforce it within two seconds."""
    policed.traffic(pods=10, calls_per_second=5)
    delays = _measure(policed, pods=10, edits=6)

    p95 = delays[int(0.95 * len(delays))]
    print(f"edit to enforced: p50 {delays[len(delays) // 2]:.2f} s, p95 {p95:.2f} s, worst {delays[-1]:.2f} s")
    assert p95 <= 2.0


def test_an_edit_arrives_by_the_mounted_policy_alone(policed: Story) -> None:
    """Given no sync channel, when a route is edited, then the kubelet brings it to every pod."""
    policed.cluster.install("sync.enabled=false")
    try:
        policed.traffic(pods=4, calls_per_second=5)
        delays = _measure(policed, pods=4, edits=1)
    finally:
        policed.cluster.install()

    print(f"edit to enforced, by the mount alone: fastest {delays[0]:.1f} s, worst {delays[-1]:.1f} s")
    assert delays[-1] <= 125


def test_a_failing_candidate_is_taken_back_within_ten_seconds(policed: Story) -> None:
    """Given a split at half under traffic, when the candidate fails 30 % of calls, then it is off in ten seconds."""
    policed.traffic(pods=2, calls_per_second=10).apply("split")
    eventually(lambda: policed.get("canarysplit", "chat").get("status", {}).get("appliedWeight") == 50, 60, "weight 50")
    quiet_from = policed.last_call_at()
    eventually(lambda: policed.last_call_at() > quiet_from + 15, 30, "a while without harm")
    policed.order_fault(model="gpt-4.1-nano*", error="server_error", percent=30)
    harmed_at = policed.last_call_at()

    def back() -> bool:
        return bool(policed.get("canarysplit", "chat")["status"]["phase"] == "RolledBack")

    eventually(back, 60, "it is rolled back")
    after = policed.last_call_at()
    eventually(lambda: policed.last_call_at() > after + 3, 30, "calls follow")
    last = max(call["at"] for call in policed.diary() if call["arm"] == "v2")

    print(f"harm to the last call of the candidate: {last - harmed_at:.1f} s")
    assert last - harmed_at <= 10


def test_a_sidecar_costs_a_pod_little_time_to_start(policed: Story) -> None:
    """Given a policy, when pods start with and without a sidecar, then readiness comes at most three seconds later."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(4):  # the first of a namespace waits for its policy to be written, and counts like the others
        for inject, times in took.items():
            times.append(policed.start_pod(f"starts-{number}-{inject}".lower(), inject))
    with_sidecar, without = statistics.mean(took[True]), statistics.mean(took[False])

    print(f"created to ready: {with_sidecar:.1f} s with, {without:.1f} s without")
    assert with_sidecar - without <= 3.0
