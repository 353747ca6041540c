"""What is observed about a QuotaAllocation: live figures of each allocation, and in one line for the whole."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from sluice_core.api.base import Status, Value, keyed_by
from sluice_core.api.degradation import Cause, Level


class AllocationStatus(Value, frozen=True, kw_only=True):
    """Live figures of one allocation, over all its pods."""

    name: Annotated[str, Meta(max_length=63, description="Name of the allocation.")]
    level: Annotated[Level | None, Meta(description="Level of service, by hand and by what is spent.")] = None
    level_cause: Annotated[Cause | None, Meta(description="Why it is below Full.")] = None
    pods: Annotated[int, Meta(ge=0, description="Pods that use it.")] = 0
    granted_requests_per_minute: Annotated[int, Meta(ge=0, description="Requests per minute leased to its pods.")] = 0
    granted_tokens_per_minute: Annotated[int, Meta(ge=0, description="Tokens per minute leased to its pods.")] = 0
    used_requests: Annotated[int, Meta(ge=0, description="Requests in the last minute.")] = 0
    used_tokens: Annotated[int, Meta(ge=0, description="Tokens in the last minute.")] = 0
    waiting: Annotated[int, Meta(ge=0, description="Calls waiting in line.")] = 0
    refused: Annotated[int, Meta(ge=0, description="Calls refused in the last minute; in Shadow, would be.")] = 0
    degraded: Annotated[
        int,
        Meta(ge=0, description="Calls of the last minute that became cheaper, or were answered without an upstream."),
    ] = 0
    spent_today_usd: Annotated[str, Meta(max_length=24, description="US dollars spent today.")] = "0"
    spent_month_usd: Annotated[str, Meta(max_length=24, description="US dollars spent this month.")] = "0"
    resets_at: Annotated[
        str,
        Meta(max_length=40, description="When the budget starts anew; once it is spent, when it may be used again."),
    ] = ""
    runs_out_at: Annotated[
        str,
        Meta(
            max_length=40,
            description="When the budget will be spent at the present rate, or was spent; empty if it lasts.",
        ),
    ] = ""


class QuotaAllocationStatus(Status, frozen=True, kw_only=True):
    """What is observed about a quota."""

    level: Annotated[Level | None, Meta(description="Level of service of the allocation that gets least.")] = None
    granted: Annotated[str, Meta(max_length=64, description="Capacity leased of capacity there is.")] = ""
    used: Annotated[str, Meta(max_length=64, description="Use in the last minute.")] = ""
    spent: Annotated[str, Meta(max_length=64, description="US dollars spent, of the budget.")] = ""
    resets_at: Annotated[str, Meta(max_length=40, description="When the next budget window starts.")] = ""
    synced_pods: Annotated[
        str, Meta(max_length=32, description='Pods that run the current policy, such as "12/12".')
    ] = ""
    allocations: Annotated[
        tuple[AllocationStatus, ...],
        Meta(max_length=64, description="Live figures of each allocation.", extra_json_schema=keyed_by("name")),
    ] = ()
