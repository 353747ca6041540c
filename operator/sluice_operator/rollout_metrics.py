"""Metrics of rollouts: where each stands and what its figures say, from its status; what was decided, as it happens.

Labels are names of resources and closed sets. Both are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.core import Metric as Family

from sluice_core.api.base import ConditionStatus
from sluice_core.api.canarysplit_status import CanarySplit, Phase, Verdict
from sluice_core.rollout.gauges import MetricGauge, gauges_of
from sluice_core.rollout.observation import Plan

MAX_ROLLOUTS: Final = 1000
DECISIONS: Final = (
    "RolloutStarted",
    "WeightChanged",
    "AwaitingGate",
    "Paused",
    "Resumed",
    "Promoted",
    "RolledBack",
    "Aborted",
    "StepDeadlineExceeded",
    "RequestIgnored",
)
_TAKEN_BACK: Final = frozenset({"RolledBack", "Aborted"})
_NAMES: Final = ("namespace", "name")
_METRIC: Final = (*_NAMES, "metric")


class Decisions:
    """Counts the decisions of this leader, and times how long a rollback takes to reach every pod."""

    __slots__ = ("_clock", "_counts", "_under_way", "rollback_seconds", "rollbacks")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: dict[str, dict[str, int]] = {}
        self._under_way: dict[str, float] = {}
        self.rollbacks = 0
        self.rollback_seconds = 0.0

    def stored(self, split: str, plan: Plan) -> None:
        """Learn of a plan for a split, by its key, that is stored and thus decided."""
        counts = self._counts.get(split)
        if counts is None:
            if len(self._counts) >= MAX_ROLLOUTS:
                return
            counts = self._counts[split] = dict.fromkeys(DECISIONS, 0)
        for event in plan.events:
            if event.reason in counts:
                counts[event.reason] += 1
            if event.reason in _TAKEN_BACK:
                self._under_way[split] = self._clock()

    def seen(self, split: str, plan: Plan) -> None:
        """Learn of any plan for a split: it tells whether all pods follow by now."""
        began = self._under_way.get(split)
        if began is None:
            return
        if plan.status.weight > 0:  # another rollout has begun meanwhile
            del self._under_way[split]
        elif any(
            each.type == "ConfigSynced" and each.status is ConditionStatus.TRUE for each in plan.status.conditions
        ):
            del self._under_way[split]
            self.rollbacks += 1
            self.rollback_seconds += self._clock() - began

    def keep(self, splits: Collection[str]) -> None:
        """Forget all other splits."""
        self._counts = {split: counts for split, counts in self._counts.items() if split in splits}
        self._under_way = {split: began for split, began in self._under_way.items() if split in splits}

    def counts(self) -> Iterator[tuple[str, str, int]]:
        """Return split, decision and how often."""
        for split, counts in self._counts.items():
            for decision, count in counts.items():
                yield split, decision, count


def rollout_families(splits: Iterable[CanarySplit], decisions: Decisions) -> Iterator[Family]:
    """Return all families about these rollouts."""
    shown = list(islice(splits, MAX_ROLLOUTS))
    yield from _standing(shown)
    yield from _figures(shown)
    yield from _decided(decisions)


def _standing(splits: list[CanarySplit]) -> Iterator[Family]:
    weight = GaugeMetricFamily(
        "sluice_rollout_weight_percent", "Share of users on the candidate, as decided.", labels=_NAMES
    )
    applied = GaugeMetricFamily(
        "sluice_rollout_applied_weight_percent", "Share of users on the candidate in every pod.", labels=_NAMES
    )
    step = GaugeMetricFamily("sluice_rollout_step", "Number of the present step, 0 before the first.", labels=_NAMES)
    phase = GaugeMetricFamily(
        "sluice_rollout_phase", "1 for the present phase, 0 for the others.", labels=(*_NAMES, "phase")
    )
    verdict = GaugeMetricFamily(
        "sluice_rollout_verdict", "1 for the present verdict, 0 for the others.", labels=(*_NAMES, "verdict")
    )
    for split in splits:
        names, status = [split.metadata.namespace, split.metadata.name], split.status
        weight.add_metric(names, status.weight)
        applied.add_metric(names, status.applied_weight)
        step.add_metric(names, status.step_number)
        for each in Phase:
            phase.add_metric([*names, each.value], status.phase is each)
        for said in Verdict:
            verdict.add_metric([*names, said.value], status.verdict is said)
    yield from (weight, applied, step, phase, verdict)


def _figures(splits: list[CanarySplit]) -> Iterator[Family]:
    figure = GaugeMetricFamily(
        "sluice_rollout_figure",
        "Figure of a metric by arm: a share (0 to 1), seconds, US dollars, tokens or a score.",
        labels=(*_METRIC, "arm"),
    )
    limit = GaugeMetricFamily(
        "sluice_rollout_limit_percent",
        "What a metric allows: increase over stable, decrease of a score, or the error ceiling.",
        labels=_METRIC,
    )
    evidence = GaugeMetricFamily(
        "sluice_rollout_evidence", "How strongly a metric's figures speak of harm.", labels=_METRIC
    )
    threshold = GaugeMetricFamily(
        "sluice_rollout_evidence_threshold", "Evidence at which the candidate is taken back.", labels=_METRIC
    )
    needed = GaugeMetricFamily(
        "sluice_rollout_needed_requests", "Candidate requests that a metric still needs.", labels=_METRIC
    )
    for split in splits:
        for gauge in gauges_of(split):
            names = [split.metadata.namespace, split.metadata.name, gauge.metric.value]
            _add_figures(figure, names, gauge)
            limit.add_metric(names, gauge.limit_percent)
            evidence.add_metric(names, gauge.evidence)
            threshold.add_metric(names, gauge.threshold)
            needed.add_metric(names, gauge.needed_requests)
    yield from (figure, limit, evidence, threshold, needed)


def _add_figures(family: GaugeMetricFamily, names: list[str], gauge: MetricGauge) -> None:
    for arm, value in (("stable", gauge.stable), ("candidate", gauge.candidate)):
        if value is not None:
            family.add_metric([*names, arm], value)


def _decided(decisions: Decisions) -> Iterator[Family]:
    counts = CounterMetricFamily(
        "sluice_rollout_decisions", "Decisions of this leader, by what was decided.", labels=(*_NAMES, "decision")
    )
    for split, decision, count in decisions.counts():
        namespace, _, name = split.partition("/")
        counts.add_metric([namespace, name, decision], count)
    yield counts
    yield SummaryMetricFamily(
        "sluice_rollout_rollback_seconds",
        "Seconds from the decision to take a candidate back until every pod follows.",
        count_value=decisions.rollbacks,
        sum_value=decisions.rollback_seconds,
    )
