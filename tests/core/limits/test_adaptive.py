"""Slowing down when the upstream throttles."""

from __future__ import annotations

import pytest

from sluice_core.limits.adaptive import LearnedLimits, Pacer
from sluice_core.sync import LimitObservation


def test_throttling_doubles_and_success_takes_a_tenth_off() -> None:
    """The back-off goes 2, 4, 8 and no further; each success reduces it by ten percent."""
    pacer, backoffs = Pacer(), []
    for _ in range(4):
        pacer.throttled(100.0, 100.0)
        backoffs.append(pacer.backoff(100.0))
    assert backoffs == [2.0, 4.0, 8.0, 8.0]
    assert pacer.pace(100.0) == 0.125
    pacer.succeeded(100.0)
    assert pacer.backoff(100.0) == pytest.approx(7.2)
    for _ in range(30):
        pacer.succeeded(100.0)
    assert pacer.pace(100.0) == 1.0


def test_a_burst_of_refusals_counts_once() -> None:
    """Calls that were under way when the first was throttled say nothing new."""
    pacer = Pacer()
    for sent_at in (10.0, 10.1, 10.2):
        pacer.throttled(sent_at, 11.0)
    assert pacer.backoff(11.0) == 2.0
    pacer.throttled(11.5, 12.0)
    assert pacer.backoff(12.0) == pytest.approx(4.0, rel=0.05)


def test_without_answers_the_pace_recovers() -> None:
    """The back-off halves every 30 seconds, so that a limit cannot be shut for good."""
    pacer = Pacer()
    for _ in range(3):
        pacer.throttled(0.0, 0.0)
    assert pacer.backoff(30.0) == pytest.approx(4.0)
    assert pacer.pace(90.0) == 1.0


@pytest.mark.parametrize(
    ("governed", "throttled", "pace"),
    [(True, False, 1.0), (False, False, 0.5), (True, True, 0.5)],
)
def test_low_remaining_halves_where_it_is_not_our_own_doing(governed: bool, throttled: bool, pace: float) -> None:
    """Being near a limit that we govern is the aim; being near one that others use, or we do not know, is not."""
    pacer = Pacer()
    if throttled:
        pacer.throttled(0.0, 0.0)
        for _ in range(10):
            pacer.succeeded(0.0)
    pacer.observed(10.0, 1.0, governed=governed)
    assert pacer.pace(1.0) == pace
    pacer.observed(85.0, 2.0, governed=governed)
    assert pacer.pace(2.0) == 1.0


def test_slow_down_ramps_over_a_quarter_of_an_hour() -> None:
    """From half pace back to full, evenly."""
    pacer = Pacer()
    pacer.throttled(0.0, 0.0, slow_down=True)
    assert pacer.pace(0.0) == 0.5
    assert pacer.pace(450.0) == pytest.approx(0.75)
    assert pacer.pace(900.0) == 1.0


def test_limits_are_learned_and_forgotten() -> None:
    """The latest figure counts for an hour; made-up models do not fill the memory."""
    learned = LearnedLimits()
    for limit in (100, 200):
        learned.observe([LimitObservation(upstream="u", model="m", dimension="tokens", limit=limit, remaining=0)], 0.0)
    assert learned.limits("u", 10.0) == {("m", "tokens"): 200}
    for index in range(5000):
        seen = LimitObservation(upstream="u", model=f"x{index}", dimension="tokens", limit=1, remaining=0)
        learned.observe([seen], 10.0)
    assert len(learned.limits("u", 10.0)) <= 1024
    assert learned.limits("u", 4000.0) == {}
