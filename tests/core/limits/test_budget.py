"""Budgets: calendar windows in any zone, money counted once, alerts once, forecasts."""

from __future__ import annotations

import random
import zoneinfo
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sluice_core.alerts import Alert
from sluice_core.api.quotaallocation import Budget
from sluice_core.budget import LedgerState, SpendCounter, SpendLedger, day_of, month_of
from sluice_core.limits.money import usd_micros, usd_text
from sluice_core.sync import Spend

ZONES = sorted(zoneinfo.available_timezones())
HOUR = 3600.0


def unix(text: str) -> float:
    """Seconds since 1970 of a time with its offset."""
    return datetime.fromisoformat(text).timestamp()


@example("UTC", 1071619199.9999998)
@given(st.sampled_from(ZONES), st.floats(unix("1990-01-01T00:00:00+00:00"), unix("2037-12-01T00:00:00+00:00")))
def test_days_and_months_cover_time_without_gap_or_overlap(zone: str, now: float) -> None:
    """In every zone each instant is in exactly one day and month, and the next one begins where it ends."""
    for window_of in (day_of, month_of):
        window = window_of(now, zone)
        assert window.starts_at <= now < window.ends_at
        following = window_of(window.ends_at, zone)
        assert following.name > window.name
        assert following.starts_at == window.ends_at
        assert window_of(window.ends_at - 0.001, zone) == window
        assert window_of(window.starts_at, zone) == window


@pytest.mark.parametrize(
    ("zone", "at", "name", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00:00+02:00", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25T12:00:00+01:00", "2026-10-25", 25),
        ("America/Santiago", "2026-09-06T12:00:00-03:00", "2026-09-06", 23),  # midnight does not exist
        ("America/Havana", "2025-11-02T12:00:00-05:00", "2025-11-02", 25),  # midnight comes twice
        ("Australia/Lord_Howe", "2026-04-05T12:00:00+10:30", "2026-04-05", 24.5),
        ("Pacific/Apia", "2011-12-29T12:00:00-10:00", "2011-12-29", 24),  # the 30th was left out
        ("Asia/Kathmandu", "2026-01-01T00:00:00+05:45", "2026-01-01", 24),
        ("UTC", "2026-12-31T23:59:59+00:00", "2026-12-31", 24),
    ],
)
def test_days_are_as_long_as_the_clock_says(zone: str, at: str, name: str, hours: float) -> None:
    """A change of the clocks makes a day shorter or longer, also where it happens at midnight."""
    window = day_of(unix(at), zone)
    assert (window.name, (window.ends_at - window.starts_at) / HOUR) == (name, hours)


def test_a_month_is_a_month() -> None:
    """A month ends with the month, in its own zone, not after thirty days."""
    window = month_of(unix("2026-02-28T23:30:00-05:00"), "America/New_York")
    assert window.name == "2026-02"
    assert window.ends_at == unix("2026-03-01T00:00:00-05:00")


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 10**9)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_money_is_counted_once(calls: list[tuple[int, int, int]], draw: random.Random) -> None:
    """Reports that are lost, repeated, reordered and split by a restart of the leader add up to the micro-dollar."""
    budgets = [{"q": Budget(daily_usd="1")}, {"q": Budget(daily_usd="1"), "q/a": Budget(daily_usd="1")}]
    counters = [SpendCounter() for _ in range(3)]
    now = unix("2026-05-05T12:00:00+00:00")
    ledger, reports = SpendLedger(), []
    for instance, which, cost in calls:
        counters[instance].charge(budgets[which], cost, now)
        reports.append((instance, counters[instance].export()))
        for index, spends in draw.sample(reports, k=draw.randint(0, len(reports))):
            ledger.report(str(index), spends, now)
        if draw.random() < 0.3:
            stored = msgspec.json.decode(msgspec.json.encode(ledger.state()), type=LedgerState)
            ledger = SpendLedger(stored)
    for index, counter in enumerate(counters):
        ledger.report(str(index), counter.export(), now)
    assert ledger.spent("q", day_of(now, "UTC")) == sum(cost for _, _, cost in calls)
    assert ledger.spent("q/a", month_of(now, "UTC")) == sum(cost for _, which, cost in calls if which)


def test_closed_days_are_not_reported_again() -> None:
    """A figure of days ago that comes once more, when its mark is gone, changes nothing."""
    ledger = SpendLedger()
    first = unix("2026-05-01T12:00:00+00:00")
    old = Spend(budget="q", window="2026-05-01", usd_micros=5)
    ledger.report("i", [old], first)
    later = first + 6 * 24 * HOUR
    ledger.report("i", [old, Spend(budget="q", window="2026-05-07", usd_micros=1)], later)
    ledger.report("i", [old], later)
    assert ledger.spent("q", month_of(later, "UTC")) == 6
    assert [mark.day for mark in ledger.state().marks] == ["2026-05-07"]


def take_alerts(ledger: SpendLedger, budget: Budget, now: float) -> list[Alert]:
    """Decide, and tell at once what is due."""
    ledger.decide_alerts("q", budget, now)
    due = list(ledger.alerts.pending())
    for alert in due:
        ledger.alerts.told(alert.id)
    return due


def test_alerts_come_once_each_and_survive_a_restart() -> None:
    """Each share of the budget is told once per window; of several passed at once only the highest."""
    budget = Budget(daily_usd="10", alert_percents=(50, 75, 90, 100))
    ledger, now, told = SpendLedger(), unix("2026-05-05T12:00:00+00:00"), []
    for spent in (4, 5, 6, 8, 8, 12, 13):
        ledger.report("i", [Spend(budget="q", window="2026-05-05", usd_micros=spent * 10**6)], now)
        told += [alert.percent for alert in take_alerts(ledger, budget, now)]
        ledger = SpendLedger(ledger.state())
    assert told == [50, 75, 100]
    tomorrow = now + 24 * HOUR
    ledger.report("i", [Spend(budget="q", window="2026-05-06", usd_micros=5 * 10**6)], tomorrow)
    assert [alert.percent for alert in take_alerts(ledger, budget, tomorrow)] == [50]


def test_a_budget_is_spent_until_its_window_ends() -> None:
    """The day's end, or the month's if that is spent too; then it is open again."""
    budget = Budget(daily_usd="10", monthly_usd="15", time_zone="Europe/Berlin")
    ledger, now = SpendLedger(), unix("2026-05-05T12:00:00+02:00")
    ledger.report("i", [Spend(budget="q", window="2026-05-05", usd_micros=10 * 10**6)], now)
    (exhausted,) = ledger.exhausted({"q": budget}, now)
    assert exhausted.until == unix("2026-05-06T00:00:00+02:00")
    assert ledger.exhausted({"q": budget}, exhausted.until) == ()
    ledger.report("i", [Spend(budget="q", window="2026-05-06", usd_micros=5 * 10**6)], exhausted.until)
    (exhausted,) = ledger.exhausted({"q": budget}, exhausted.until)
    assert exhausted.until == unix("2026-06-01T00:00:00+02:00")


def test_the_forecast_says_when_it_runs_out() -> None:
    """Two dollars an hour leave five hours to ten dollars; a budget that lasts until its end has no such time."""
    ledger, start = SpendLedger(), unix("2026-05-05T10:00:00+00:00")
    for hour in range(3):
        spends = [Spend(budget="q", window="2026-05-05", usd_micros=(hour + 1) * 2_000_000)]
        ledger.report("i", spends, start + hour * HOUR)
    now = start + 3 * HOUR - 1
    figures = ledger.assess("q", Budget(daily_usd="10"), now)
    assert figures.spent_today_usd_micros == 6_000_000
    assert figures.runs_out_at == pytest.approx(now + 2 * HOUR, rel=1e-6)
    assert figures.resets_at == unix("2026-05-06T00:00:00+00:00")
    assert ledger.assess("q", Budget(daily_usd="1000"), now).runs_out_at is None


def test_unusual_spend_is_told_once_an_hour_and_needs_a_baseline() -> None:
    """An hour at twice the mean of those before is told as soon as it is; the same as first hours of all is not."""
    ledger, start, budget = SpendLedger(), unix("2026-05-05T00:00:00+00:00"), Budget(monthly_usd="100000")
    total = 0
    for hour in range(12):
        total += 4_000_000 if hour in (2, 10) else 2_000_000
        now = start + hour * HOUR + 60
        ledger.report("i", [Spend(budget="q", window="2026-05-05", usd_micros=total)], now)
        alerts = [*take_alerts(ledger, budget, now), *take_alerts(ledger, budget, now)]
        assert [alert.kind for alert in alerts] == (["Anomaly"] if hour == 10 else []), hour
    assert datetime.fromtimestamp(start, UTC).hour == 0


@given(st.integers(0, 10**15))
def test_money_as_text_is_exact(micros: int) -> None:
    """Micro-dollars survive being written as dollars."""
    assert usd_micros(usd_text(micros)) == micros
