"""A status as it is written is one that the API server takes: of the schema's shape, and within its bounds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sluice_core.api import crd
from sluice_core.api.base import Condition, ConditionStatus, Status, UpstreamRef
from sluice_core.api.canarysplit import ArmSpec
from sluice_core.api.canarysplit_status import (
    ArmFigures,
    CanarySplitStatus,
    MetricStatus,
    Phase,
    RolloutRecord,
    Verdict,
    WebhookStatus,
)
from sluice_core.api.modelroute import ModelRouteSpec, ModelRouteStatus, RouteRule, Target, targets_text
from sluice_core.api.quotaallocation_status import AllocationStatus, QuotaAllocationStatus
from sluice_core.api.schema import status_schema
from sluice_core.api.upstream import Limits, UpstreamStatus
from sluice_core.api.validation import _schema_errors

READY = Condition(
    type="Ready",
    status=ConditionStatus.TRUE,
    reason="InForce",
    message="All pods run this.",
    last_transition_time="2026-01-01T00:00:00Z",
    observed_generation=2,
)
COMMON: dict[str, Any] = {"conditions": (READY,), "observed_generation": 2}
ARM = ArmSpec(version="v1", overrides={"temperature": 0.5, "stop": ["END"], "metadata": {"a": 1}})

STATUSES: list[tuple[str, Status]] = [
    *[(kind.name, kind.status()) for kind in crd.KINDS],
    ("Upstream", UpstreamStatus(**COMMON, credentials="2/2", effective_limits=Limits(requests_per_minute=0))),
    ("QuotaAllocation", QuotaAllocationStatus(**COMMON, allocations=(AllocationStatus(name="chat", pods=2),))),
    ("ModelRoute", ModelRouteStatus(**COMMON, targets="openai/gpt-4.1", pods=3, synced_pods="3/3")),
    (
        "CanarySplit",
        CanarySplitStatus(
            **COMMON,
            phase=Phase.PROGRESSING,
            weight=25,
            stable=ArmFigures(version="v1", requests=10, p95_milliseconds=800),
            candidate=ArmFigures(version="v2"),
            verdict=Verdict.INSUFFICIENT_DATA,
            metrics=(MetricStatus(name="errorRate"),),
            webhooks=(WebhookStatus(name="quality", answer="Wait"),),
            stable_arm=ARM,
            previous_arm=ARM,
            consumed_requests={"promote": "token"},
            history=(RolloutRecord(revision="abc-1", result="Promoted"),),
        ),
    ),
]


@pytest.mark.parametrize(("kind", "status"), STATUSES)
def test_a_status_fits_its_schema(kind: str, status: Status) -> None:
    """Nothing that the operator writes is refused or silently dropped."""
    written = msgspec.json.decode(msgspec.json.encode(status))
    assert list(_schema_errors(status_schema(crd.BY_NAME[kind].status), written, "status")) == []


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        ([("openai", "gpt-4.1")], "openai/gpt-4.1"),
        ([("openai", None)], "openai"),
        ([("openai", "a"), ("azure", "a"), ("openai", "a")], "openai/a, azure/a"),
        ([("openai", each) for each in "abcde"], "openai/a, openai/b, openai/c and 2 more"),
        ([("o", "m" * 128 + str(number)) for number in range(3)], "o/" + "m" * 128 + "0, o/" + "m" * 120 + "…"),
    ],
)
def test_a_route_says_where_it_goes(targets: list[tuple[str, str | None]], text: str) -> None:
    """Each target once, in the order of the rules, and never more than the schema takes."""
    made = tuple(
        RouteRule(name=f"r{number}", targets=(Target(upstream_ref=UpstreamRef(name=name), model=model),))
        for number, (name, model) in enumerate(targets)
    )
    assert targets_text(ModelRouteSpec(rules=made)) == text
