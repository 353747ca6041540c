"""When money runs out, when it is back, and which hours are unusual: by the clock on the wall of the budget's zone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from sluice_core.api.quotaallocation import Budget
from sluice_core.budget import SpendCounter, SpendLedger, day_of
from sluice_core.spend_hours import HOUR_SECONDS

MINUTE = 60.0
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def at(text: str, zone: str = "UTC") -> float:
    """Seconds since 1970 of a time on the wall."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


class Service:
    """One process that spends at a rate and reports every five minutes."""

    def __init__(self, budget: Budget, starts_at: float) -> None:
        self.budget, self.now = budget, starts_at
        self.counter, self.ledger = SpendCounter(), SpendLedger()

    def spend(self, usd_per_hour: float, until: float, *, heard: bool = True) -> Iterator[float]:
        """Spend until then, evenly; yield each time at which that was reported."""
        step = 5 * MINUTE
        while self.now + step <= until:
            between = self.now + step / 2
            cost = round(usd_per_hour * 1_000_000 * step / HOUR_SECONDS)
            self.counter.charge({"q": self.budget}, cost, between)
            if heard:
                self.ledger.report("i", self.counter.export(), between)
            self.now += step
            yield self.now

    def run(self, usd_per_hour: float, until: float) -> None:
        for _ in self.spend(usd_per_hour, until):
            pass

    def forecast(self, budget: Budget | None = None) -> float | None:
        return self.ledger.assess("q", budget or self.budget, self.now).runs_out_at

    def alerts(self, budget: Budget | None = None) -> list[tuple[str, int]]:
        """Decide, and tell at once what is due."""
        self.ledger.decide_alerts("q", budget or self.budget, self.now)
        due = self.ledger.alerts.pending()
        for each in due:
            self.ledger.alerts.told(each.id)
        return [(each.kind, each.percent) for each in due]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        (BERLIN, "2026-03-29", 23),
        (BERLIN, "2026-10-25", 25),
        (BERLIN, "2026-05-05", 24),
        (NEW_YORK, "2026-03-08", 23),
        (NEW_YORK, "2026-11-01", 25),
        ("Asia/Kathmandu", "2026-05-05", 24),
    ],
)
def test_a_day_lasts_as_long_as_it_is(zone: str, day: str, hours: int) -> None:
    """At a dollar an hour, a budget of half an hour less than the day's hours runs out; of half an hour more, not."""
    starts = at(f"{day}T00:00", zone)
    service = Service(Budget(daily_usd=f"{hours - 0.5}", time_zone=zone), starts)
    for hour in (2, 3, 6, 20):
        service.run(1.0, starts + hour * HOUR_SECONDS)
        assert service.forecast() == pytest.approx(starts + (hours - 0.5) * HOUR_SECONDS, abs=2), hour
        assert service.forecast(Budget(daily_usd=f"{hours + 0.5}", time_zone=zone)) is None
    assert service.ledger.assess("q", service.budget, service.now).resets_at == starts + hours * HOUR_SECONDS


@pytest.mark.parametrize("zone", [BERLIN, NEW_YORK, "Asia/Kathmandu"])
def test_the_first_hour_of_a_day_goes_on_at_the_last_ones_rate(zone: str) -> None:
    """Ten minutes into the day the hour before counts for the rate, and nothing of it for the day."""
    midnight = at("2026-05-05T00:00", zone)
    service = Service(Budget(daily_usd="10", time_zone=zone), midnight - 3 * HOUR_SECONDS)
    service.run(1.0, midnight + 10 * MINUTE)
    assert service.forecast() == pytest.approx(midnight + 10 * HOUR_SECONDS, abs=10 * MINUTE)
    assert service.ledger.assess("q", service.budget, service.now).spent_today_usd_micros == 1_000_000 // 6


def test_the_first_minutes_of_all_are_a_rate_too() -> None:
    """Who spends a tenth of the budget in ten minutes has an hour and a half left, not ten hours."""
    start = at("2026-05-05T10:37")
    service = Service(Budget(daily_usd="10"), start)
    assert service.forecast() is None
    service.run(6.0, start + 15 * MINUTE)
    assert service.forecast() == pytest.approx(start + 100 * MINUTE, abs=40 * MINUTE)


@pytest.mark.parametrize(
    ("day", "ends"), [("2026-02-27", "2026-03-01"), ("2026-12-30", "2027-01-01"), ("2026-03-30", "2026-04-01")]
)
def test_a_month_is_forecast_from_days_not_from_its_busiest_hour(day: str, ends: str) -> None:
    """Eight busy hours and sixteen idle ones are eight dollars a day, also at the busiest time."""
    start, end = at(f"{day}T00:00", BERLIN), at(f"{ends}T00:00", BERLIN)
    lasts, short = (Budget(monthly_usd=usd, time_zone=BERLIN) for usd in ("17", "15"))
    service = Service(lasts, start)
    service.run(0.0, start + 9 * HOUR_SECONDS)
    service.run(1.0, start + 17 * HOUR_SECONDS)
    service.run(0.0, start + 33 * HOUR_SECONDS)
    service.run(1.0, start + 37 * HOUR_SECONDS)
    assert service.forecast() is None
    runs_out = service.forecast(short)
    assert runs_out is not None
    assert start + 44 * HOUR_SECONDS < runs_out < end
    assert service.ledger.assess("q", lasts, service.now).resets_at == end


def test_without_spend_nothing_runs_out() -> None:
    """Neither before the first call nor when the last one was long ago."""
    start = at("2026-05-05T08:00")
    service = Service(Budget(daily_usd="10", monthly_usd="100"), start)
    assert (service.forecast(), service.alerts()) == (None, [])
    service.run(2.0, start + HOUR_SECONDS)
    service.run(0.0, start + 30 * HOUR_SECONDS)
    assert service.forecast() is None


def test_a_spent_budget_says_since_when_and_until_when() -> None:
    """Also when it is the month that is spent, and also of a budget that was lowered to less than what is spent."""
    start = at("2026-05-05T06:00")
    both = Budget(daily_usd="4", monthly_usd="20")
    service = Service(both, start)
    for _ in service.spend(1.0, start + 6.5 * HOUR_SECONDS):
        service.alerts()
    service.ledger = SpendLedger(service.ledger.state())  # also after another leader has taken over
    service.alerts()
    found = service.ledger.assess("q", both, service.now)
    assert found.runs_out_at == pytest.approx(start + 4 * HOUR_SECONDS, abs=6 * MINUTE)
    assert found.resets_at == found.exhausted_until == at("2026-05-06T00:00")
    lowered = Budget(daily_usd="50", monthly_usd="5")
    service.alerts(lowered)
    lowered_at, service.now = service.now, service.now + HOUR_SECONDS
    service.alerts(lowered)
    month = service.ledger.assess("q", lowered, service.now)
    assert month.runs_out_at == lowered_at
    assert month.resets_at == month.exhausted_until == at("2026-06-01T00:00")
    raised = Budget(daily_usd="50", monthly_usd="5000")
    service.alerts(raised)
    assert service.forecast(raised) is None


def test_a_budget_that_is_raised_alerts_again_on_its_way() -> None:
    """Raised, what is spent is a smaller part of it, and each mark may be passed anew; lowered, it alerts at once."""
    start = at("2026-05-05T06:00")
    ten, forty, five = (Budget(daily_usd=usd, alert_percents=(50, 100)) for usd in ("10", "40", "5"))
    service = Service(ten, start)
    service.run(4.0, start + 1.5 * HOUR_SECONDS)
    assert service.alerts(ten) == [("Threshold", 50)]
    assert service.alerts(forty) == []
    assert service.alerts(ten) == [("Threshold", 50)]
    service.run(4.0, start + 3 * HOUR_SECONDS)
    assert service.alerts(ten) == [("Threshold", 100)]
    assert service.alerts(forty) == []
    assert service.ledger.exhausted({"q": forty}, service.now) == ()
    service.run(4.0, start + 5.5 * HOUR_SECONDS)
    assert service.alerts(forty) == [("Threshold", 50)]
    service.run(4.0, start + 10.5 * HOUR_SECONDS)
    assert service.alerts(forty) == [("Threshold", 100)]
    assert service.alerts(forty) == []
    assert service.alerts(five) == []  # it was told already that all is spent


def test_another_zone_loses_no_money_and_counts_none_twice() -> None:
    """What was spent under a date stays under it: the new zone's day goes on with what the old one's has."""
    start = at("2026-05-05T20:00", BERLIN)
    service = Service(Budget(monthly_usd="1000", time_zone=BERLIN), start)
    service.run(1.0, at("2026-05-06T02:00", BERLIN))
    service.budget = Budget(monthly_usd="1000", time_zone=NEW_YORK)  # where it is 20:00 on the fifth
    service.run(1.0, at("2026-05-06T02:00", NEW_YORK))
    found = service.ledger.assess("q", service.budget, service.now)
    assert found.spent_month_usd_micros == pytest.approx(12_000_000, abs=50)
    assert found.spent_today_usd_micros == pytest.approx(4_000_000, abs=50)
    assert day_of(service.now, NEW_YORK).name == "2026-05-06"


def office_hours(service: Service, days: int, usd_per_hour: Callable[[datetime], float]) -> list[datetime]:
    """Let days go by, hour for hour; return when an hour was told to be unusual."""
    zone = ZoneInfo(service.budget.time_zone)
    told, end = [], service.now + days * 24 * HOUR_SECONDS
    while service.now < end:
        wall = datetime.fromtimestamp(service.now, zone)
        service.run(usd_per_hour(wall), service.now + HOUR_SECONDS)
        told += [wall for kind, _ in service.alerts() if kind == "Anomaly"]
    return told


def working(wall: datetime) -> float:
    return 20.0 if 9 <= wall.hour < 17 and wall.weekday() < 5 else 0.05


@pytest.mark.parametrize(("zone", "first"), [(BERLIN, "2026-03-16"), (NEW_YORK, "2026-10-19"), (BERLIN, "2026-10-12")])
def test_working_hours_are_usual_on_every_working_day(zone: str, first: str) -> None:
    """After the first, on which only the night before is known: also on Mondays, and when the clocks have changed."""
    service = Service(Budget(monthly_usd="100000", time_zone=zone), at(f"{first}T00:00", zone))
    told = office_hours(service, 21, working)
    assert {each.date().isoformat() for each in told} == {first}


def test_an_hour_of_twice_the_usual_is_told_in_that_hour() -> None:
    """Once, with its share of the usual; and an expensive night even if it costs less than a working hour."""
    service = Service(Budget(monthly_usd="100000", time_zone=BERLIN), at("2026-05-04T00:00", BERLIN))
    office_hours(service, 10, working)
    assert office_hours(service, 1, lambda wall: working(wall) * (2 if wall.hour == 11 else 1)) == [
        datetime(2026, 5, 14, 11, tzinfo=ZoneInfo(BERLIN))
    ]
    assert [each.hour for each in office_hours(service, 1, lambda wall: 12.0 if wall.hour == 3 else working(wall))] == [
        3
    ]


def test_what_was_spent_while_nobody_listened_is_not_the_spend_of_one_hour() -> None:
    """After a night without a leader the report of all that it missed is neither unusual nor the present rate."""
    start = at("2026-05-05T00:00")
    service = Service(Budget(daily_usd="100"), start)
    service.run(2.0, start + 10 * HOUR_SECONDS)
    service.ledger = SpendLedger(service.ledger.state())
    for _ in service.spend(2.0, start + 16 * HOUR_SECONDS, heard=False):
        pass
    service.run(2.0, start + 17 * HOUR_SECONDS)
    assert service.alerts() == []
    assert service.forecast() is None
    assert service.forecast(Budget(daily_usd="40")) == pytest.approx(start + 20 * HOUR_SECONDS, abs=20 * MINUTE)
    found = service.ledger.assess("q", service.budget, service.now)
    assert found.spent_today_usd_micros == pytest.approx(34_000_000, abs=100)
