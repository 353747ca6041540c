"""The figures of a quota as people read them in its status: per allocation, and in one line for the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from sluice_core.api.conditions import rfc3339
from sluice_core.api.quotaallocation import Budget
from sluice_core.api.quotaallocation_status import AllocationStatus, QuotaAllocationStatus
from sluice_core.api.upstream import Limits
from sluice_core.budget import Assessment
from sluice_core.ladder import Standing
from sluice_core.limits.allocator import Granted
from sluice_core.limits.money import MICROS_PER_USD, usd_micros, usd_text
from sluice_core.service import lowest_service, standings
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy
from sluice_core.sync import AllocationGauge

NOTHING = Granted()
_FORECAST_STEP_SECONDS = 300.0
_RATES: Final = (
    "granted_requests_per_minute",
    "granted_tokens_per_minute",
    "used_requests",
    "used_tokens",
    "waiting",
    "refused",
    "degraded",
)


def quota_figures(
    quota: QuotaPolicy,
    limits: Limits,
    gauges: Mapping[str, Sequence[AllocationGauge]],
    requests: Mapping[str, Granted],
    tokens: Mapping[str, Granted],
    money: Mapping[str, Assessment],
) -> QuotaAllocationStatus:
    """Return a quota's status without its conditions.

    Args:
        quota: the policy in force.
        limits: those of its upstream.
        gauges: what each pod reports of itself, by allocation.
        requests: what each allocation holds of the requests of a minute.
        tokens: the same of the tokens.
        money: where each budget stands: the whole's by the quota's key, an allocation's by `key/name`.
    """
    levels = standings(quota, money)
    allocations = tuple(
        _with_money(
            _allocation(
                each,
                levels[each.name],
                gauges.get(each.name, ()),
                requests.get(each.name, NOTHING),
                tokens.get(each.name, NOTHING),
            ),
            money.get(f"{quota.key}/{each.name}"),
        )
        for each in quota.allocations
    )
    used_requests = sum(each.used_requests for each in allocations)
    used_tokens = sum(each.used_tokens for each in allocations)
    return QuotaAllocationStatus(
        level=lowest_service(levels),
        granted=_granted(allocations, limits),
        used=f"{short(used_requests)} rpm {short(used_tokens)} tpm",
        spent=_spent(quota, money),
        resets_at=rfc3339(min(each.resets_at for each in money.values())) if money else "",
        allocations=allocations,
    )


def same_reading(before: QuotaAllocationStatus, after: QuotaAllocationStatus) -> bool:
    """Tell whether two readings say the same to people: rates within a tenth of each other, all else equal.

    A steady load never reads the same twice. What begins, ends, or concerns money or pods always differs.
    """
    if len(before.allocations) != len(after.allocations):
        return False
    return _exact(before) == _exact(after) and all(
        _close(getattr(old, rate), getattr(new, rate))
        for old, new in zip(before.allocations, after.allocations, strict=True)
        for rate in _RATES
    )


def _exact(status: QuotaAllocationStatus) -> QuotaAllocationStatus:
    rows = tuple(msgspec.structs.replace(each, **dict.fromkeys(_RATES, 0)) for each in status.allocations)
    return msgspec.structs.replace(status, allocations=rows, granted="", used="")


def _close(before: int, after: int) -> bool:
    return bool(before) == bool(after) and abs(before - after) * 10 <= max(before, after)


def _allocation(
    policy: AllocationPolicy,
    standing: Standing,
    gauges: Sequence[AllocationGauge],
    requests: Granted,
    tokens: Granted,
) -> AllocationStatus:
    return AllocationStatus(
        name=policy.name,
        level=standing.level,
        level_cause=standing.cause,
        pods=len(gauges),
        granted_requests_per_minute=requests.granted + sum(each.granted_requests for each in gauges),
        granted_tokens_per_minute=tokens.granted + sum(each.granted_tokens for each in gauges),
        used_requests=sum(each.used_requests for each in gauges),
        used_tokens=sum(each.used_tokens for each in gauges),
        waiting=sum(each.waiting for each in gauges),
        refused=sum(each.refused for each in gauges),
        degraded=sum(each.degraded for each in gauges),
    )


def _with_money(status: AllocationStatus, money: Assessment | None) -> AllocationStatus:
    if money is None:
        return status
    return msgspec.structs.replace(
        status,
        spent_today_usd=usd_text(money.spent_today_usd_micros),
        spent_month_usd=usd_text(money.spent_month_usd_micros),
        resets_at=rfc3339(money.resets_at),
        runs_out_at=_forecast(money),
    )


def _forecast(money: Assessment) -> str:
    """Return a forecast to five minutes: one that moves with every round would be written with every round."""
    if money.runs_out_at is None:
        return ""
    if money.exhausted_until is not None:  # it is known
        return rfc3339(money.runs_out_at)
    return rfc3339(money.runs_out_at // _FORECAST_STEP_SECONDS * _FORECAST_STEP_SECONDS)


def _spent(quota: QuotaPolicy, money: Mapping[str, Assessment]) -> str:
    """Return the money of the whole's budget, or else of all allocations' together, as `41.20/100 today`."""
    if quota.budget is not None:
        rows = [(quota.budget, money.get(quota.key))]
    else:
        rows = [(each.budget, money.get(f"{quota.key}/{each.name}")) for each in quota.allocations if each.budget]
    known: list[tuple[Budget, Assessment]] = [(budget, each) for budget, each in rows if each is not None]
    if not known:
        return ""
    if all(budget.daily_usd for budget, _ in known):
        spent = sum(each.spent_today_usd_micros for _, each in known)
        limit = sum(usd_micros(budget.daily_usd or "0") for budget, _ in known)
        return f"{_cents(spent)}/{_cents(limit)} today"
    spent = sum(each.spent_month_usd_micros for _, each in known)
    if all(budget.monthly_usd for budget, _ in known):
        return f"{_cents(spent)}/{_cents(sum(usd_micros(budget.monthly_usd or '0') for budget, _ in known))} this month"
    return f"{_cents(spent)} this month"


def _cents(micros: int) -> str:
    """Return dollars and cents: the column is for people, the exact figures are in the allocations."""
    return f"{micros // MICROS_PER_USD}.{micros % MICROS_PER_USD // 10_000:02d}"


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
