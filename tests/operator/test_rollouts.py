"""A rollout through the operator: reports in, status, policy and events out, a leader that dies in between."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sluice_core.api.canarysplit_status import Phase
from sluice_core.records import Outcome
from sluice_core.rollout.counts import ArmCounter
from sluice_core.snapshot import SplitPolicy, decode
from sluice_core.sync import PodRef, SyncRequest
from sluice_operator.cluster import Cluster
from sluice_operator.events import Events
from sluice_operator.kinds import CANARY_SPLITS, CONFIG_MAPS, EVENTS, MODEL_ROUTES, NAMESPACES, PODS, UPSTREAMS
from sluice_operator.leader import Leader
from sluice_operator.observe import Observer
from sluice_operator.reconcile import Reconciler
from sluice_operator.resource_metrics import ResourceMetrics
from sluice_operator.rollout_metrics import Decisions
from sluice_operator.rollouts import FleetRollouts
from sluice_operator.sync import PolicyBoard
from sluice_operator.webhook_secrets import ClusterSecrets
from sluice_operator.webhooks import Webhooks
from sluice_operator.world import World


class Replica:
    """One leading operator, moved by hand."""

    def __init__(self, cluster: Cluster, clock: Any) -> None:
        self.clock = clock
        self.world = World()
        self.leader = Leader(clock=clock)
        self.observer = Observer(self.world, cluster, clock=clock, resync_seconds=60)
        self.decisions = Decisions(clock)
        webhooks = Webhooks(ClusterSecrets(cluster), answered=self.observer.changed)
        self.reconciler = Reconciler(
            cluster,
            self.world,
            fleet=self.leader,
            rollouts=FleetRollouts(self.leader, webhooks, wall=clock, decisions=self.decisions),
            board=PolicyBoard(),
            events=Events(cluster, identity="a", wall=clock),
            clock=clock,
            wall=clock,
        )
        self.leader.lead(True, clock())

    async def round(self) -> None:
        if not self.world.complete:
            await self.observer.relist()
        await self.reconciler.lead()


class Sidecar:
    """A sidecar that serves a hundred users a second and reports what became of them."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.sequence = 0
        self.arms: dict[tuple[str, str], ArmCounter] = {}

    @property
    def split(self) -> SplitPolicy:
        return split_in_force(self.api)

    def serve(self, calls: int, candidate_fails: float) -> None:
        split = self.split
        if not split.revision:
            return
        for call in range(calls):
            arm = "candidate" if call % 100 < split.weight else "stable"
            failed = arm == "candidate" and (call // 7) % 10 < candidate_fails * 10
            counter = self.arms.setdefault((split.revision, arm), ArmCounter(split.key, split.revision, arm))
            counter.record(
                outcome=Outcome.PROVIDER_ERROR if failed else Outcome.SUCCESS,
                latency_seconds=1.0 + call % 10 / 10,
                first_token_seconds=None,
                usage=None,
                cost_usd_micros=100,
                finish_reason="stop",
                bucket=(call * 7919) % 10_000,
            )

    def report(self, replica: Replica) -> None:
        self.sequence += 1
        snapshot = decode(self.api.object(CONFIG_MAPS, "sluice-policy", "team")["data"]["snapshot.json"].encode())
        replica.leader.report(
            SyncRequest(
                pod=PodRef(namespace="team", name="chat-1", uid="u"),
                instance="i-1",
                sequence=self.sequence,
                revision=snapshot.revision,
                counts=tuple(counter.export() for counter in self.arms.values()),
            )
        )


def split_in_force(api: Any) -> SplitPolicy:
    snapshot = decode(api.object(CONFIG_MAPS, "sluice-policy", "team")["data"]["snapshot.json"].encode())
    return snapshot.routes[0].rules[0].split


def status(api: Any) -> dict[str, Any]:
    return api.object(CANARY_SPLITS, "chat", "team").get("status", {})


def condition(api: Any, wanted: str) -> dict[str, Any]:
    return next(each for each in status(api)["conditions"] if each["type"] == wanted)


@pytest.fixture
def team(api):
    api.put(NAMESPACES, "team")
    api.put(UPSTREAMS, "openai", "team", spec={"baseURL": "http://mock/v1"})
    rules = [{"name": "default", "targets": [{"upstreamRef": {"name": "openai"}, "model": "gpt-4.1"}]}]
    api.put(MODEL_ROUTES, "chat", "team", spec={"rules": rules})
    api.put(
        CANARY_SPLITS,
        "chat",
        "team",
        spec={
            "routeRef": {"name": "chat"},
            "stable": {"version": "v1", "model": "gpt-4.1"},
            "candidate": {"version": "v2", "model": "gpt-4.1-mini"},
            "assignment": {"key": [{"header": "x-user-id"}]},
            "strategy": {"steps": [{"weight": 25, "bakeSeconds": 30}, {"weight": 100, "bakeSeconds": 30}]},
            "analysis": {"errorRate": {"maxIncreasePercent": 50, "ceilingPercent": 20}},
        },
    )
    api.put(PODS, "chat-1", "team", spec={"containers": [{"name": "sluice"}]}, status={"phase": "Running"})


async def go_on(replica: Replica, sidecar: Sidecar, api, *, fails: float, seconds: int, until: Phase | None) -> int:
    for second in range(seconds):
        replica.clock.advance(1)
        sidecar.serve(100, fails)
        sidecar.report(replica)
        await replica.round()
        if until is not None and status(api).get("phase") == until.value:
            return second + 1
    return seconds


async def test_a_failing_candidate_is_off_within_ten_seconds(cluster, clock, api, team):
    """From the first failed calls to a policy without the candidate; status, conditions and events say why."""
    replica, sidecar = Replica(cluster, clock), Sidecar(api)
    await replica.round()
    await replica.round()
    assert split_in_force(api).weight == 25
    metrics = CollectorRegistry()
    metrics.register(ResourceMetrics(replica.world.resources, lambda: True, replica.decisions))
    labels = {"namespace": "team", "name": "chat"}
    assert metrics.get_sample_value("sluice_rollout_weight_percent", labels) == 25
    seconds = await go_on(replica, sidecar, api, fails=1.0, seconds=30, until=Phase.ROLLED_BACK)
    assert seconds <= 10
    assert split_in_force(api).weight == 0
    assert metrics.get_sample_value("sluice_rollout_verdict", {**labels, "verdict": "Harm"}) == 1
    assert condition(api, "Stalled")["status"] == "True"
    assert condition(api, "Ready")["status"] == "False"
    shown = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.labels.get("metric", "errorCeiling") == "errorCeiling"
    }

    def value(name: str, **more: str) -> float:
        return shown[name, tuple(sorted({**labels, **more}.items()))]

    assert value("sluice_rollout_decisions_total", decision="RolledBack") == 1
    assert value("sluice_rollout_phase", phase="RolledBack") == 1
    assert value("sluice_rollout_figure", metric="errorCeiling", arm="candidate") == 1.0
    assert value("sluice_rollout_limit_percent", metric="errorCeiling") == 20
    threshold = value("sluice_rollout_evidence_threshold", metric="errorCeiling")
    assert value("sluice_rollout_evidence", metric="errorCeiling") >= threshold > 0
    await go_on(replica, sidecar, api, fails=1.0, seconds=2, until=None)
    assert metrics.get_sample_value("sluice_rollout_rollback_seconds_count") == 1
    assert 0 < (metrics.get_sample_value("sluice_rollout_rollback_seconds_sum") or 0) <= 2
    assert any(event["reason"] == "RolledBack" and event["type"] == "Warning" for event in api.all(EVENTS))


async def test_a_healthy_candidate_is_promoted_across_a_change_of_leader(cluster, clock, api, team):
    """A leader that is killed in mid-rollout is followed by one that knows only what is stored, and goes on."""
    replica, sidecar = Replica(cluster, clock), Sidecar(api)
    await replica.round()
    await go_on(replica, sidecar, api, fails=0.0, seconds=15, until=None)
    before = status(api)
    successor = Replica(cluster, clock)
    await go_on(successor, sidecar, api, fails=0.0, seconds=2, until=None)
    after = status(api)
    assert (after["revision"], after["weight"], after["phase"]) == (before["revision"], 25, "Progressing")
    assert after["stable"]["requests"] >= before["stable"]["requests"]
    await go_on(successor, sidecar, api, fails=0.0, seconds=1200, until=Phase.PROMOTED)
    assert status(api)["phase"] == "Promoted"
    assert condition(api, "Ready")["status"] == "True"
    assert condition(api, "Stalled")["status"] == "False"
    assert "spec" in api.object(CANARY_SPLITS, "chat", "team")
    assert api.object(CANARY_SPLITS, "chat", "team")["metadata"]["generation"] == 1


async def test_figures_are_stored_at_a_bounded_rate(cluster, clock, api, team):
    """Between decisions the status is patched every few seconds at most, however often the loop turns."""
    replica, sidecar = Replica(cluster, clock), Sidecar(api)
    await replica.round()
    await go_on(replica, sidecar, api, fails=0.0, seconds=5, until=None)
    api.writes.clear()
    await go_on(replica, sidecar, api, fails=0.0, seconds=20, until=None)
    patches = [path for _, path in api.writes if path.endswith("/canarysplits/chat/status")]
    assert 2 <= len(patches) <= 6


async def test_without_reports_nothing_is_decided(cluster, clock, api, team):
    """A rollout that nobody reports on stays where it is and says that it lacks data."""
    replica = Replica(cluster, clock)
    await replica.round()
    for _ in range(5):
        clock.advance(60)
        await replica.round()
    assert (status(api)["phase"], split_in_force(api).weight) == ("Progressing", 25)
    assert condition(api, "Ready")["status"] == "False"
    assert condition(api, "Reconciling")["status"] == "True"
