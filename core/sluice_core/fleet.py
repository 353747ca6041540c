"""The leader's memory of the sidecars: who reports, what runs where, what all pods together have counted and hold.

Synchronous and pure: `now` is monotonic seconds, `now_unix` seconds since 1970. A leader that takes over begins with an
empty one, learns from the reports, and takes what must not be forgotten from the resources' statuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.quotaallocation import QuotaAllocationStatus
from sluice_core.api.upstream import Limits
from sluice_core.compile import Compiled
from sluice_core.limits.allocator import Allocator
from sluice_core.limits.keys import Dimension
from sluice_core.quota_figures import quota_figures
from sluice_core.rollout.evidence import totals_in
from sluice_core.rollout.merge import CountLedger
from sluice_core.rollout.observation import Observation, WebhookAnswer
from sluice_core.snapshot import QuotaPolicy, SplitPolicy, UpstreamPolicy
from sluice_core.sync import AllocationGauge, BreakerGauge, SyncRequest, SyncResponse

SILENT_SECONDS: Final = 20.0
"""A sidecar that has not reported for so long does not count as running any revision."""

FORGET_SECONDS: Final = 120.0
MAX_SIDECARS: Final = 20_000
REPORT_SECONDS: Final = 5.0
BUSY_REPORT_SECONDS: Final = 1.0
"""Between reports while a rollout is under way: harm has to be seen within seconds."""


class _Sidecar:
    """One process that reports."""

    __slots__ = ("heard_at", "report")

    def __init__(self, report: SyncRequest, heard_at: float) -> None:
        self.report = report
        self.heard_at = heard_at


class Fleet:
    """All sidecars that report to this leader."""

    __slots__ = (
        "_allocator",
        "_by_instance",
        "_compiled",
        "_fresh",
        "_quotas",
        "_rolling",
        "_splits",
        "_swept_at",
        "_upstreams",
        "counts",
    )

    def __init__(self, *, now: float, fresh: bool = False) -> None:
        """Begin without knowledge; `fresh` says that there never was a leader before."""
        self.counts = CountLedger()
        self._fresh = fresh
        self._allocator = Allocator(now=now, fresh=fresh)
        self._by_instance: dict[str, _Sidecar] = {}
        self._compiled: Compiled | None = None
        self._upstreams: tuple[UpstreamPolicy, ...] = ()
        self._quotas: dict[str, QuotaPolicy] = {}
        self._splits: dict[str, SplitPolicy] = {}
        self._rolling: frozenset[str] = frozenset()
        self._swept_at = now

    # --- what the loop tells ----------------------------------------------------------------------------------------

    def lead(self, leading: bool, now: float) -> None:
        """Begin anew as leader; what an earlier leader granted is learnt from the reports."""
        if leading:
            self._allocator = Allocator(now=now, fresh=self._fresh)
            self._by_instance.clear()
            self.counts = CountLedger()
            if self._compiled is not None:
                self._configure(self._compiled, now)

    def adopt(self, compiled: Compiled, pods: Mapping[str, int], now: float) -> None:
        """Learn what is in force. `pods` are those with a sidecar, by namespace."""
        del pods  # the compiler has sized the safe shares by them
        if compiled is not self._compiled:
            self._compiled = compiled
            self._configure(compiled, now)
        if now - self._swept_at > SILENT_SECONDS:
            self._sweep(now)

    def _configure(self, compiled: Compiled, now: float) -> None:
        self._upstreams = compiled.upstreams
        self._quotas = {quota.key: quota for quota in compiled.quotas}
        by_upstream = {quota.upstream: quota for quota in compiled.quotas}
        self._allocator.configure(((each, by_upstream.get(each.key)) for each in compiled.upstreams), now)
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

    def report(self, request: SyncRequest, now: float) -> SyncResponse:
        """Take in one report and answer it. Repeated and late reports change nothing."""
        known = self._by_instance.get(request.instance)
        if known is None and len(self._by_instance) >= MAX_SIDECARS:
            return SyncResponse(sequence=request.sequence)
        if known is None or request.sequence > known.report.sequence:
            self._by_instance[request.instance] = _Sidecar(request, now)
            self.counts.report(request.instance, request.counts, first=request.sequence <= 1)
        if request.stopping:
            self._allocator.stop(request.instance, request.sequence, request.demands, now)
            self._by_instance.pop(request.instance, None)
            self.counts.forget(request.instance)
            return SyncResponse(sequence=request.sequence)
        leases = self._allocator.exchange(request.instance, request.sequence, request.demands, now)
        return SyncResponse(
            sequence=request.sequence,
            revision=self._revision(request.pod.namespace),
            leases=leases,
            interval_seconds=BUSY_REPORT_SECONDS if request.pod.namespace in self._rolling else REPORT_SECONDS,
        )

    def _revision(self, namespace: str) -> str:
        snapshot = self._compiled.snapshots.get(namespace) if self._compiled else None
        return snapshot.revision if snapshot else ""

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        for instance in [name for name, each in self._by_instance.items() if now - each.heard_at > FORGET_SECONDS]:
            del self._by_instance[instance]
            self.counts.forget(instance)

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

    def quota_status(self, quota: str, now: float) -> QuotaAllocationStatus | None:
        """Return the live figures of a quota; None if it is not in force. Its conditions are empty."""
        policy = self._quotas.get(quota)
        if policy is None:
            return None
        limits = next((each.limits for each in self._upstreams if each.key == policy.upstream), Limits())
        return quota_figures(
            policy,
            limits,
            self._gauges(quota, now),
            self._allocator.granted(policy.upstream, Dimension.REQUESTS),
            self._allocator.granted(policy.upstream, Dimension.TOKENS),
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
