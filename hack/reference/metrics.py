"""The page of all metrics, from the very collectors that the processes serve."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from reference.markdown import code, table
from reference.markdown import page as whole_page
from sluice_core.spending import Spending
from sluice_operator.alerts import AlertCalls
from sluice_operator.budgets import Budgets
from sluice_operator.events import Events
from sluice_operator.injector_server import InjectorMetrics
from sluice_operator.metrics import Metrics as OperatorMetrics
from sluice_operator.resource_metrics import BudgetMetrics, ResourceMetrics
from sluice_operator.spend_store import SpendStore
from sluice_operator.world import World
from sluice_sidecar.governor import Governor
from sluice_sidecar.report import readings
from sluice_sidecar.settings import Settings
from sluice_sidecar.telemetry.records import RecordWriter
from sluice_sidecar.telemetry.series import AttemptCollector, CallCollector

_HEADER = ("Metric", "Type", "Labels", "Meaning")
Row = tuple[str, str, str, str]


def page() -> str:
    """Return the page."""
    governor = Governor(Settings(), time.monotonic, RecordWriter(io.BytesIO()))
    operator = [
        *_registered(OperatorMetrics().registry),
        *_families(ResourceMetrics(tuple, lambda: True).collect()),
        *_families(BudgetMetrics(_budgets()).collect()),
    ]
    return whole_page(
        "Metrics",
        "Names as they are scraped. Histograms also have `_bucket`, `_sum` and `_count`. The standard `process_*` "
        "metrics are served besides these.",
        "## Sidecar, port 4142, `/metrics`",
        table(_HEADER, [*_registered(governor.metrics.registry), *_live(governor)]),
        "## Operator",
        "Those of rollouts and allocations are served by the leading replica alone, so that sums are right.",
        table(_HEADER, operator),
        "## Injector",
        table(_HEADER, _registered(InjectorMetrics().registry)),
    )


def _budgets() -> Budgets:
    """Return the bookkeeping of a process that speaks to nobody."""
    nobody: Any = None
    store, events = SpendStore(nobody, "", clock=time.monotonic), Events(nobody, identity="", wall=time.time)
    return Budgets(lambda: Spending(known=True), store, World(), events, AlertCalls(), wall=time.time)


def _row(name: str, type_: str, labels: Iterable[str], text: str) -> Row:
    suffix = "_total" if type_ == "counter" and not name.endswith("_total") else ""
    return code(name + suffix), type_, ", ".join(code(label) for label in labels), text


def _registered(registry: CollectorRegistry) -> Iterator[Row]:
    for collector in vars(registry)["_collector_to_names"]:
        if isinstance(collector, MetricWrapperBase):
            (family,) = collector.describe()
            yield _row(family.name, family.type, vars(collector)["_labelnames"], family.documentation)
        elif isinstance(collector, AttemptCollector | CallCollector):
            yield from _families(collector.collect())


def _families(families: Iterable[Metric]) -> Iterator[Row]:
    for family in families:
        yield _row(family.name, family.type, vars(family)["_labelnames"], family.documentation)


def _live(governor: Governor) -> Iterator[Row]:
    for name, text, labels, _ in readings(governor):
        yield _row(name, "counter" if name.endswith("_total") else "gauge", labels, text)
