"""How levels of service are told: per allocation in the status, and as one condition whose changes are news."""

from __future__ import annotations

from typing import Any

import pytest

from sluice_core.api.base import Condition, ConditionStatus
from sluice_core.api.conditions import set_condition
from sluice_core.api.degradation import BudgetStep, Cause, Degradation, Level
from sluice_core.api.quotaallocation import Budget, Mode, OnExhausted, WholeDegradation
from sluice_core.api.upstream import Limits
from sluice_core.budget import Assessment, WindowShare
from sluice_core.quota_figures import quota_figures, same_reading
from sluice_core.service import FULL_SERVICE, full_service, lowest_service, standings
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy
from sluice_operator.status import transitions

KEY = "team/openai"
STEPS = Budget(
    daily_usd="1",
    on_exhausted=OnExhausted.DEGRADE,
    steps=(BudgetStep(at_percent=80, level=Level.CACHE_ONLY), BudgetStep(at_percent=100, level=Level.STATIC)),
)


def quota(whole: Level = Level.FULL, **allocations: Any) -> QuotaPolicy:
    """Return a quota with these allocations; a level stands for one set by hand."""
    rows = {
        name: {"degradation": Degradation(level=given)} if isinstance(given, Level) else given
        for name, given in allocations.items()
    }
    return QuotaPolicy(
        key=KEY,
        upstream="team/openai",
        degradation=WholeDegradation(level=whole),
        allocations=tuple(AllocationPolicy(name=name, **fields) for name, fields in rows.items()),
    )


def spent(*percents: int) -> Assessment:
    """Return where a budget stands of which so much is spent in its windows."""
    shares = tuple(WindowShare(percent=percent, until=100.0) for percent in percents)
    return Assessment(spent_today_usd_micros=0, spent_month_usd_micros=0, resets_at=100.0, shares=shares)


@pytest.mark.parametrize(
    ("shares", "level", "cause"),
    [
        ((79,), Level.FULL, None),
        ((80,), Level.CACHE_ONLY, Cause.BUDGET),
        ((10, 100), Level.STATIC, Cause.BUDGET),
    ],
)
def test_a_level_follows_from_what_is_spent_in_any_window(shares: Any, level: Level, cause: Cause | None) -> None:
    """Each allocation by its own budgets; the whole shows the one that gets least."""
    found = standings(quota(chat={"budget": STEPS}, batch={}), {f"{KEY}/chat": spent(*shares)})
    assert (found["chat"].level, found["chat"].cause) == (level, cause)
    assert found["batch"].level is Level.FULL
    assert lowest_service(found) is level


def test_the_whole_lowers_all_but_those_in_shadow() -> None:
    """Of those nothing is changed, whatever is written."""
    found = standings(quota(Level.ECONOMY, chat={}, batch=Level.STATIC, tools={"mode": Mode.SHADOW}), {})
    levels = {name: each.level for name, each in found.items()}
    assert levels == {"chat": Level.ECONOMY, "batch": Level.STATIC, "tools": Level.FULL}


def test_the_status_has_the_level_of_each_allocation_and_the_lowest_service() -> None:
    """As enum values; another level is another reading."""

    def status(level: Level) -> Any:
        return quota_figures(quota(chat=level, batch={}), Limits(), {}, {}, {}, {})

    found = status(Level.STATIC)
    assert found.level is Level.STATIC
    assert [(each.level, each.level_cause) for each in found.allocations] == [
        (Level.STATIC, Cause.HAND),
        (Level.FULL, None),
    ]
    assert not same_reading(found, status(Level.ECONOMY))


def conditions(before: tuple[Condition, ...], policy: QuotaPolicy) -> tuple[Condition, ...]:
    """Return the conditions after a look at a policy."""
    finding = full_service(standings(policy, {}))
    return set_condition(
        before, finding.type, finding.status, finding.reason, finding.message, now_unix=0.0, observed_generation=1
    )


def test_a_change_of_level_is_one_event() -> None:
    """Down, down for another allocation too, and back up; no event for what stays, or for a quota that is new."""
    full = conditions((), quota(chat={}, batch={}))
    assert transitions((), full) == ()
    economy = conditions(full, quota(chat=Level.ECONOMY, batch={}))
    (told,) = transitions(full, economy)
    assert (told.reason, told.warning) == ("Economy", True)
    assert told.message == "chat is at Economy, set by hand"
    assert transitions(economy, economy) == ()
    both = conditions(economy, quota(chat=Level.ECONOMY, batch=Level.ECONOMY))
    assert [each.reason for each in transitions(economy, both)] == ["Economy"]
    static = conditions(both, quota(chat=Level.ECONOMY, batch=Level.STATIC))
    (told,) = transitions(both, static)
    assert told.message == "batch is at Static, set by hand; chat is at Economy, set by hand"
    (told,) = transitions(static, conditions(static, quota(chat={}, batch={})))
    assert (told.reason, told.warning) == ("Full", False)


def test_the_condition_is_bounded() -> None:
    """With 64 allocations it names some, and counts the others."""
    finding = full_service(standings(quota(**{f"a{number}": Level.STATIC for number in range(64)}), {}))
    assert finding.type == FULL_SERVICE
    assert finding.status is ConditionStatus.FALSE
    assert finding.message.endswith("and 59 more")
