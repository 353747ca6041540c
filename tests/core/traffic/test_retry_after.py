"""Until when nobody calls, because the upstream asked for it; and how long a limit takes to have room again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.ratelimit_headers import read_limits, refill_seconds
from sluice_core.retry_after import MAX_HOLD_SECONDS, MAX_PLACES, Holds

PLACES = [("team/openai", model, key) for model in ("a", "b", None) for key in ("primary", None)]

asked = st.tuples(st.sampled_from(PLACES), st.floats(0, 200), st.floats(1, 60), st.floats(0, 5))


@given(st.lists(asked, max_size=30), st.floats(0, 100))
def test_nobody_goes_before_the_time_that_was_asked_for(steps: list[tuple], later: float) -> None:
    """Unless that is above the cap; nobody else is held, and nobody for longer than the cap after the last word."""
    holds, now, told = Holds(), 1000.0, []
    for place, seconds, cap, passes in steps:
        holds.ask(place, seconds, cap, now)
        told.append((place, now, seconds, cap))
        now += passes
        if passes > 4:
            holds.tick(now)
    now += later
    for place in PLACES:
        words = [(at, seconds, cap) for where, at, seconds, cap in told if where == place]
        hold = holds.of(place, now)
        wanted = [at + seconds for at, seconds, cap in words if now < at + seconds and seconds <= cap]
        assert not wanted or (hold is not None and hold.until >= max(wanted))
        allowed = [at + min(seconds, cap) for at, seconds, cap in words]
        assert hold is None or hold.until <= max(allowed)
        assert hold is None or (hold.is_waited_for == (max(at + seconds for at, seconds, _ in words) <= hold.until))
    if not any(holds.of(place, now) for place in PLACES):
        holds.tick(now)
        assert not holds.any


def test_a_very_long_word_is_not_obeyed_for_ever() -> None:
    """After a minute at most somebody tries again; a wait that long is not worth it meanwhile."""
    holds = Holds()
    holds.ask(PLACES[0], 86_400.0, 300.0, 0.0)
    hold = holds.of(PLACES[0], MAX_HOLD_SECONDS - 0.1)
    assert hold is not None
    assert (hold.is_waited_for, hold.asked) == (False, 86_400.0)
    assert holds.of(PLACES[0], MAX_HOLD_SECONDS) is None


def test_model_names_do_not_fill_the_memory() -> None:
    """Callers choose them: of too many, those that end first are forgotten."""
    holds = Holds()
    for number in range(2 * MAX_PLACES):
        holds.ask(("up", f"model-{number}", None), 10.0 + number / 1000, 60.0, 0.0)
    assert len(list(holds.in_force(0.0))) == MAX_PLACES
    assert holds.of(("up", f"model-{2 * MAX_PLACES - 1}", None), 0.0)


@pytest.mark.parametrize(
    ("fields", "tokens", "seconds"),
    [
        ({}, 10, None),
        ({"limit-requests": "60", "remaining-requests": "0", "reset-requests": "1m0s"}, 10, 1.0),
        ({"limit-requests": "60", "remaining-requests": "1", "reset-requests": "59s"}, 10, None),
        ({"limit-tokens": "1000", "remaining-tokens": "100", "reset-tokens": "54s"}, 400, 18.0),
        ({"limit-tokens": "1000", "remaining-tokens": "0", "reset-tokens": "6m0s"}, 5000, 360.0),
        ({"limit-project-tokens": "1000", "remaining-project-tokens": "0", "reset-project-tokens": "1m0s"}, 100, 6.0),
        (
            {
                "limit-requests": "60", "remaining-requests": "0", "reset-requests": "1m0s",
                "limit-project-tokens": "1000", "remaining-project-tokens": "0", "reset-project-tokens": "60s",
            },
            100,
            6.0,
        ),
        ({"limit-requests": "60", "remaining-requests": "0", "reset-requests": "soon"}, 10, None),
        ({"limit-requests": "-1", "remaining-requests": "0", "reset-requests": "1s"}, 10, None),
        ({"limit-requests": "0", "remaining-requests": "0", "reset-requests": "1s"}, 10, None),
    ],
)  # fmt: skip
def test_a_limit_fills_evenly(fields: dict[str, str], tokens: int, seconds: float | None) -> None:
    """What was used is back at the reset; a call needs the part of it that is missing. The longest wait counts."""
    limits = read_limits({f"x-ratelimit-{name}": value for name, value in fields.items()})
    assert refill_seconds(limits, tokens) == (None if seconds is None else pytest.approx(seconds))
