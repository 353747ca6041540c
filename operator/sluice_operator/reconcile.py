"""One round: gather, decide on rollouts, compile, publish, say what came of it. Every step may be repeated at will.

Order matters in one place: a rollout's decision is stored in its status before any pod can see it, so that a leader
that dies at any moment leaves behind either the old decision or the new one, never traffic that nobody decided on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from sluice_core.api.base import ObjectMeta, Status
from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.modelroute import ModelRoute, ModelRouteStatus, targets_text
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.quotaallocation_status import QuotaAllocationStatus
from sluice_core.api.upstream import Upstream, UpstreamStatus
from sluice_core.compile import Compiled, Problem, Severity
from sluice_core.rollout.states import RUNNING
from sluice_core.sync import PodRef
from sluice_operator.budgets import Budgets
from sluice_operator.cluster import ApiError, Cluster
from sluice_operator.credentials import CredentialPublisher
from sluice_operator.events import Events
from sluice_operator.fleet import Board, Fleet
from sluice_operator.gather import Inputs, gather
from sluice_operator.isolate import compile_isolated
from sluice_operator.kinds import PODS
from sluice_operator.publish import NotPublished, PolicyPublisher
from sluice_operator.rollouts import Drafts, Rollouts
from sluice_operator.status import Facts
from sluice_operator.statuses import StatusWriter, stored_status, with_sync
from sluice_operator.uninjected import MESSAGE, uninjected
from sluice_operator.world import Held, World

_log = structlog.get_logger()
DRIFT_SECONDS: Final = 10.0
MAX_TOLD_PODS: Final = 20


class Reconciler:
    """Makes the cluster what the resources ask for."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        *,
        fleet: Fleet,
        rollouts: Rollouts,
        board: Board,
        events: Events,
        clock: Callable[[], float],
        wall: Callable[[], float],
        exempt_namespaces: frozenset[str] = frozenset(),
        budgets: Budgets | None = None,
        drift_seconds: float = DRIFT_SECONDS,
        reread_seconds: float = DRIFT_SECONDS,
    ) -> None:
        self._world = world
        self._fleet = fleet
        self._rollouts = rollouts
        self._board = board
        self._events = events
        self._clock = clock
        self._wall = wall
        self._exempt = exempt_namespaces
        self._budgets = budgets
        self._drift_seconds = drift_seconds
        self._looked_at = float("-inf")
        self._behind: dict[str, NotPublished] = {}
        self.policies = PolicyPublisher(cluster)
        self.credentials = CredentialPublisher(cluster, clock=clock, reread_seconds=reread_seconds)
        self.statuses = StatusWriter(cluster, world, events, clock=clock, wall=wall)
        self._drafts = Drafts(clock)
        self._compiled: tuple[int, Compiled] | None = None
        self._told_uninjected: set[str] = set()
        self._synced_memo: dict[tuple[str, str], tuple[int, int] | None] = {}
        self.uninjected = 0
        self.faults = 0
        self.problems = 0
        self.busy = False

    def take_over(self) -> None:
        """Begin as leader: nothing that was written or seen before counts."""
        self.policies.forget()
        self.credentials.forget()
        self._looked_at = float("-inf")
        self._behind = {}
        self._drafts.clear()

    async def lead(self) -> None:
        """Do one round as leader."""
        self._synced_memo.clear()
        inputs = gather(self._world, self._exempt)
        compiled = self._compile(inputs)
        if await self._advance(inputs, compiled):
            inputs = gather(self._world, self._exempt)
            compiled = self._compile(inputs)
        self._fleet.adopt(compiled, self._clock())
        self._fleet.present(self._sidecar_pods(), self._clock())
        self._show(compiled)
        if self._budgets is not None:
            await self._budgets.round()
        if not await self._look():
            return
        owners = [each for each in inputs.resources if isinstance(each, Upstream | QuotaAllocation)]
        without_keys = await self.credentials.publish(owners, compiled.snapshots, inputs.leaving)
        self._behind = without_keys | await self.policies.publish(compiled.snapshots, inputs.leaving)
        await self._report(inputs, compiled)
        await self._tell_uninjected()

    def _sidecar_pods(self) -> list[PodRef]:
        pods = self._world.pods()
        return [PodRef(namespace=pod.namespace, name=pod.name, uid=pod.uid) for pod in pods if pod.injected]

    def follow(self) -> None:
        """Do one round as standby: know the policy and serve it, write nothing."""
        self._show(self._compile(gather(self._world, self._exempt)))

    def _compile(self, inputs: Inputs) -> Compiled:
        """Compile, unless nothing that matters has changed since the last time."""
        if self._compiled is None or self._compiled[0] != self._world.revision:
            compiled, faulty = compile_isolated(inputs)
            problems = compiled.problems | {key: (each,) for key, each in faulty.items()}
            self._compiled = (self._world.revision, msgspec.structs.replace(compiled, problems=problems))
        return self._compiled[1]

    def _show(self, compiled: Compiled) -> None:
        for snapshot in compiled.snapshots.values():
            self._board.publish(snapshot)
        for namespace in self._board.namespaces() - set(compiled.snapshots):
            self._board.withdraw(namespace)

    async def _look(self) -> bool:
        """See what is stored, now and then; without having seen it once, nothing is written or removed."""
        if self._clock() - self._looked_at < self._drift_seconds:
            return True
        try:
            await self.policies.look()
            await self.credentials.look()
        except ApiError as error:
            _log.warning("published_objects_unknown", error=str(error))
            return self._looked_at > float("-inf")
        self._looked_at = self._clock()
        return True

    async def _advance(self, inputs: Inputs, compiled: Compiled) -> bool:
        """Let every sound rollout take its next step; tell whether any status was stored."""
        stored = False
        self.busy = False
        splits: dict[str, str] = {}
        for held in inputs.held:
            split = held.resource
            if not isinstance(split, CanarySplit) or held.metadata.deletion_timestamp is not None:
                continue
            splits[held.metadata.uid] = split.key
            facts = self._facts(held, inputs, compiled)
            if any(problem.severity is Severity.ERROR for problem in facts.problems):
                continue  # it has no traffic to judge; what is amiss is said with all the others
            try:
                stored = await self._step(held, split, facts) or stored
            except Exception as error:  # noqa: BLE001 -- a fault over one rollout must not hold up the others
                self.faults += 1
                _log.error("rollout_fault", split=split.key, error=type(error).__name__, exc_info=True)
        self._drafts.keep(splits)
        self._rollouts.keep(splits.values())
        return stored

    async def _step(self, held: Held, stored: CanarySplit, facts: Facts) -> bool:
        """Plan one rollout; store the plan if it decides anything or is due; tell whether it was stored."""
        split = self._drafts.current(stored)
        plan = self._rollouts.plan(split, facts.synced or (0, 0))
        self.busy = self.busy or plan.status.phase in RUNNING
        if not plan.urgent and not self._drafts.due(stored):
            self._drafts.hold(stored, plan.status)
            return False
        if not plan.urgent and plan.status == stored.status:
            return False
        written = await self.statuses.write(held, with_sync(plan.status, facts), facts, at_once=True)
        self._drafts.stored(stored)
        if not written:
            return False
        for each in plan.events:
            await self._events.tell(held.type, held.metadata, each.reason, each.message, warning=each.warning)
        self._rollouts.stored(stored.key, plan)
        return True

    async def _report(self, inputs: Inputs, compiled: Compiled) -> None:
        # What was stored in this round is in the world already, with its new version.
        current = {held.metadata.uid: held for held in self._world.held()}
        self.problems = 0
        for known in inputs.held:
            held = current.get(known.metadata.uid)
            if held is None or held.metadata.deletion_timestamp is not None:
                continue
            if held.metadata.generation != known.metadata.generation:
                continue  # its spec changed meanwhile: the next round knows what came of it
            facts = self._facts(held, inputs, compiled)
            self.problems += len(facts.problems)
            await self.statuses.write(held, self._status(held, facts, inputs, compiled), facts)
        self.statuses.forget(set(current))

    async def _tell_uninjected(self) -> None:
        pods = uninjected(self._world, self._exempt)
        self.uninjected = len(pods)
        # A few per round: whoever opts in a namespace full of pods must not flood the event list at once.
        news = [pod for pod in pods if pod.uid not in self._told_uninjected][:MAX_TOLD_PODS]
        for pod in news:
            about = ObjectMeta(
                name=pod.name, namespace=pod.namespace, uid=pod.uid, resource_version=pod.resource_version
            )
            await self._events.tell(PODS, about, "SidecarMissing", MESSAGE, warning=True)
        present = {pod.uid for pod in pods}
        self._told_uninjected = (self._told_uninjected | {pod.uid for pod in news}) & present

    def _facts(self, held: Held, inputs: Inputs, compiled: Compiled) -> Facts:
        resource = held.resource
        problems: tuple[Problem, ...] = compiled.problems.get(held.id, ())
        if held.problem is not None:
            problems = (held.problem, *problems)
        is_quota = isinstance(resource, QuotaAllocation)
        users = _users(held, compiled)
        synced, reported = self._synced(users, inputs, compiled)
        return Facts(
            generation=held.metadata.generation,
            problems=problems,
            keys=self.credentials.found(resource) if isinstance(resource, Upstream | QuotaAllocation) else None,
            behind=next((self._behind[name] for name in users if name in self._behind), None),
            synced=synced if resource is not None else None,
            reported=reported,
            selects=isinstance(resource, ModelRoute | QuotaAllocation),
            rollout=isinstance(resource, CanarySplit),
            findings=self._fleet.quota_findings(held.id.key, problems, self._wall()) if is_quota else (),
        )

    def _synced(self, users: tuple[str, ...], inputs: Inputs, compiled: Compiled) -> tuple[tuple[int, int], bool]:
        """Return how many pods run the policy, of how many that should; and whether any of them reports at all."""
        running = wanted = 0
        reported = False
        for namespace in users:
            pods = inputs.running.get(namespace, 0)
            known = self._known_synced(namespace, compiled.snapshots[namespace].revision)
            reported = reported or known is not None
            running += min(known[0], pods) if known is not None else 0
            wanted += pods
        return (running, wanted), reported

    def _known_synced(self, namespace: str, revision: str) -> tuple[int, int] | None:
        # The fleet looks at all its sidecars to answer, and many resources ask about one namespace.
        key = (namespace, revision)
        if key not in self._synced_memo:
            self._synced_memo[key] = self._fleet.synced(namespace, revision)
        return self._synced_memo[key]

    def _status(self, held: Held, facts: Facts, inputs: Inputs, compiled: Compiled) -> Status:
        status: Status = stored_status(held)
        match held.resource:
            case Upstream() as upstream if isinstance(status, UpstreamStatus):
                policy = next((each for each in compiled.upstreams if each.key == upstream.key), None)
                status = msgspec.structs.replace(
                    status,
                    credentials=f"{facts.keys.found}/{facts.keys.named}" if facts.keys is not None else "",
                    consumers=compiled.consumers.get(upstream.key, 0),
                    effective_limits=self._fleet.effective_limits(upstream.key) or (policy.limits if policy else None),
                    reported_limits=self._fleet.reported_limits(upstream.key),
                )
            case ModelRoute() as route if isinstance(status, ModelRouteStatus):
                pods = inputs.pods.get(route.metadata.namespace, ())
                selected = sum(route.spec.workloads.matches(labels) for labels in pods)
                status = msgspec.structs.replace(status, pods=selected, targets=targets_text(route.spec))
            case QuotaAllocation() as quota if isinstance(status, QuotaAllocationStatus):
                figures = self._fleet.quota_status(quota.key, self._wall())
                if figures is not None:
                    status = msgspec.structs.replace(figures, conditions=status.conditions)
        return with_sync(status, facts)


def _users(held: Held, compiled: Compiled) -> tuple[str, ...]:
    """Return the namespaces whose policy contains this resource."""
    match held.resource:
        case ModelRoute() | CanarySplit():
            own = held.metadata.namespace
            return (own,) if own in compiled.snapshots else ()
        case Upstream() as upstream:
            key = upstream.key
        case QuotaAllocation() as quota:
            reference = quota.spec.upstream_ref
            key = f"{reference.namespace or quota.metadata.namespace}/{reference.name}"
        case None:
            return ()
    return tuple(
        name for name, snapshot in compiled.snapshots.items() if any(each.key == key for each in snapshot.upstreams)
    )
