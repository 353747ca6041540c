"""The operator's own metrics. Labels come from closed sets; nothing is labelled by pod or user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from sluice_operator.reconcile import Reconciler


class Metrics:
    """Counts what the loop does."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leader = Gauge("sluice_operator_leader", "Whether this replica leads: 1 or 0.", registry=self.registry)
        self.failed_rounds = Counter(
            "sluice_operator_failed_rounds", "Rounds of the loop that ended in a fault.", registry=self.registry
        )
        self.watch_faults = Counter(
            "sluice_operator_watch_faults",
            "Times that the watches ended with a fault and were begun anew; listings every few seconds go on.",
            registry=self.registry,
        )
        self.rounds = Histogram(
            "sluice_operator_round_seconds",
            "Duration of a round of the loop.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=self.registry,
        )
        self.writes = Counter("sluice_operator_writes", "Objects written, by type.", ["type"], registry=self.registry)
        self.conflicts = Counter(
            "sluice_operator_conflicts", "Status writes that gave way to somebody's change.", registry=self.registry
        )
        self.rollout_faults = Counter(
            "sluice_operator_rollout_faults", "Rollouts that a round stumbled over.", registry=self.registry
        )
        self.problems = Gauge(
            "sluice_operator_problems", "Problems told in the status of resources.", registry=self.registry
        )
        self.uninjected_pods = Gauge(
            "sluice_operator_uninjected_pods", "Pods that lack their sidecar.", registry=self.registry
        )
        self._counted: dict[Counter, int] = {}

    def observe_round(self, reconciler: Reconciler, leading: bool, seconds: float) -> None:
        """Take in one round."""
        self.leader.set(leading)
        self.rounds.observe(seconds)
        self._advance(self.writes.labels(type="policy"), reconciler.policies.writes)
        self._advance(self.writes.labels(type="credentials"), reconciler.credentials.writes)
        self._advance(self.writes.labels(type="status"), reconciler.statuses.writes)
        self._advance(self.conflicts, reconciler.statuses.conflicts)
        self._advance(self.rollout_faults, reconciler.faults)
        self.uninjected_pods.set(reconciler.uninjected if leading else 0)
        self.problems.set(reconciler.problems if leading else 0)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _advance(self, counter: Counter, total: int) -> None:
        counter.inc(total - self._counted.get(counter, 0))
        self._counted[counter] = total
