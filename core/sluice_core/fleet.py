"""The leader's memory of the sidecars: who reports, what runs where, what all pods together have counted and hold.

Synchronous and pure: `now` is monotonic seconds, `unix_now` seconds since 1970. A leader that takes over begins with an
empty one, learns from the reports, and takes what must not be forgotten from what was stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.quotaallocation_status import QuotaAllocationStatus
from sluice_core.api.upstream import Limits, ReportedLimits
from sluice_core.budget import Assessment
from sluice_core.compile import Compiled
from sluice_core.enforcement import Finding, enforced, spend_unusual, store_reachable, within_budget
from sluice_core.limits.adaptive import LearnedLimits
from sluice_core.limits.allocator import LEASE_SECONDS, Allocator
from sluice_core.limits.holdings import with_slack
from sluice_core.limits.keys import Dimension
from sluice_core.limits.learned import reported_limits, with_learned
from sluice_core.limits.user_leases import UserLeases, scope_of
from sluice_core.problems import Problem
from sluice_core.quota_figures import quota_figures
from sluice_core.rollout.evidence import totals_in
from sluice_core.rollout.merge import CountLedger
from sluice_core.rollout.observation import Observation, WebhookAnswer
from sluice_core.service import full_service, standings
from sluice_core.snapshot import QuotaPolicy, SplitPolicy, UpstreamPolicy
from sluice_core.spending import Spending
from sluice_core.sync import (
    AllocationGauge,
    BreakerGauge,
    PodRef,
    SyncRequest,
    SyncResponse,
    UserAnswer,
    UserReport,
)

SILENT_SECONDS: Final = 20.0
"""A sidecar that has not reported for so long does not count as running any revision."""

FORGET_SECONDS: Final = 120.0
MAX_SIDECARS: Final = 20_000
REPORT_SECONDS: Final = 5.0
BUSY_REPORT_SECONDS: Final = 1.0
"""Between reports while a rollout is under way: harm has to be seen within seconds."""

_MOST_CLOSING_REPORTS: Final = 200
"""Reports a second that are asked for while a budget is nearly spent: as many as 1000 pods make in any case."""


class _Sidecar:
    """One process that reports, with its latest report and what was said to it of its users."""

    __slots__ = ("heard_at", "report", "users")

    def __init__(self, report: SyncRequest, heard_at: float) -> None:
        self.report = report
        self.heard_at = heard_at
        self.users: tuple[UserAnswer, ...] = ()


class Fleet:
    """All sidecars that report to this leader."""

    __slots__ = (
        "_allocator",
        "_by_instance",
        "_by_pod",
        "_compiled",
        "_fresh",
        "_learned",
        "_quotas",
        "_rolling",
        "_scopes",
        "_seen_pods",
        "_splits",
        "_swept_at",
        "_upstreams",
        "_users",
        "counts",
        "spending",
    )

    def __init__(self, *, now: float, fresh: bool = False) -> None:
        """Begin without knowledge; `fresh` says that there never was a leader before."""
        self.counts = CountLedger()
        self.spending = Spending(known=fresh)
        self._fresh = fresh
        self._allocator = Allocator(now=now, fresh=fresh)
        self._users = UserLeases(now=now, fresh=fresh)
        self._by_instance: dict[str, _Sidecar] = {}
        self._by_pod: dict[PodRef, str] = {}
        self._seen_pods: frozenset[PodRef] = frozenset()
        self._learned = LearnedLimits()
        self._compiled: Compiled | None = None
        self._upstreams: tuple[UpstreamPolicy, ...] = ()
        self._quotas: dict[str, QuotaPolicy] = {}
        self._splits: dict[str, SplitPolicy] = {}
        self._rolling: frozenset[str] = frozenset()
        self._scopes: dict[str, frozenset[str]] = {}
        self._swept_at = now

    # --- what the loop tells ----------------------------------------------------------------------------------------

    def lead(self, leading: bool, now: float) -> None:
        """Begin anew as leader; what an earlier leader granted is learnt from the reports."""
        if leading:
            fresh, self._fresh = self._fresh, False  # the second time there was a leader before
            self._allocator = Allocator(now=now, fresh=fresh)
            self._users = UserLeases(now=now, fresh=fresh)
            self._by_instance.clear()
            self._by_pod.clear()
            self.counts = CountLedger()
            self.spending = Spending(known=fresh)
            if self._compiled is not None:
                self._configure(self._compiled, now)

    def adopt(self, compiled: Compiled, now: float) -> None:
        """Learn what is in force."""
        if compiled is not self._compiled:
            self._compiled = compiled
            self._configure(compiled, now)
        elif self._effective(compiled, now) != self._upstreams:
            self._share_out(compiled, now)
        if now - self._swept_at > SILENT_SECONDS:
            self._sweep(now)

    def present(self, pods: Collection[PodRef], now: float, unix_now: float) -> None:
        """Learn which pods there are; only of one that was there before does its absence mean anything.

        A pod that was removed by force may go on for as long as its lease lasts, so it is believed to be gone only
        once it has been silent for that long. Then nothing of it is in flight any more.
        """
        missing = self._seen_pods.difference(pods)
        over = set()
        for pod in missing:
            instance = self._by_pod.get(pod)
            sidecar = self._by_instance.get(instance) if instance is not None else None
            if sidecar is None or now - sidecar.heard_at > with_slack(LEASE_SECONDS):
                over.add(pod)
                if instance is not None:
                    del self._by_pod[pod]
                    self._gone(instance, now, unix_now)
        self._seen_pods = frozenset((*pods, *(missing - over)))
        self.spending.sweep(unix_now)

    def _gone(self, instance: str, now: float, unix_now: float) -> None:
        self._allocator.gone(instance, now)
        self._users.gone(instance, now)
        self.spending.ended(instance, unix_now)
        self._by_instance.pop(instance, None)
        self.counts.forget(instance)

    def _effective(self, compiled: Compiled, now: float) -> tuple[UpstreamPolicy, ...]:
        """Return the upstreams with the limits that are in force: none above what the account itself allows."""
        return tuple(with_learned(each, self._learned.limits(each.key, now)) for each in compiled.upstreams)

    def _share_out(self, compiled: Compiled, now: float) -> None:
        self._upstreams = self._effective(compiled, now)
        by_upstream = {quota.upstream: quota for quota in compiled.quotas}
        self._allocator.configure(((each, by_upstream.get(each.key)) for each in self._upstreams), now)

    def _configure(self, compiled: Compiled, now: float) -> None:
        self._quotas = {quota.key: quota for quota in compiled.quotas}
        self._share_out(compiled, now)
        self._users.configure(compiled.quotas, now)
        self._scopes = {
            namespace: frozenset(scope_of(quota, each) for quota in snapshot.quotas for each in quota.allocations)
            for namespace, snapshot in compiled.snapshots.items()
        }
        self.spending.configure(compiled.quotas, compiled.snapshots.values())
        splits = [
            (snapshot.namespace, rule.split)
            for snapshot in compiled.snapshots.values()
            for route in snapshot.routes
            for rule in route.rules
            if rule.split is not None
        ]
        self._splits = {split.key: split for _, split in splits}
        self.counts.keep((split.key, split.revision) for _, split in splits)
        self._rolling = frozenset(namespace for namespace, split in splits if 0 < split.weight < 100)

    # --- what sidecars tell -----------------------------------------------------------------------------------------

    def report(self, request: SyncRequest, now: float, unix_now: float) -> SyncResponse:
        """Take in one report and answer it. Repeated and late reports change nothing."""
        namespace = request.pod.namespace
        known = self._by_instance.get(request.instance)
        if known is None and len(self._by_instance) >= MAX_SIDECARS:
            return SyncResponse(sequence=request.sequence)
        if known is None or request.sequence > known.report.sequence:
            if known is None:
                self._replace(request, now, unix_now)
            known = self._by_instance[request.instance] = _Sidecar(request, now)
            known.users = self._answer_users(request, now, unix_now)
            self.counts.report(request.instance, request.counts, first=request.sequence <= 1)
            self.spending.report(namespace, request.instance, request.spends, unix_now)
            self._learned.observe(request.observations, now)
        if request.stopping:
            self._allocator.stop(request.instance, request.sequence, request.demands, now)
            self.spending.ended(request.instance, unix_now)
            self._by_instance.pop(request.instance, None)
            self.counts.forget(request.instance)
            return SyncResponse(sequence=request.sequence)
        leases = self._allocator.exchange(request.instance, request.sequence, request.demands, now, request.heard)
        return SyncResponse(
            sequence=request.sequence,
            leader=self._allocator.name,
            answered_at=now,
            revision=self._revision(namespace),
            leases=leases,
            exhausted=self.spending.exhausted(namespace, unix_now),
            spent=self.spending.shares(namespace, unix_now),
            users=known.users if request.sequence == known.report.sequence else (),
            interval_seconds=self._interval_seconds(request, now),
        )

    def _answer_users(self, request: SyncRequest, now: float, unix_now: float) -> tuple[UserAnswer, ...]:
        reports = self._own(request)
        self.spending.report_users(request.instance, reports, unix_now)
        if request.stopping:
            self._users.stop(request.instance, reports, now)
            return ()
        return tuple(
            msgspec.structs.replace(answer, exhausted=self.spending.exhausted_users(answer.scope, unix_now))
            for answer in self._users.exchange(request.instance, request.sequence, reports, now)
        )

    def _own(self, request: SyncRequest) -> tuple[UserReport, ...]:
        """Return what is reported of users, as far as it concerns allocations that the pod's namespace has."""
        allowed = self._scopes.get(request.pod.namespace, frozenset())
        return tuple(each for each in request.users if each.scope in allowed)

    def _interval_seconds(self, request: SyncRequest, now: float) -> float:
        namespace = request.pod.namespace
        if namespace in self._rolling:
            return BUSY_REPORT_SECONDS
        if self.spending.closing(namespace):
            return min(REPORT_SECONDS, max(BUSY_REPORT_SECONDS, len(self._by_instance) / _MOST_CLOSING_REPORTS))
        news = self._users.interval_seconds(request.users, now) if request.users else None
        seconds = self._allocator.interval_seconds(request.instance, REPORT_SECONDS, BUSY_REPORT_SECONDS)
        return seconds if news is None else min(seconds, news)

    def _replace(self, request: SyncRequest, now: float, unix_now: float) -> None:
        """Take note of a process that is new. In one pod the one before it has ended: kubelet runs them in turn."""
        if not request.pod.uid:
            return
        before = self._by_pod.get(request.pod)
        if before is not None and request.sequence <= 1:
            self._gone(before, now, unix_now)
        if before is None or request.sequence <= 1:
            self._by_pod[request.pod] = request.instance

    def _revision(self, namespace: str) -> str:
        snapshot = self._compiled.snapshots.get(namespace) if self._compiled else None
        return snapshot.revision if snapshot else ""

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        for instance in [name for name, each in self._by_instance.items() if now - each.heard_at > FORGET_SECONDS]:
            del self._by_instance[instance]
            self.counts.forget(instance)
        known = self._seen_pods
        self._by_pod = {pod: name for pod, name in self._by_pod.items() if name in self._by_instance or pod in known}

    # --- what is known ----------------------------------------------------------------------------------------------

    def synced(self, namespace: str, revision: str, now: float) -> tuple[int, int] | None:
        """Return how many sidecars run this revision, of how many that report; None if nobody reports there."""
        revisions = [each.report.revision for each in self._live(now) if each.report.pod.namespace == namespace]
        return (revisions.count(revision), len(revisions)) if revisions else None

    def observation(
        self, split: CanarySplit, synced: tuple[int, int], answers: tuple[WebhookAnswer, ...] = ()
    ) -> Observation:
        """Return what is seen of a rollout. `synced` counts the pods that run the policy that was adopted last."""
        revision = split.status.revision
        known = totals_in(split.status.evidence, split.key, revision)
        stable, candidate = self.counts.arms(split.key, revision, known)
        policy = self._splits.get(split.key)
        return Observation(
            stable=stable,
            candidate=candidate,
            synced_pods=synced[0],
            total_pods=synced[1],
            applied_revision=policy.revision if policy else "",
            applied_weight=policy.weight if policy else 0,
            answers=answers,
        )

    def breakers(self, now: float) -> tuple[tuple[str, BreakerGauge], ...]:
        """Return the breakers that are not closed, with the pods that they are in."""
        return tuple((each.report.pod.name, gauge) for each in self._live(now) for gauge in each.report.breakers)

    def effective_limits(self, upstream: str) -> Limits | None:
        """Return the limits of an upstream as they are shared out; None if it is not in force."""
        return next((each.limits for each in self._upstreams if each.key == upstream), None)

    def reported_limits(self, upstream: str, now: float) -> tuple[ReportedLimits, ...]:
        """Return what an upstream said of its limits within the hour."""
        return reported_limits(self._learned.limits(upstream, now))

    def quota_findings(
        self, quota: str, problems: Iterable[Problem], now: float, unix_now: float
    ) -> tuple[Finding, ...]:
        """Return the conditions of a quota that hang on what is reported, besides the problems of its spec."""
        budgets, gauges = self.spending.assess(quota, unix_now), self._gauges(quota, now)
        found = (
            enforced(self._quotas.get(quota), problems, gauges),
            store_reachable(self._quotas.get(quota), gauges),
            within_budget(budgets, self.spending.budgets(quota)),
            spend_unusual(budgets, self.spending.unusual(quota, unix_now)),
            self._full_service(quota, budgets),
        )
        return tuple(each for each in found if each is not None)

    def _full_service(self, quota: str, budgets: Mapping[str, Assessment]) -> Finding | None:
        policy = self._quotas.get(quota)
        if policy is None or (self.spending.budgets(quota) and not self.spending.known):
            return None
        return full_service(standings(policy, budgets))

    def quota_status(self, quota: str, now: float, unix_now: float) -> QuotaAllocationStatus | None:
        """Return the live figures of a quota; None if it is not in force, or before it is known what was spent.

        Its conditions are empty.
        """
        policy = self._quotas.get(quota)
        if policy is None or (self.spending.budgets(quota) and not self.spending.known):
            return None
        limits = next((each.limits for each in self._upstreams if each.key == policy.upstream), Limits())
        return quota_figures(
            policy,
            limits,
            self._gauges(quota, now),
            self._allocator.granted(policy.upstream, Dimension.REQUESTS),
            self._allocator.granted(policy.upstream, Dimension.TOKENS),
            self.spending.assess(quota, unix_now),
        )

    def _live(self, now: float) -> Iterable[_Sidecar]:
        return (each for each in self._by_instance.values() if now - each.heard_at <= SILENT_SECONDS)

    def _gauges(self, quota: str, now: float) -> dict[str, list[AllocationGauge]]:
        found: dict[str, list[AllocationGauge]] = {}
        for sidecar in self._live(now):
            for gauge in sidecar.report.gauges:
                if gauge.quota == quota:
                    found.setdefault(gauge.allocation, []).append(gauge)
        return found
