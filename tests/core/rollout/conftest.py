"""A rollout on a bench: a split, its traffic and a clock, driven tick by tick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sluice_core.api.base import ConditionStatus
from sluice_core.api.canarysplit_status import CanarySplit, CanarySplitStatus, Phase
from sluice_core.records import Outcome
from sluice_core.rollout.counts import CANDIDATE, STABLE, ArmCounter
from sluice_core.rollout.observation import Answer, Observation, Plan, WebhookAnswer
from sluice_core.rollout.plan import plan
from sluice_core.rollout.traffic import traffic
from sluice_core.snapshot import SplitPolicy
from sluice_core.split import bucket_of
from sluice_core.usage import Usage

START = 1_790_000_000.0

SPEC: dict[str, Any] = {
    "routeRef": {"name": "chat"},
    "stable": {"version": "v1", "model": "gpt-4.1-mini", "instructions": "Be brief."},
    "candidate": {"version": "v2", "model": "gpt-4.1-mini", "instructions": "Be kind."},
    "strategy": {
        "steps": [
            {"weight": 10, "bakeSeconds": 60, "minRequests": 50},
            {"weight": 50, "bakeSeconds": 60, "minRequests": 50},
            {"weight": 100, "bakeSeconds": 60, "minRequests": 50},
        ]
    },
}


class World:
    """One split, 200 users, pods that follow at once unless `stuck`."""

    def __init__(self, spec: dict[str, Any], annotations: dict[str, str] | None = None) -> None:
        self.now = START
        self.stuck = False
        self.events: list[str] = []
        self.messages: list[str] = []
        self.weights: list[int] = []
        self.answers: dict[str, Answer] = {}
        self.last = Plan(status=CanarySplitStatus())
        self.spec = spec
        self.annotations = dict(annotations or {})
        self.status = CanarySplitStatus()
        self.generation = 1
        self._counters: dict[str, dict[str, ArmCounter]] = {}
        self._calls = 0
        self.tick()

    @property
    def split(self) -> CanarySplit:
        """The resource as the API server would return it: status has been through JSON."""
        return msgspec.convert(
            {
                "metadata": {
                    "name": "chat",
                    "namespace": "team",
                    "uid": "u-1",
                    "generation": self.generation,
                    "annotations": self.annotations,
                },
                "spec": self.spec,
                "status": msgspec.json.decode(msgspec.json.encode(self.status)),
            },
            CanarySplit,
        )

    @property
    def phase(self) -> Phase | None:
        return self.status.phase

    @property
    def policy(self) -> SplitPolicy:
        """What the compiler would put into force."""
        return traffic(self.split)

    def change(self, **spec: Any) -> World:
        """Apply a changed spec."""
        self.spec = self.spec | spec
        self.generation += 1
        return self.tick()

    def ask(self, verb: str, token: str) -> World:
        """Annotate the resource, then tick."""
        self.annotations[f"sluice.dev/{verb}"] = token
        return self.tick()

    def observe(self) -> Observation:
        """What the operator would see now."""
        arms = self._arms()
        policy = self.policy
        return Observation(
            stable=arms[STABLE].export(),
            candidate=arms[CANDIDATE].export(),
            synced_pods=2 if self.stuck else 3,
            total_pods=3,
            applied_revision=policy.revision,
            applied_weight=policy.weight,
            answers=tuple(
                WebhookAnswer(
                    name=name, revision=self.status.revision, step=self.status.step_number, answer=answer, message="why"
                )
                for name, answer in self.answers.items()
            ),
        )

    def _arms(self) -> dict[str, ArmCounter]:
        revision = self.status.revision
        if revision not in self._counters:
            self._counters[revision] = {arm: ArmCounter("team/chat", revision, arm) for arm in (STABLE, CANDIDATE)}
        return self._counters[revision]

    def tick(self, seconds: float = 5.0) -> World:
        """Let time pass and run one tick."""
        self.now += seconds
        self.last = plan(self.split, self.observe(), self.now)
        self.status = self.last.status
        self.events += [event.reason for event in self.last.events]
        self.messages += [event.message for event in self.last.events]
        self.weights.append(self.status.weight)
        return self

    def serve(
        self,
        requests: int = 100,
        *,
        candidate_errors: float = 0.0,
        stable_errors: float = 0.0,
        slower: float = 1.0,
        dearer: float = 1.0,
    ) -> World:
        """Serve requests at the weight in force; the error shares are met as evenly as whole numbers allow."""
        weight, arms = self.policy.weight, self._arms()
        candidates = round(requests * weight / 100)
        for arm, n, share, factor, price in (
            (CANDIDATE, candidates, candidate_errors, slower, dearer),
            (STABLE, requests - candidates, stable_errors, 1.0, 1.0),
        ):
            for number in range(n):
                self._calls += 1
                failed = int((number + 1) * share) > int(number * share)
                spread = 1 + (self._calls * 7919 % 100) / 100
                arms[arm].record(
                    outcome=Outcome.PROVIDER_ERROR if failed else Outcome.SUCCESS,
                    latency_seconds=0.5 * spread * factor,
                    usage=Usage(input_tokens=100, output_tokens=round(50 * spread * price)),
                    cost_usd_micros=round(1000 * spread * price),
                    finish_reason="stop",
                    bucket=bucket_of("salt", f"{self._calls}"),
                )
        return self

    def run(self, seconds: float, **traffic_: Any) -> World:
        """Serve and tick every five seconds for a while."""
        for _ in range(round(seconds / 5)):
            self.serve(**traffic_).tick()
        return self

    def condition(self, kind: str) -> ConditionStatus:
        """The status of one condition."""
        return next(condition.status for condition in self.status.conditions if condition.type == kind)


@pytest.fixture
def world() -> Callable[..., World]:
    """Build a rollout; keyword arguments replace parts of the spec."""

    def build(annotations: dict[str, str] | None = None, **spec: Any) -> World:
        return World(SPEC | spec, annotations)

    return build
