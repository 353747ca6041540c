"""How much of the service each allocation of a quota gets, as people are told: by hand and by what is spent.

What breakers do is each pod's own, and told by its metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sluice_core.api.base import ConditionStatus
from sluice_core.api.degradation import Cause, Level
from sluice_core.api.quotaallocation import Mode
from sluice_core.budget import Assessment
from sluice_core.enforcement import MAX_NAMED, Finding
from sluice_core.ladder import FULL, RANK, Spent, Standing, highest, ladder_of, standing
from sluice_core.limits.accounts import budgets_of
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy

FULL_SERVICE: Final = "FullService"
_WHY: Final = {Cause.HAND: "set by hand", Cause.BUDGET: "because of what is spent"}


def standings(quota: QuotaPolicy, money: Mapping[str, Assessment]) -> dict[str, Standing]:
    """Return the level of each allocation by name; Full in Shadow mode, where none is applied."""
    return {each.name: _standing(quota, each, money) for each in quota.allocations}


def _standing(quota: QuotaPolicy, allocation: AllocationPolicy, money: Mapping[str, Assessment]) -> Standing:
    if allocation.mode is Mode.SHADOW:
        return FULL
    spent = [
        Spent(budget=budget, percent=share.percent, until=share.until, whole=name == quota.key)
        for name, budget in budgets_of(quota, allocation).items()
        if name in money
        for share in money[name].shares
    ]
    return standing(ladder_of(quota, allocation), spent)


def lowest_service(found: Mapping[str, Standing]) -> Level:
    """Return the highest level of the ladder that any allocation has come to."""
    return highest(each.level for each in found.values())


def full_service(found: Mapping[str, Standing]) -> Finding:
    """Return whether every allocation has all of the service, as the condition that its changes are told by."""
    below = sorted(((name, each) for name, each in found.items() if each.level is not Level.FULL), key=_rank)
    if not below:
        return Finding(
            type=FULL_SERVICE,
            status=ConditionStatus.TRUE,
            reason=Level.FULL.value,
            message="every allocation has the full service",
        )
    rows = [f"{name} is at {each.level.value}, {_WHY.get(each.cause or Cause.HAND)}" for name, each in below]
    more = f"; and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    return Finding(
        type=FULL_SERVICE,
        status=ConditionStatus.FALSE,
        reason=lowest_service(found).value,
        message="; ".join(rows[:MAX_NAMED]) + more,
    )


def _rank(row: tuple[str, Standing]) -> tuple[int, str]:
    return -RANK[row[1].level], row[0]
