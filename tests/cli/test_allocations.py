"""The table of allocations: every figure that the status has, in one line each."""

from __future__ import annotations

from sluice_cli.allocations import HEADER, allocation_rows
from sluice_cli.documents import document
from sluice_core.api.base import ObjectMeta, UpstreamRef
from sluice_core.api.degradation import Cause, Level
from sluice_core.api.quotaallocation import Allocation, QuotaAllocation, QuotaAllocationSpec
from sluice_core.api.quotaallocation_status import AllocationStatus, QuotaAllocationStatus

CHAT = AllocationStatus(
    name="chat",
    level=Level.ECONOMY,
    level_cause=Cause.BUDGET,
    pods=3,
    granted_requests_per_minute=600,
    granted_tokens_per_minute=90_000,
    used_requests=412,
    used_tokens=80_123,
    waiting=4,
    refused=2,
    degraded=5,
    spent_today_usd="12.5",
    spent_month_usd="310.07",
    resets_at="2026-11-21T23:00:00Z",
    runs_out_at="2026-11-21T19:35:00Z",
)


def quota(*allocations: AllocationStatus) -> QuotaAllocation:
    spec = QuotaAllocationSpec(upstream_ref=UpstreamRef(name="openai"), allocations=(Allocation(name="chat"),))
    return QuotaAllocation(
        metadata=ObjectMeta(name="openai", namespace="default"),
        spec=spec,
        status=QuotaAllocationStatus(allocations=allocations),
    )


def test_a_row_tells_capacity_and_money() -> None:
    """What is granted, used, waiting, refused, degraded, spent by day and month, when it resets and runs out."""
    (row,) = allocation_rows([document(quota(CHAT))])
    assert dict(zip(HEADER, row, strict=True)) == {
        "ALLOCATION": "openai/chat",
        "LEVEL": "Economy (Budget)",
        "PODS": "3",
        "GRANTED RPM": "600",
        "GRANTED TPM": "90000",
        "USED RPM": "412",
        "USED TPM": "80123",
        "WAITING": "4",
        "REFUSED": "2",
        "DEGRADED": "5",
        "TODAY $": "12.5",
        "THIS MONTH $": "310.07",
        "RESETS": "2026-11-21T23:00:00Z",
        "RUNS OUT": "2026-11-21T19:35:00Z",
    }


def test_without_a_budget_nothing_is_said_of_money() -> None:
    """Nought would look as if nothing had been spent."""
    (row,) = allocation_rows([document(quota(AllocationStatus(name="chat")))])
    assert row[-4:] == ("", "", "", "")
    assert row[1:-4] == ("", *("0",) * 8)
    assert allocation_rows([document(quota())]) == []
