"""Metrics of rollouts and quotas, read from what the leader has stored in their statuses.

Labels are names of resources: few, chosen by the platform's own people, and bounded here all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sluice_core.api.canarysplit_status import CanarySplit, Verdict
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_operator.world import World

MAX_RESOURCES: Final = 1000
_RESOURCE: Final = ("namespace", "name")


class ResourceMetrics(Collector):
    """Collects at each scrape. Only the leader shows them, so that sums over replicas are right."""

    def __init__(self, world: World, leading: Callable[[], bool]) -> None:
        self._world = world
        self._leading = leading

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return nothing: what is collected depends on the cluster."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return all families."""
        if not self._leading():
            return
        resources = [held.resource for held in self._world.held()]
        yield from _splits(list(islice((each for each in resources if isinstance(each, CanarySplit)), MAX_RESOURCES)))
        yield from _quotas(
            list(islice((each for each in resources if isinstance(each, QuotaAllocation)), MAX_RESOURCES))
        )


def _splits(splits: list[CanarySplit]) -> Iterator[GaugeMetricFamily]:
    weight = GaugeMetricFamily(
        "sluice_rollout_weight_percent", "Share of users on the candidate, as decided.", labels=_RESOURCE
    )
    applied = GaugeMetricFamily(
        "sluice_rollout_applied_weight_percent", "Share of users on the candidate in every pod.", labels=_RESOURCE
    )
    verdict = GaugeMetricFamily(
        "sluice_rollout_verdict", "1 for the present verdict, 0 for the others.", labels=(*_RESOURCE, "verdict")
    )
    needed = GaugeMetricFamily(
        "sluice_rollout_needed_requests", "Candidate requests that a metric still needs.", labels=(*_RESOURCE, "metric")
    )
    for split in splits:
        names = [split.metadata.namespace, split.metadata.name]
        weight.add_metric(names, split.status.weight)
        applied.add_metric(names, split.status.applied_weight)
        for each in Verdict:
            verdict.add_metric([*names, each.value], split.status.verdict is each)
        for metric in split.status.metrics:
            needed.add_metric([*names, metric.name], metric.needed_requests)
    yield from (weight, applied, verdict, needed)


def _quotas(quotas: list[QuotaAllocation]) -> Iterator[GaugeMetricFamily]:
    labels = (*_RESOURCE, "allocation")
    granted = GaugeMetricFamily(
        "sluice_allocation_granted_per_minute", "Leased to pods, by unit.", labels=(*labels, "unit")
    )
    used = GaugeMetricFamily("sluice_allocation_used", "Use in the last minute, by unit.", labels=(*labels, "unit"))
    waiting = GaugeMetricFamily("sluice_allocation_waiting", "Calls waiting in line.", labels=labels)
    for quota in quotas:
        for each in quota.status.allocations:
            names = [quota.metadata.namespace, quota.metadata.name, each.name]
            granted.add_metric([*names, "requests"], each.granted_requests_per_minute)
            granted.add_metric([*names, "tokens"], each.granted_tokens_per_minute)
            used.add_metric([*names, "requests"], each.used_requests)
            used.add_metric([*names, "tokens"], each.used_tokens)
            waiting.add_metric(names, each.waiting)
    yield from (granted, used, waiting)
