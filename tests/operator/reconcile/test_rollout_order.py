"""Decisions of rollouts: stored before they are published, confined to their own split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sluice_core.rollout.observation import Plan, Question, RolloutEvent
from sluice_operator.kinds import (
    CANARY_SPLITS,
    MODEL_ROUTES,
)


def route_spec(upstream: str = "openai", model: str = "gpt-4.1") -> dict[str, Any]:
    reference = {"name": upstream, "namespace": "platform"}
    return {"rules": [{"name": "default", "targets": [{"upstreamRef": reference, "model": model}]}]}


class Scripted:
    """Rollouts that move every split to a weight."""

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.asked: list[str] = []

    def plan(self, split, synced) -> Plan:
        if split.status.weight == self.weight:
            return Plan(status=split.status)
        status = msgspec.structs.replace(split.status, weight=self.weight, revision="5" * 12 + "-1", salt="s")
        event = RolloutEvent(reason="WeightChanged", message=f"to {self.weight} %")
        question = Question(name="quality", url="http://x", timeout_seconds=1, revision=status.revision, step=1)
        return Plan(status=status, events=(event,), questions=(question,), urgent=True)

    def stored(self, split, plan) -> None:
        self.asked += [split for _ in plan.questions]

    def keep(self, splits) -> None:
        pass


SPLIT = {
    "routeRef": {"name": "chat"},
    "stable": {"version": "v1", "model": "gpt-4.1"},
    "candidate": {"version": "v2", "model": "gpt-4.1-mini"},
}


@pytest.fixture
def put_split(api) -> Callable[[], Any]:
    return lambda: api.put(CANARY_SPLITS, "chat", "team", spec=SPLIT)


async def test_a_rollouts_decision_is_stored_before_it_is_published(operator, api, team, seen, put_split, operators):
    """The status patch of a step comes before the ConfigMap that carries it; its event comes after the patch."""
    put_split()
    rollouts = Scripted(25)
    await operators(rollouts=rollouts).round()
    paths = [path for _, path in api.writes]
    stored = next(i for i, path in enumerate(paths) if path.endswith("/canarysplits/chat/status"))
    published = next(i for i, path in enumerate(paths) if path.endswith("/configmaps/sluice-policy"))
    assert stored < published
    assert api.object(CANARY_SPLITS, "chat", "team")["status"]["weight"] == 25
    assert "WeightChanged" in seen.reasons()
    assert rollouts.asked == ["team/chat"]


async def test_a_decision_that_could_not_be_stored_reaches_no_pod(operator, api, team, seen, put_split, operators):
    """If the status loses a race, the policy keeps the old weight and no event is told."""
    put_split()
    await operator.round()
    before = seen.policy()
    api.fail(409, "Conflict", method="patch", path="/canarysplits/chat/status", times=2)
    rollouts = Scripted(25)
    await operators(rollouts=rollouts).round()
    assert seen.policy() == before
    assert "WeightChanged" not in seen.reasons()
    assert rollouts.asked == []


async def test_a_split_without_its_route_takes_no_steps(api, team, seen, put_split, operators):
    """A rollout whose rule does not exist is told of and does not move."""
    put_split()
    api.put(MODEL_ROUTES, "chat", "team", spec={"rules": [{**route_spec()["rules"][0], "name": "other"}]})
    await operators(rollouts=Scripted(25)).round()
    assert api.object(CANARY_SPLITS, "chat", "team")["status"].get("weight", 0) == 0
    assert seen.condition(CANARY_SPLITS, "chat", "team", "Ready")["reason"] == "RuleNotFound"


async def test_a_fault_over_one_rollout_does_not_hold_up_the_others(api, team, seen, operators):
    """The others take their step, and everything else of the round goes on."""

    class Stumbling(Scripted):
        def plan(self, split, synced) -> Plan:
            if split.metadata.name == "poison":
                raise ZeroDivisionError
            return super().plan(split, synced)

    api.put(CANARY_SPLITS, "poison", "team", spec=SPLIT)
    rules = [route_spec()["rules"][0], {**route_spec()["rules"][0], "name": "other"}]
    api.put(MODEL_ROUTES, "chat", "team", spec={"rules": rules})
    api.put(CANARY_SPLITS, "chat", "team", spec={**SPLIT, "routeRef": {"name": "chat", "rule": "other"}})
    stumbling = operators(rollouts=Stumbling(25))
    await stumbling.round()
    assert api.object(CANARY_SPLITS, "chat", "team")["status"]["weight"] == 25
    assert stumbling.reconciler.faults > 0
    assert seen.policy() is not None
