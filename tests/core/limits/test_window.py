"""Sliding windows and slots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.limits.keys import Dimension, Layer
from sluice_core.limits.lease import Allowance
from sluice_core.limits.meters import RateMeter
from sluice_core.limits.window import SlidingWindow, SlotPool

steps = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 30)), max_size=60)


@given(steps, st.integers(1, 60), st.sampled_from([0.25, 1.0, 3.0]))
def test_no_window_holds_more_than_the_limit(calls: list[tuple[float, int]], limit: int, slot_seconds: float) -> None:
    """Whoever asks first whether it fits never puts more than the limit into any window."""
    window = SlidingWindow(10.0, slot_seconds)
    now, log = 0.0, []
    for pause, amount in calls:
        now += pause
        if window.expire(now) + amount <= limit:
            window.take(amount, now)
            log.append((now, amount))
        assert sum(amount for at, amount in log if at > now - 10.0) <= limit


@given(steps, st.integers(1, 60))
def test_earliest_is_true(calls: list[tuple[float, int]], limit: int) -> None:
    """At the time that it names the amount fits, and a slot before it does not."""
    window = SlidingWindow(10.0, 0.25)
    now = 0.0
    for pause, amount in calls:
        now += pause
        earliest = window.earliest(amount, limit, now)
        if amount > limit:
            assert earliest is None or window.used + amount <= limit
            continue
        assert earliest is not None
        if earliest > now:
            assert window.expire(max(now, earliest - 0.25)) + amount > limit or earliest - 0.25 < now
            now = earliest
        assert window.expire(now) + amount <= limit
        window.take(amount, now)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=30))
def test_refunds_are_exact(pairs: list[tuple[int, int]]) -> None:
    """What was taken and corrected at once adds up to what was really used."""
    window = SlidingWindow(60.0, 0.25)
    slots = [(window.take(reserved, 0.1 * index), reserved, used) for index, (reserved, used) in enumerate(pairs)]
    for slot, reserved, used in slots:
        window.adjust(slot, used - reserved, 5.0)
    assert window.expire(5.0) == sum(used for _, used in pairs)
    assert window.expire(200.0) == 0


def test_a_refund_after_the_window_gives_nothing_and_a_debt_counts_from_now() -> None:
    """A permit that has left the window cannot be given back; what was used beyond it is charged when known."""
    window = SlidingWindow(60.0, 0.25)
    slot = window.take(100, 0.0)
    window.adjust(slot, -100, 90.0)
    assert window.expire(90.0) == 0
    window.adjust(slot, 40, 90.0)
    assert window.expire(149.0) == 40
    assert window.expire(151.0) == 0


def test_a_debt_blocks_until_it_has_passed() -> None:
    """Use above the limit is kept, and nothing fits until enough of it has left the window."""
    window = SlidingWindow(60.0, 0.25)
    slot = window.take(10, 0.0)
    window.adjust(slot, 500, 1.0)
    assert window.used == 510
    assert window.earliest(1, 100, 1.0) == pytest.approx(60.25)


def test_a_clock_that_steps_back_frees_nothing() -> None:
    """Time that goes back is treated as standing still."""
    window = SlidingWindow(60.0, 0.25)
    window.take(5, 100.0)
    window.take(5, 20.0)
    assert window.expire(20.0) == 10
    assert window.expire(159.9) == 10
    assert window.expire(160.3) == 0


def test_an_idle_window_is_empty() -> None:
    """Memory is in proportion to recent use."""
    window = SlidingWindow(60.0, 0.25)
    for index in range(10_000):
        window.take(1, index * 0.1)
    assert len(window.amounts) <= 241
    window.expire(1e6)
    assert len(window.amounts) == 0


def test_slots_come_back_by_themselves() -> None:
    """A slot whose holder vanished is free again after the longest hold; giving it back later changes nothing."""
    slots = SlotPool(30.0)
    first, second = slots.take(0.0), slots.take(10.0)
    assert slots.expire(29.9) == 2
    assert slots.expire(30.0) == 1
    slots.give_back(first, 31.0)
    assert slots.used == 1
    slots.give_back(second, 31.0)
    slots.give_back(second, 32.0)
    assert slots.used == 0


def test_the_forecast_of_a_free_slot_follows_how_long_slots_are_held() -> None:
    """Slots held for two seconds on average promise one of them soon, and never later than the longest hold."""
    slots = SlotPool(30.0)
    for index in range(100):
        slots.give_back(slots.take(float(index)), index + 2.0)
    for _ in range(4):
        slots.take(200.0)
    assert slots.earliest(4, 200.0) == pytest.approx(200.5, abs=0.05)
    assert slots.earliest(5, 200.0) == 200.0
    assert slots.earliest(0, 200.0) is None


def test_a_slot_that_was_taken_for_nothing_says_nothing_about_how_long_slots_are_held() -> None:
    """Undoing a slot frees it and leaves the forecast as it was; giving it back would shorten it."""
    slots = SlotPool(30.0)
    before = slots.hold_average_seconds
    slots.untake(slots.take(1.0))
    assert slots.used == 0
    assert slots.hold_average_seconds == before


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.0, 30.0)), max_size=60), st.integers(1, 100))
def test_taking_what_fits_is_looking_and_then_taking(calls: list[tuple[int, float]], limit: int) -> None:
    """What does not fit leaves the meter as it was; what fits is used as by `take`."""
    one, other = (
        RateMeter(
            name="m",
            layer=Layer.ALLOCATION,
            dimension=Dimension.TOKENS,
            allowance=Allowance(ceiling=limit, safe=0, sole=True),
        )
        for _ in range(2)
    )
    now = 0.0
    for amount, pause in calls:
        now += pause
        fits = other.fits(amount, now)
        assert (one.take_if_fits(amount, now) is not None) is fits
        if fits:
            other.take(amount, now)
        assert one.used(now) == other.used(now) <= limit
