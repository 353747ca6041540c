"""The degradation ladder: which level of service is in force, and why. The highest of all that is asked for counts.

More spent never lowers the level within a window, and a level set by hand only raises it: every cause asks for a level
by itself, and nothing that asks for a lower one takes a higher one back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sluice_core.api.base import Value
from sluice_core.api.degradation import Cause, Degradation, Degraded, Level
from sluice_core.api.quotaallocation import Budget, OnExhausted
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy

RETRY_AFTER_SECONDS: Final = 60
"""What a refusal says where nobody knows how long it will last."""

EXHAUSTED_PERCENT: Final = 100
RANK: Final = {level: rank for rank, level in enumerate(Level)}
_BY_RANK: Final = tuple(Level)


class Ladder(Value, frozen=True, kw_only=True):
    """What an allocation and the whole ask for, put together. An `exempt` allocation climbs for itself alone."""

    by_hand: Level = Level.FULL
    on_open_breaker: Level | None = None
    degrade_to: Degraded | None = None
    static_message: str | None = None
    retry_after_seconds: int = RETRY_AFTER_SECONDS
    exempt: bool = False


class Spent(Value, frozen=True, kw_only=True):
    """How much of a budget is spent in a window that ends at `until`. `whole` tells that of the quota."""

    budget: Budget
    percent: int
    until: float
    whole: bool = False


class Standing(Value, frozen=True, kw_only=True):
    """The level in force. `until` is when it falls by itself, None where nobody knows; in the clock of what was given.

    `degrade_to` is what calls become at Economy, as far as it is written. Until `saves_until` what would cost money and
    cannot be made cheaper is refused. `rejects` tells that a budget is spent that refuses every call.
    """

    level: Level = Level.FULL
    cause: Cause | None = None
    until: float | None = None
    degrade_to: Degraded | None = None
    saves_until: float | None = None
    rejects: bool = False


FULL: Final = Standing()


def ladder_of(quota: QuotaPolicy | None, allocation: AllocationPolicy | None) -> Ladder:
    """Return the ladder of one allocation. Of two levels set by hand the higher one counts, else its own settings."""
    whole = quota.degradation if quota is not None else None
    own = allocation.degradation if allocation is not None else None
    exempt = whole is not None and allocation is not None and allocation.priority in whole.exempt
    settings: list[Degradation] = [each for each in (own, None if exempt else whole) if each is not None]
    budgets = [each.budget for each in (allocation, quota) if each is not None and each.budget is not None]
    written = [each.degrade_to for each in settings] + [each.degrade_to for each in budgets]
    return Ladder(
        by_hand=highest(each.level for each in settings),
        on_open_breaker=next((each.on_open_breaker for each in settings if each.on_open_breaker is not None), None),
        degrade_to=next((found for found in written if found is not None), None),
        static_message=next((each.static_message for each in settings if each.static_message is not None), None),
        retry_after_seconds=next(
            (each.retry_after_seconds for each in settings if each.retry_after_seconds is not None), RETRY_AFTER_SECONDS
        ),
        exempt=exempt,
    )


def standing(ladder: Ladder, spent: Iterable[Spent] = (), open_until: float | None = None) -> Standing:
    """Return the level in force.

    Args:
        ladder: the settings.
        spent: how much of the budgets that apply is spent.
        open_until: when the next call may be tried, where a breaker stops every upstream that there is.
    """
    climbed = [(each, _level_at(each, ladder)) for each in spent]
    asked: list[tuple[Level, Cause, float | None]] = [(ladder.by_hand, Cause.HAND, None)]
    asked += [(own, Cause.BUDGET, each.until) for each, own in climbed]
    if open_until is not None and ladder.on_open_breaker is not None:
        asked.append((ladder.on_open_breaker, Cause.BREAKER, open_until))
    level = highest(each for each, _, _ in asked)
    full = [each.budget for each, _ in climbed if each.percent >= EXHAUSTED_PERCENT]
    rejects = any(budget.on_exhausted is OnExhausted.REJECT for budget in full)
    if level is Level.FULL:
        return Standing(rejects=True) if rejects else FULL
    causes = [(cause, until) for each, cause, until in asked if each is level]
    ends = [until for _, until in causes if until is not None]
    return Standing(
        level=level,
        cause=causes[0][0],
        until=max(ends) if len(ends) == len(causes) else None,
        degrade_to=_degrade_to(ladder, causes[0][0], [each.budget for each, own in climbed if own is level]),
        saves_until=max((each.until for each, _ in climbed if _saves(each)), default=None),
        rejects=rejects,
    )


def highest(levels: Iterable[Level]) -> Level:
    """Return the highest of some levels, Full if there are none."""
    return _BY_RANK[max((RANK[each] for each in levels), default=0)]


def lowest_step(budget: Budget) -> int | None:
    """Return the share of a budget, in percent, from which it asks for a level by a step; None if it has no steps."""
    return min((step.at_percent for step in budget.steps), default=None)


def _level_at(spent: Spent, ladder: Ladder) -> Level:
    steps = () if spent.whole and ladder.exempt else spent.budget.steps
    passed = [step.level for step in steps if step.at_percent <= spent.percent]
    return highest([*passed, Level.ECONOMY] if _saves(spent) else passed)


def _saves(spent: Spent) -> bool:
    return spent.percent >= EXHAUSTED_PERCENT and spent.budget.on_exhausted is OnExhausted.DEGRADE


def _degrade_to(ladder: Ladder, cause: Cause, budgets: Iterable[Budget]) -> Degraded | None:
    of_budgets = next((each.degrade_to for each in budgets if each.degrade_to is not None), None)
    if cause is Cause.BUDGET:
        return of_budgets or ladder.degrade_to
    return ladder.degrade_to or of_budgets
