"""Metrics of rollouts and quotas, read from what the leader has stored in their statuses.

Labels are names of resources: few, chosen by the platform's own people, and bounded here all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sluice_core.api.base import ConditionStatus
from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.enforcement import ENFORCED, SPEND_UNUSUAL, WITHIN_BUDGET
from sluice_core.service import FULL_SERVICE
from sluice_operator.rollout_metrics import Decisions, rollout_families

if TYPE_CHECKING:  # local mode has these metrics too, and no client of an API server
    from sluice_operator.budgets import Budgets

MAX_RESOURCES: Final = 1000
_RESOURCE: Final = ("namespace", "name")
_SHOWN: Final = (ENFORCED, WITHIN_BUDGET, SPEND_UNUSUAL, FULL_SERVICE)


class ResourceMetrics(Collector):
    """Collects at each scrape. Only the leader shows them, so that sums over replicas are right.

    Args:
        resources: returns all resources that can be read, with their statuses.
        leading: tells whether this process leads.
        decisions: what this process has decided on rollouts.
    """

    def __init__(
        self,
        resources: Callable[[], Iterable[object]],
        leading: Callable[[], bool],
        decisions: Decisions | None = None,
    ) -> None:
        self._resources = resources
        self._leading = leading
        self._decisions = decisions or Decisions(time.monotonic)

    def describe(self) -> Iterator[Metric]:
        """Return nothing: what is collected depends on the cluster."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return all families."""
        if not self._leading():
            return
        resources = list(self._resources())
        yield from rollout_families((each for each in resources if isinstance(each, CanarySplit)), self._decisions)
        yield from _quotas(
            list(islice((each for each in resources if isinstance(each, QuotaAllocation)), MAX_RESOURCES))
        )


def _quotas(quotas: list[QuotaAllocation]) -> Iterator[GaugeMetricFamily]:
    labels = (*_RESOURCE, "allocation")
    granted = GaugeMetricFamily(
        "sluice_allocation_granted_per_minute", "Leased to pods, by unit.", labels=(*labels, "unit")
    )
    used = GaugeMetricFamily("sluice_allocation_used", "Use in the last minute, by unit.", labels=(*labels, "unit"))
    waiting = GaugeMetricFamily("sluice_allocation_waiting", "Calls waiting in line.", labels=labels)
    spent = GaugeMetricFamily(
        "sluice_allocation_spent_usd", "US dollars spent, of allocations with a budget.", labels=(*labels, "window")
    )
    runs_out = GaugeMetricFamily(
        "sluice_allocation_runs_out", "Whether the budget will be spent before its window ends: 1 or 0.", labels=labels
    )
    holds = GaugeMetricFamily(
        "sluice_quota_condition", "1 if the condition is True, else 0.", labels=(*_RESOURCE, "type", "reason")
    )
    for quota in quotas:
        for each in quota.status.allocations:
            names = [quota.metadata.namespace, quota.metadata.name, each.name]
            granted.add_metric([*names, "requests"], each.granted_requests_per_minute)
            granted.add_metric([*names, "tokens"], each.granted_tokens_per_minute)
            used.add_metric([*names, "requests"], each.used_requests)
            used.add_metric([*names, "tokens"], each.used_tokens)
            waiting.add_metric(names, each.waiting)
            if each.resets_at:  # only an allocation with a budget has a window
                spent.add_metric([*names, "day"], float(each.spent_today_usd))
                spent.add_metric([*names, "month"], float(each.spent_month_usd))
                runs_out.add_metric(names, bool(each.runs_out_at))
        for condition in quota.status.conditions:
            if condition.type in _SHOWN:
                names = [quota.metadata.namespace, quota.metadata.name, condition.type, condition.reason]
                holds.add_metric(names, condition.status is ConditionStatus.TRUE)
    yield from (granted, used, waiting, spent, runs_out, holds)


class BudgetMetrics(Collector):
    """Counts what has been told about budgets."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Return nothing: the reasons are those that have occurred."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return all families."""
        budgets = self._budgets
        alerts = CounterMetricFamily("sluice_budget_alerts", "Alerts about budgets, by reason.", labels=("reason",))
        for reason, count in budgets.alerts.items():
            alerts.add_metric([reason], count)
        calls = CounterMetricFamily("sluice_alert_calls", "Calls of alert addresses, by result.", labels=("result",))
        calls.add_metric(["Delivered"], budgets.calls.delivered)
        calls.add_metric(["Failed"], budgets.calls.failed)
        pending = GaugeMetricFamily("sluice_alerts_pending", "Alerts that not everybody has been told of yet.")
        pending.add_metric([], budgets.pending)
        lost = CounterMetricFamily("sluice_alerts_lost", "Alerts that found no room among those that are pending.")
        lost.add_metric([], budgets.lost)
        stored = CounterMetricFamily("sluice_spend_writes", "Writes of what was spent.")
        stored.add_metric([], budgets.store.writes)
        unreadable = CounterMetricFamily("sluice_spend_unreadable", "Stored spends that could not be read.")
        unreadable.add_metric([], budgets.store.unreadable)
        yield from (alerts, calls, pending, lost, stored, unreadable)
