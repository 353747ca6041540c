"""What is in force: the pod's policy, swapped whole, and the live state that survives a swap by identity."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import msgspec
import structlog

from sluice_core.api.modelroute import Authorization
from sluice_core.api.quotaallocation import Budget
from sluice_core.budget import SpendCounter, SpendLedger
from sluice_core.caching import ANSWERED
from sluice_core.limits.accounts import budgets_of
from sluice_core.limits.admission import Admission
from sluice_core.limits.estimate import Estimator
from sluice_core.limits.window import SlidingWindow
from sluice_core.records import CallRecord, Outcome
from sluice_core.rollout.counts import ArmCounter
from sluice_core.rollout.outcomes import outcome_for_arm
from sluice_core.selection import PodPolicy, select
from sluice_core.snapshot import RoutePolicy, RulePolicy, Snapshot, TargetPolicy, UpstreamPolicy
from sluice_core.split import Arm
from sluice_core.sync import SyncRequest, SyncResponse
from sluice_sidecar.background import BackgroundResponses
from sluice_sidecar.books import Books
from sluice_sidecar.breakers import Breakers
from sluice_sidecar.cache import Answers
from sluice_sidecar.call import Call
from sluice_sidecar.config import LabelSource, PolicySource
from sluice_sidecar.credentials import Credentials
from sluice_sidecar.exact import ExactCounter
from sluice_sidecar.feedback import ArmMemory
from sluice_sidecar.gate import Gate
from sluice_sidecar.pacing import Pacing
from sluice_sidecar.report import build_report, readings
from sluice_sidecar.settings import Settings, WhenUnconfigured
from sluice_sidecar.steering import Steering
from sluice_sidecar.store.stores import Stores
from sluice_sidecar.sync import SyncChannel
from sluice_sidecar.telemetry.metrics import Metrics, StateCollector
from sluice_sidecar.telemetry.records import RecordWriter
from sluice_sidecar.upstream import Upstream

log = structlog.get_logger()

MAX_COUNTERS = 256
"""Arms counted at once. Those of splits that are over make room."""

_OPENAI = UpstreamPolicy(key="sluice/openai", base_url="https://api.openai.com/v1")
_PASS_THROUGH = PodPolicy(
    namespace="",
    revision="pass-through",
    routes=(
        RoutePolicy(
            key="sluice/pass-through",
            rules=(
                RulePolicy(
                    name="default",
                    targets=(TargetPolicy(name="openai", upstream=_OPENAI.key),),
                    authorization=Authorization.APPLICATION,
                ),
            ),
        ),
    ),
    upstreams={_OPENAI.key: _OPENAI},
)
"""What applies before the first policy if the pod is not to wait for it: the public API and the application's key."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What one call sees of the policy: read once, so that a swap in mid-call changes nothing for it."""

    policy: PodPolicy
    steering: Steering


class Governor:
    """The state of one sidecar."""

    def __init__(self, settings: Settings, clock: Callable[[], float], records: RecordWriter) -> None:
        self.settings = settings
        self.clock = clock
        self.source = PolicySource(settings.config_dir)
        self.labels = LabelSource(settings.labels, settings.labels_file)
        self.credentials = Credentials(settings.credentials_dir)
        self.admission = Admission(sole=settings.sole)
        self.gate = Gate(self.admission, clock, self._somebody_waits)
        self.breakers = Breakers()
        self.pacing = Pacing(self.admission)
        self.spends = SpendCounter()
        self.unpriced: dict[tuple[str, str], tuple[int, str]] = {}
        """By quota and allocation: how many calls have no known cost, and the model of the last one."""
        self.degraded: dict[tuple[str, str], SlidingWindow] = {}
        """By quota and allocation: the calls of the last minute that a level of service changed."""
        self._ledger = SpendLedger() if settings.sync_url is None else None
        self.estimator = Estimator()
        self.counter = ExactCounter(settings.vocabulary_dir)
        self.memory = ArmMemory()
        self.background = BackgroundResponses()
        self.metrics = Metrics()
        self.metrics.registry.register(StateCollector(lambda: readings(self)))
        self.upstreams: dict[str, Upstream] = {}
        self.counters: dict[tuple[str, str, str], ArmCounter] = {}
        self.books = Books(self._book)
        self.in_flight = 0
        self.stopping = False
        self.reloads = 0
        self.sync: SyncChannel | None = None
        self.stores = Stores(self)
        self.answers = Answers(self, settings.cache_bytes)
        self.instance = os.urandom(8).hex()
        self.records = records
        self._view: View | None = None
        self._snapshot: Snapshot | None = None
        self._retired: list[Upstream] = []
        self._last_sequence = 0
        self.latest_answer: tuple[SyncResponse, float] | None = None
        """The latest answer of the control plane and when it arrived."""

    # --- policy

    def view(self) -> View | None:
        """Return what is in force, or None before the first good policy."""
        return self._view

    def poll(self) -> None:
        """Look at the mounted files and put into force what has changed."""
        if self.credentials.refresh():
            for upstream in self.upstreams.values():
                upstream.refresh_keys()
            self.breakers.keys_changed()
        relabelled = self.labels.poll()
        before = self.source.error
        self.source.poll()
        if self.source.error and self.source.error != before:
            log.error("policy rejected; the last good one stays", error=self.source.error)
        self._adopt(again=relabelled)
        now = self.clock()
        self.pacing.tick(now)
        self.answers.tidy(now)
        self.admission.begin_days(now, time.time())
        if self.settings.sync_url is None or (self.sync is not None and self.sync.error):
            self.admission.open_users(alone=self.settings.sync_url is None)
        if self._ledger is not None:
            self._watch_budgets(self._ledger)

    def _watch_budgets(self, ledger: SpendLedger) -> None:
        """Find out which budgets are spent, where no control plane does."""
        self.books.bring_up_to_date()
        budgets: dict[str, Budget] = {}
        for quota, allocation in self._view.policy.quotas.values() if self._view is not None else ():
            budgets.update(budgets_of(quota, allocation))
        if budgets:
            unix_now = time.time()
            ledger.report(self.instance, self.spends.export(), unix_now)
            exhausted = ledger.exhausted(budgets, unix_now)
            shares = ledger.shares(budgets, unix_now)
            self.admission.apply_exhausted(exhausted, shares, now=self.clock(), unix_now=unix_now)

    def _adopt(self, *, again: bool = False) -> None:
        snapshot = self.source.current(self.clock())
        if snapshot is not None and (again or snapshot is not self._snapshot):
            self._snapshot = snapshot
            self._apply(select(snapshot, self.labels.labels))
        elif self._view is None and self.settings.when_unconfigured is WhenUnconfigured.PASS_THROUGH:
            self._apply(_PASS_THROUGH)

    def _apply(self, policy: PodPolicy) -> None:
        before, self.upstreams = self.upstreams, {}
        for key, each in policy.upstreams.items():
            known = before.get(key)
            if known is not None and known.takes(each):
                known.configure(each)
            else:
                known = Upstream(each, self.credentials)
            self.upstreams[key] = known
        self._retired += [each for key, each in before.items() if self.upstreams.get(key) is not each]
        self.breakers.configure({key: each.breaker for key, each in policy.upstreams.items()})
        self.gate.configure(policy)
        self.stores.configure(policy)
        self.metrics.know_models(_models_named(policy))
        self._forget_counters(policy)
        self._view = View(policy=policy, steering=Steering(policy))
        self.reloads += 1
        log.info("policy in force", revision=policy.revision, routes=len(policy.routes), upstreams=len(self.upstreams))

    def _forget_counters(self, policy: PodPolicy) -> None:
        """Forget the answers of rollouts that are in no rule any more, and their counts if there are many."""
        alive = {
            (rule.split.key, rule.split.revision)
            for route in policy.routes
            for rule in route.rules
            if rule.split is not None
        }
        self.memory.keep(alive)
        for name in [name for name in self.counters if name[:2] not in alive]:
            if len(self.counters) > MAX_COUNTERS // 2:
                del self.counters[name]

    async def close_retired(self) -> None:
        """Close the connections of upstreams that no policy names any more, once their last call is over."""
        idle = [each for each in self._retired if not each.in_use]
        self._retired = [each for each in self._retired if each.in_use]
        for each in idle:
            await each.close()

    # --- calls

    def pinned_arm(self, call: Call) -> Arm | None:
        """Return the arm of the conversation that this call continues."""
        self.books.bring_up_to_date()
        return self.memory.arm_of(call.facts.previous_response_id, call.facts.conversation)

    def charge(self, call: Call, cost_usd_micros: int) -> None:
        """Charge what a call that goes on has cost so far to its budgets; the rest follows when it is over."""
        if call.budgets:
            self.spends.charge(call.budgets, cost_usd_micros - call.charged_usd_micros, time.time())
            call.charged_usd_micros = cost_usd_micros

    def _book(self, call: Call) -> None:
        """Count a call that is over: for its arm, in the metrics, in the records."""
        record = call.record()
        if call.assignment is not None and record.split is not None:
            self._count_for_arm(call, record)
        if call.usage is not None and record.outcome is Outcome.SUCCESS and not call.usage_estimated:
            self.estimator.learn(call.facts, call.model, call.usage)
        cost_usd_micros = (record.cost_usd_micros or 0) + record.lost_usd_micros
        if cost_usd_micros and call.budgets:
            self.spends.charge(call.budgets, cost_usd_micros - call.charged_usd_micros, call.unix_time)
        if record.usage is not None and record.cost_usd_micros is None and record.quota and record.allocation:
            place = (record.quota, record.allocation)
            self.unpriced[place] = (self.unpriced.get(place, (0, ""))[0] + 1, record.served_model or record.model or "")
        if record.degraded and record.quota and record.allocation:
            place = (record.quota, record.allocation)
            self.degraded.setdefault(place, SlidingWindow(60.0, 1.0)).take(1, call.ended)
        self.metrics.settled(record)
        self.records.add(record)

    def _count_for_arm(self, call: Call, record: CallRecord) -> None:
        assignment = call.assignment
        if assignment is None or record.split is None or record.split_revision is None:
            return
        if record.cache is not None and record.cache in ANSWERED:  # it says nothing about the version as it is now
            return
        name = (record.split, record.split_revision, assignment.arm)
        counter = self.counters.get(name)
        if counter is None:
            if len(self.counters) >= MAX_COUNTERS:
                return
            counter = self.counters[name] = ArmCounter(*name)
        first_token = (call.first_token_at - call.started - call.queue_seconds) if call.first_token_at else None
        counter.record(
            outcome=call.arm_outcome or outcome_for_arm(record),
            latency_seconds=record.duration_ms / 1000 - call.queue_seconds,
            first_token_seconds=first_token,
            usage=record.usage,
            cost_usd_micros=record.cost_usd_micros,
            finish_reason=record.finish_reason,
            bucket=assignment.bucket,
            counted=assignment.counted,
        )
        self.memory.remember(counter, call.id, call.response_id, call.facts.conversation)

    # --- the sync channel

    @property
    def revision(self) -> str:
        """Return the revision of the policy in force."""
        return self._view.policy.revision if self._view is not None else ""

    def report(self, sequence: int, *, stopping: bool) -> SyncRequest:
        """Return the report of this moment."""
        self.books.bring_up_to_date()
        self._last_sequence = sequence
        return build_report(self, sequence, stopping=stopping)

    def answered(self, answer: SyncResponse, sent_at: float) -> None:
        """Act on the answer to the latest report."""
        now = self.clock()
        self.source.heard(now)
        self.latest_answer = (answer, now)
        if answer.sequence != self._last_sequence:
            return
        self.admission.apply_leases(answer.leases, sent_at=sent_at, interval_seconds=answer.interval_seconds)
        self.admission.apply_users(answer.users, sequence=answer.sequence, sent_at=sent_at, now=now)
        if answer.exhausted is not None:  # else the control plane does not know
            self.admission.apply_exhausted(answer.exhausted, answer.spent, now=now, unix_now=time.time())
        self.gate.pump()

    def pushed(self, snapshot: bytes) -> None:
        """Take a policy pushed by the control plane."""
        if self.source.push(snapshot, self.clock()):
            self._adopt()
        else:
            log.error("pushed policy rejected; the last good one stays", error=self.source.error)

    def _somebody_waits(self) -> None:
        if self.sync is not None:
            self.sync.hurry()
        self.stores.hurry()

    # --- what is shown

    def not_ready_because(self) -> str:
        """Return why the sidecar is not ready, or nothing if it is."""
        if self.stopping:
            return "stopping"
        return "" if self._view is not None else self.source.error or "no policy yet"

    async def close(self) -> None:
        """Send the last report and close every connection."""
        self.books.bring_up_to_date()
        await self.stores.close()
        if self.sync is not None:
            await self.sync.last_report()
        self.gate.close()
        await self.counter.close()
        for each in (*self.upstreams.values(), *self._retired):
            await each.close()
        await asyncio.sleep(0)


def _models_named(policy: PodPolicy) -> set[str]:
    """The models that the policy names: those that get series of their own."""
    models: set[str | None] = set()
    for route in policy.routes:
        for rule in route.rules:
            models.update(target.model for target in rule.targets)
            models.update(fallback.model for fallback in rule.fallbacks)
            models.update(model for match in rule.match for model in match.models if not model.endswith("*"))
            if rule.split is not None:
                models.update((rule.split.stable.model, rule.split.candidate.model))
    for upstream in policy.upstreams.values():
        named = [price.model for price in upstream.prices] + [limit.model for limit in upstream.model_limits]
        models.update(model for model in named if not model.endswith("*"))
    for quota, allocation in policy.quotas.values():
        written = [each for one in (quota, allocation) for each in (one.budget, one.degradation) if each is not None]
        models.update(each.degrade_to.model for each in written if each.degrade_to is not None)
    return {model for model in models if model}
