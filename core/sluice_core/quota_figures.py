"""The figures of a quota as people read them in its status: per allocation, and in one line for the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sluice_core.api.quotaallocation import AllocationStatus, QuotaAllocationStatus
from sluice_core.api.upstream import Limits
from sluice_core.limits.allocator import Granted
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy
from sluice_core.sync import AllocationGauge

NOTHING = Granted()


def quota_figures(
    quota: QuotaPolicy,
    limits: Limits,
    gauges: Mapping[str, Sequence[AllocationGauge]],
    requests: Mapping[str, Granted],
    tokens: Mapping[str, Granted],
) -> QuotaAllocationStatus:
    """Return a quota's status without its conditions.

    Args:
        quota: the policy in force.
        limits: those of its upstream.
        gauges: what each pod reports of itself, by allocation.
        requests: what each allocation holds of the requests of a minute.
        tokens: the same of the tokens.
    """
    allocations = tuple(
        _allocation(each, gauges.get(each.name, ()), requests.get(each.name, NOTHING), tokens.get(each.name, NOTHING))
        for each in quota.allocations
    )
    used_requests = sum(each.used_requests for each in allocations)
    used_tokens = sum(each.used_tokens for each in allocations)
    return QuotaAllocationStatus(
        granted=_granted(allocations, limits),
        used=f"{short(used_requests)} rpm {short(used_tokens)} tpm",
        allocations=allocations,
    )


def _allocation(
    policy: AllocationPolicy, gauges: Sequence[AllocationGauge], requests: Granted, tokens: Granted
) -> AllocationStatus:
    return AllocationStatus(
        name=policy.name,
        pods=len(gauges),
        granted_requests_per_minute=requests.granted,
        granted_tokens_per_minute=tokens.granted,
        used_requests=sum(each.used_requests for each in gauges),
        used_tokens=sum(each.used_tokens for each in gauges),
        waiting=sum(each.waiting for each in gauges),
        refused=sum(each.refused for each in gauges),
    )


def _granted(allocations: Sequence[AllocationStatus], limits: Limits) -> str:
    if limits.requests_per_minute:
        granted = sum(each.granted_requests_per_minute for each in allocations)
        return f"{short(granted)}/{short(limits.requests_per_minute)} rpm"
    if limits.tokens_per_minute:
        granted = sum(each.granted_tokens_per_minute for each in allocations)
        return f"{short(granted)}/{short(limits.tokens_per_minute)} tpm"
    return "no limit"


def short(number: int) -> str:
    """Return a number as people read it in a column: 950, 12k, 30M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 10 * size:
            return f"{number // size}{unit}"
    return str(number)
