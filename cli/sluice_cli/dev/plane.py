"""The control plane of local mode: one round of what the operator does, over a folder instead of a cluster."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from sluice_cli.dev.folder import LocalStore
from sluice_cli.dev.judges import EnvironmentSecrets
from sluice_core.api.base import Condition, ConditionStatus
from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.conditions import find_condition
from sluice_core.api.manifests import AnyResource
from sluice_core.api.modelroute import ModelRoute, targets_text
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.upstream import Upstream
from sluice_core.compile import Compiled, Problem, ResourceId, Severity, compile_namespaces
from sluice_core.enforcement import Finding, message_of, reason_of, with_findings
from sluice_core.rollout.observation import Plan
from sluice_core.service import FULL_SERVICE
from sluice_core.snapshot import Snapshot
from sluice_core.spending import Told
from sluice_core.sync import PodRef
from sluice_operator.leader import Leader
from sluice_operator.rollout_metrics import Decisions
from sluice_operator.rollouts import FleetRollouts
from sluice_operator.sync import PolicyBoard
from sluice_operator.webhooks import Webhooks

MAX_EVENTS: Final = 200

PodLabels = Mapping[str, tuple[dict[str, str], ...]]


class LocalPlane:
    """Compiles, decides on rollouts and fills in statuses; publishes to a board that sidecars long-poll.

    Args:
        keep: called when decisions are in the store, before anybody acts on them.
        fresh: there was no run before this one that may have left leases.
    """

    def __init__(
        self,
        store: LocalStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        keep: Callable[[], None] = lambda: None,
        fresh: bool = True,
    ) -> None:
        self.store = store
        self.board = PolicyBoard()
        self.leader = Leader(clock=clock, fresh=fresh)
        self.answered = asyncio.Event()
        self._webhooks = Webhooks(EnvironmentSecrets(), answered=self.answered, allow_local=True)
        self.decisions = Decisions(clock)
        self._rollouts = FleetRollouts(self.leader, self._webhooks, wall=wall, decisions=self.decisions)
        self._keep = keep
        self.leader.lead(True, clock())
        self.events: deque[str] = deque(maxlen=MAX_EVENTS)
        self._telling: tuple[Told, ...] = ()
        self._clock = clock

    async def close(self) -> None:
        """Stop asking webhooks."""
        await self._webhooks.close()

    def present(self, pods: Collection[PodRef]) -> None:
        """Learn which pods there are: what one held that is gone comes back."""
        self.leader.present(pods, self._clock())

    def round(self, resources: tuple[AnyResource, ...], pods: PodLabels, now_unix: float) -> Compiled:
        """Do one round over these resources, whose statuses are those of the store, and return the policy in force."""
        compiled = self._compile(resources, pods)
        if self._advance(resources, compiled, pods):
            resources = tuple(self._with_status(each) for each in resources)
            compiled = self._compile(resources, pods)
        self.leader.adopt(compiled, self._clock())
        self._tell_alerts(now_unix)
        for snapshot in compiled.snapshots.values():
            self.board.publish(snapshot)
        for resource in resources:
            self._report(resource, compiled, pods, now_unix)
        return compiled

    def _compile(self, resources: tuple[AnyResource, ...], pods: PodLabels) -> Compiled:
        labels = self.store.namespaces
        concerned = {namespace: labels.get(namespace, {}) for namespace in pods}
        others = {namespace: each for namespace, each in labels.items() if namespace not in concerned}
        return compile_namespaces(resources, concerned, pods, others=others)

    def _with_status(self, resource: AnyResource) -> AnyResource:
        kind = type(resource).__name__
        held = next((each for each in self.store.of_kind(kind) if each.key == resource.key), resource)
        return msgspec.structs.replace(resource, status=held.status)

    def _advance(self, resources: tuple[AnyResource, ...], compiled: Compiled, pods: PodLabels) -> bool:
        changed = False
        plans: dict[str, Plan] = {}
        for split in resources:
            if not isinstance(split, CanarySplit) or _errors(split, compiled):
                continue
            snapshot = compiled.snapshots.get(split.metadata.namespace)
            if snapshot is None:
                continue
            decided = self._rollouts.plan(split, self._synced(snapshot, pods))
            plans[split.key] = decided
            for event in decided.events:
                self.events.append(f"{split.metadata.name}: {event.reason}: {event.message}")
            if decided.status != split.status:
                self.store.set_status(split, decided.status)
                changed = True
        if changed:
            self._keep()
        for key, decided in plans.items():
            self._rollouts.stored(key, decided)
        self._rollouts.keep(plans)
        return changed

    def _synced(self, snapshot: Snapshot, pods: PodLabels) -> tuple[int, int]:
        """Return how many pods of a namespace run this policy, of how many."""
        wanted = len(pods.get(snapshot.namespace, ()))
        known = self.leader.synced(snapshot.namespace, snapshot.revision)
        return min(known[0], wanted) if known else 0, wanted

    def _report(self, resource: AnyResource, compiled: Compiled, pods: PodLabels, now_unix: float) -> None:
        resource = self._with_status(resource)
        status = resource.status
        snapshot = compiled.snapshots.get(resource.metadata.namespace)
        synced = self._synced(snapshot, pods) if snapshot else None
        match resource:
            case Upstream():
                policy = next((each for each in compiled.upstreams if each.key == resource.key), None)
                status = msgspec.structs.replace(
                    resource.status,
                    consumers=compiled.consumers.get(resource.key, 0),
                    effective_limits=self.leader.effective_limits(resource.key) or (policy.limits if policy else None),
                    reported_limits=self.leader.reported_limits(resource.key),
                )
            case QuotaAllocation():
                status = self.leader.quota_status(resource.key, now_unix) or resource.status
            case ModelRoute():
                labels = pods.get(resource.metadata.namespace, ())
                status = msgspec.structs.replace(
                    resource.status,
                    targets=targets_text(resource.spec),
                    pods=sum(resource.spec.workloads.matches(each) for each in labels),
                )
            case CanarySplit():
                status = resource.status
        conditions = self._conditions(resource, _problems(resource, compiled), now_unix)
        self._tell_level(resource, conditions)
        status = msgspec.structs.replace(
            status,
            conditions=conditions,
            observed_generation=resource.metadata.generation,
            synced_pods=f"{synced[0]}/{synced[1]}" if synced else "",
        )
        self.store.set_status(resource, status)

    def _tell_level(self, resource: AnyResource, conditions: tuple[Condition, ...]) -> None:
        """Say which allocations have come to another level of service."""
        before, after = (find_condition(each, FULL_SERVICE) for each in (resource.status.conditions, conditions))
        said = before.message if before is not None else ""
        if after is not None and after.message != said and (said or after.status is ConditionStatus.FALSE):
            self.events.append(f"{resource.metadata.name}: {after.reason}: {after.message}")

    def _tell_alerts(self, now_unix: float) -> None:
        """Say which budgets have passed a mark, once that is kept. Nobody is called: that is the operator's part."""
        spending = self.leader.spending
        for each in self._telling:  # they were shown after the last round
            spending.told(each)
        spending.decide_alerts(now_unix)
        if spending.take_changes():
            self._keep()
        spending.alerts_stored(spending.unstored_alerts())
        self._telling = spending.untold()
        for each in self._telling:
            self.events.append(f"{each.alert.budget}: {reason_of(each.alert)}: {message_of(each.alert)}")

    def _conditions(
        self, resource: AnyResource, problems: tuple[Problem, ...], now_unix: float
    ) -> tuple[Condition, ...]:
        worst = problems[0] if problems else None
        bad = worst is not None and worst.severity is Severity.ERROR
        if isinstance(resource, CanarySplit) and not bad:
            return resource.status.conditions  # as long as nothing is amiss, its own say how the rollout stands
        ready = Finding(
            type="Ready",
            status=ConditionStatus.FALSE if bad else ConditionStatus.TRUE,
            reason=worst.reason.value if worst else "InForce",
            message=f"{worst.path}: {worst.message}" if worst else "in force",
        )
        findings = [ready]
        if isinstance(resource, QuotaAllocation):
            findings += self.leader.quota_findings(resource.key, problems, now_unix)
        return with_findings(
            resource.status.conditions, findings, now_unix=now_unix, observed_generation=resource.metadata.generation
        )


def _problems(resource: AnyResource, compiled: Compiled) -> tuple[Problem, ...]:
    return compiled.problems.get(ResourceId(type(resource).__name__, resource.key), ())


def _errors(resource: AnyResource, compiled: Compiled) -> bool:
    return any(problem.severity is Severity.ERROR for problem in _problems(resource, compiled))
