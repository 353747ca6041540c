"""The degradation ladder: the level in force and its cause, as a table and as properties."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.degradation import BudgetStep, Cause, Degradation, Degraded, Level
from sluice_core.api.quotaallocation import Budget, OnExhausted, Priority, WholeDegradation
from sluice_core.ladder import FULL, RANK, Ladder, Spent, Standing, highest, ladder_of, standing
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy

CHEAPER = Degraded(model="gpt-4.1-nano")
SHORTER = Degraded(max_output_tokens=50)


def budget(*steps: tuple[int, Level], **fields: Any) -> Budget:
    """Return a budget that goes down these steps."""
    taken = tuple(BudgetStep(at_percent=percent, level=level) for percent, level in steps)
    return Budget(**{"daily_usd": "1", "steps": taken, "on_exhausted": OnExhausted.DEGRADE, **fields})


STEPS = budget((80, Level.ECONOMY), (100, Level.STATIC))
REJECTS = Budget(daily_usd="1")


@pytest.mark.parametrize(
    ("ladder", "spent", "open_until", "expected"),
    [
        (Ladder(), (), None, (Level.FULL, None, None)),
        (Ladder(by_hand=Level.STATIC), (), None, (Level.STATIC, Cause.HAND, None)),
        (Ladder(), ((STEPS, 79),), None, (Level.FULL, None, None)),
        (Ladder(), ((STEPS, 80),), None, (Level.ECONOMY, Cause.BUDGET, 100.0)),
        (Ladder(), ((STEPS, 99),), None, (Level.ECONOMY, Cause.BUDGET, 100.0)),
        (Ladder(), ((STEPS, 100),), None, (Level.STATIC, Cause.BUDGET, 100.0)),
        (Ladder(), ((STEPS, 80), (STEPS, 120)), None, (Level.STATIC, Cause.BUDGET, 101.0)),
        (Ladder(), ((STEPS, 100), (STEPS, 120)), None, (Level.STATIC, Cause.BUDGET, 101.0)),
        (Ladder(), ((budget(), 100),), None, (Level.ECONOMY, Cause.BUDGET, 100.0)),
        (Ladder(), ((REJECTS, 100),), None, (Level.FULL, None, None)),
        (Ladder(by_hand=Level.ECONOMY), ((STEPS, 100),), None, (Level.STATIC, Cause.BUDGET, 100.0)),
        (Ladder(by_hand=Level.MAINTENANCE), ((STEPS, 100),), None, (Level.MAINTENANCE, Cause.HAND, None)),
        (Ladder(by_hand=Level.STATIC), ((STEPS, 100),), None, (Level.STATIC, Cause.HAND, None)),
        (Ladder(), (), 7.0, (Level.FULL, None, None)),
        (Ladder(on_open_breaker=Level.STATIC), (), None, (Level.FULL, None, None)),
        (Ladder(on_open_breaker=Level.STATIC), (), 7.0, (Level.STATIC, Cause.BREAKER, 7.0)),
        (Ladder(on_open_breaker=Level.STATIC), ((STEPS, 80),), 7.0, (Level.STATIC, Cause.BREAKER, 7.0)),
        (Ladder(on_open_breaker=Level.CACHE_ONLY), ((STEPS, 100),), 7.0, (Level.STATIC, Cause.BUDGET, 100.0)),
    ],
)
def test_the_highest_level_that_anything_asks_for_is_in_force(
    ladder: Ladder, spent: Any, open_until: float | None, expected: Any
) -> None:
    """With its cause, and its end if that is known. What people set goes before money, money before upstreams."""
    windows = [Spent(budget=each, percent=percent, until=100.0 + at) for at, (each, percent) in enumerate(spent)]
    found = standing(ladder, windows, open_until)
    assert (found.level, found.cause, found.until) == expected


def test_a_spent_budget_says_until_when_nothing_is_spent_that_cannot_be_cheaper() -> None:
    """Below 100 percent, or by hand, what cannot be made cheaper goes on as it came."""
    assert standing(Ladder(), [Spent(budget=STEPS, percent=99, until=5.0)]).saves_until is None
    assert standing(Ladder(by_hand=Level.ECONOMY)).saves_until is None
    assert standing(Ladder(by_hand=Level.ECONOMY), [Spent(budget=STEPS, percent=100, until=5.0)]).saves_until == 5.0


def test_a_budget_that_rejects_is_told_beside_any_level() -> None:
    """Economy would only change what is refused anyway."""
    spent = [Spent(budget=REJECTS, percent=100, until=5.0)]
    assert standing(Ladder(), spent) == Standing(rejects=True)
    assert standing(Ladder(by_hand=Level.ECONOMY), spent).rejects
    assert not standing(Ladder(), [Spent(budget=REJECTS, percent=99, until=5.0)]).rejects


@pytest.mark.parametrize(
    ("own", "of_budget", "by_hand", "expected"),
    [
        (None, None, Level.FULL, None),
        (CHEAPER, None, Level.FULL, CHEAPER),
        (CHEAPER, SHORTER, Level.FULL, SHORTER),
        (CHEAPER, SHORTER, Level.ECONOMY, CHEAPER),
        (None, SHORTER, Level.ECONOMY, SHORTER),
    ],
    ids=["nothing written", "the ladder's", "of the budget that asks", "by hand", "by hand, of the budget"],
)
def test_what_economy_is_comes_from_where_it_was_asked_for(
    own: Degraded | None, of_budget: Degraded | None, by_hand: Level, expected: Degraded | None
) -> None:
    """The budget's own degradeTo for its steps, the ladder's for what was set by hand, else what there is."""
    ladder = Ladder(by_hand=by_hand, degrade_to=own)
    spent = [Spent(budget=budget((80, Level.ECONOMY), degrade_to=of_budget), percent=80, until=5.0)]
    assert standing(ladder, spent).degrade_to == expected


def quota(whole: WholeDegradation | None = None, own: Degradation | None = None, **fields: Any) -> Any:
    """Return a quota and its one allocation."""
    allocation = AllocationPolicy(name="chat", degradation=own, **fields)
    return QuotaPolicy(key="team/q", upstream="team/u", degradation=whole, allocations=(allocation,)), allocation


@pytest.mark.parametrize(
    ("whole", "own", "expected"),
    [(Level.FULL, Level.STATIC, Level.STATIC), (Level.STATIC, Level.ECONOMY, Level.STATIC)],
)
def test_of_whole_and_allocation_the_higher_level_counts(whole: Level, own: Level, expected: Level) -> None:
    """Whoever sets a level for all does not have to look at what single allocations say."""
    ladder = ladder_of(*quota(WholeDegradation(level=whole), Degradation(level=own)))
    assert ladder.by_hand is expected


def test_an_allocation_says_more_exactly_than_the_whole() -> None:
    """Messages, models and times are the allocation's where it has any, else the whole's."""
    whole = WholeDegradation(static_message="all", retry_after_seconds=7, degrade_to=CHEAPER)
    ladder = ladder_of(*quota(whole, Degradation(static_message="own", on_open_breaker=Level.STATIC)))
    assert (ladder.static_message, ladder.retry_after_seconds, ladder.degrade_to) == ("own", 7, CHEAPER)
    assert ladder.on_open_breaker is Level.STATIC
    assert ladder_of(*quota(None, None, budget=budget(degrade_to=SHORTER))).degrade_to == SHORTER
    assert ladder_of(None, None) == Ladder()


def test_the_exempt_follow_neither_the_whole_nor_its_steps() -> None:
    """A spent budget of the whole still makes them cheaper: what they are exempt from is the ladder, not the limit."""
    whole = WholeDegradation(level=Level.MAINTENANCE, exempt=(Priority.CRITICAL,))
    assert ladder_of(*quota(whole)).by_hand is Level.MAINTENANCE
    ladder = ladder_of(*quota(whole, priority=Priority.CRITICAL))
    assert (ladder.by_hand, ladder.exempt) == (Level.FULL, True)
    assert standing(ladder, [Spent(budget=STEPS, percent=90, until=5.0, whole=True)]) == FULL
    assert standing(ladder, [Spent(budget=STEPS, percent=100, until=5.0, whole=True)]).level is Level.ECONOMY
    assert standing(ladder, [Spent(budget=STEPS, percent=100, until=5.0)]).level is Level.STATIC


levels = st.sampled_from(list(Level))
steps = st.lists(st.tuples(st.integers(1, 200), levels.filter(lambda each: each is not Level.FULL)), max_size=8)
ladders = st.builds(
    Ladder, by_hand=levels, on_open_breaker=st.none() | levels, exempt=st.booleans(), degrade_to=st.none()
)
windows = st.lists(
    st.builds(
        lambda taken, rejects, percent, until, whole: Spent(
            budget=budget(*taken, on_exhausted=OnExhausted.REJECT if rejects else OnExhausted.DEGRADE),
            percent=percent,
            until=until,
            whole=whole,
        ),
        steps,
        st.booleans(),
        st.integers(0, 250),
        st.floats(0, 1000),
        st.booleans(),
    ),
    max_size=4,
)


@given(ladders, windows, st.none() | st.floats(0, 1000), st.integers(0, 250), st.data())
def test_more_spent_never_lowers_the_level(
    ladder: Ladder, spent: list[Spent], open_until: float | None, more: int, data: Any
) -> None:
    """However the steps are written: with any budget spent further the level stays or rises."""
    before = standing(ladder, spent, open_until)
    if spent:
        index = data.draw(st.integers(0, len(spent) - 1))
        each = spent[index]
        further = Spent(budget=each.budget, percent=each.percent + more, until=each.until, whole=each.whole)
        spent = [*spent[:index], further, *spent[index + 1 :]]
    assert RANK[standing(ladder, spent, open_until).level] >= RANK[before.level]


@given(ladders, windows, st.none() | st.floats(0, 1000), levels)
def test_a_hand_only_raises(ladder: Ladder, spent: list[Spent], open_until: float | None, level: Level) -> None:
    """What is set by hand is a floor: the level is the higher one of it and of what there would be without it."""
    without = standing(msgspec.structs.replace(ladder, by_hand=Level.FULL), spent, open_until)
    found = standing(msgspec.structs.replace(ladder, by_hand=level), spent, open_until)
    assert found.level is highest([without.level, level])


@given(ladders, windows, st.none() | st.floats(0, 1000))
def test_every_level_below_full_has_a_cause_and_full_has_none(
    ladder: Ladder, spent: list[Spent], open_until: float | None
) -> None:
    """And it ends by itself exactly where no hand holds it."""
    found = standing(ladder, spent, open_until)
    assert (found.cause is None) == (found.level is Level.FULL)
    if found.level is not Level.FULL:
        assert (found.until is None) == (ladder.by_hand is found.level)
