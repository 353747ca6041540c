"""Money per calendar day and month: windows, the ledger of what was spent, and what follows from it.

Sidecars report what they have settled, cumulative per process and day, so that a report may be lost or repeated. The
leader remembers the highest figure of each, in a state that survives it.

A budget stops spending after the fact: what goes over it is at most what all pods settle between two reports (5 s) and
what is in flight when they hear that it is spent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from sluice_core.api.base import Value
from sluice_core.api.quotaallocation import Budget
from sluice_core.ladder import lowest_step
from sluice_core.limits.money import usd_micros
from sluice_core.sync import Exhausted, Spend, SpentShare

HOUR_SECONDS: Final = 3600.0
ANOMALY_PERCENT: Final = 150
MOST_PERCENT: Final = 1000
_BASELINE_HOURS: Final = 7 * 24
_LEAST_BASELINE_HOURS: Final = 6
_LEAST_ANOMALY_USD_MICROS: Final = 1_000_000
_DAYS_REPORTED: Final = 3
_DAYS_KEPT: Final = 62
_MAX_ZONES: Final = 64
_MAX_MARKS: Final = 200_000


class CalendarWindow(Value, frozen=True, kw_only=True):
    """A day or a month of a time zone; Unix seconds, the end exclusive. `name` is "2026-03-29" or "2026-03"."""

    name: str
    starts_at: float
    ends_at: float


def day_of(unix_now: float, time_zone: str) -> CalendarWindow:
    """Return the day that it is; with a change of the clocks it has 23 or 25 hours.

    Raises:
        ZoneInfoNotFoundError: there is no such zone.
    """
    zone = ZoneInfo(time_zone)
    today = datetime.fromtimestamp(unix_now, zone).date()
    return CalendarWindow(
        name=today.isoformat(),
        starts_at=_midnight(today, zone),
        ends_at=_midnight(today + timedelta(days=1), zone),
    )


def month_of(unix_now: float, time_zone: str) -> CalendarWindow:
    """Return the month that it is.

    Raises:
        ZoneInfoNotFoundError: there is no such zone.
    """
    zone = ZoneInfo(time_zone)
    first = datetime.fromtimestamp(unix_now, zone).date().replace(day=1)
    following = (first + timedelta(days=31)).replace(day=1)
    return CalendarWindow(
        name=first.isoformat()[:7],
        starts_at=_midnight(first, zone),
        ends_at=_midnight(following, zone),
    )


def _midnight(day: date, zone: ZoneInfo) -> float:
    # Where midnight does not exist, fold 0 gives the instant of the change; where it comes twice, the first one.
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()


class SpendCounter:
    """What one sidecar process has settled, by budget and day. The sidecar's half of the ledger."""

    __slots__ = ("_days", "_spent")

    def __init__(self) -> None:
        self._spent: dict[str, dict[str, int]] = {}
        self._days: dict[str, CalendarWindow] = {}  # by time zone; worked out anew when it is over

    def charge(self, budgets: Mapping[str, Budget], cost_usd_micros: int, unix_now: float) -> None:
        """Charge the cost of one call to its budgets, as `limits.admission.budgets_of` names them."""
        for name, budget in budgets.items():
            day = self._day(unix_now, budget.time_zone)
            days = self._spent.setdefault(name, {})
            days[day] = days.get(day, 0) + cost_usd_micros
            while len(days) > _DAYS_REPORTED:
                del days[min(days)]

    def _day(self, unix_now: float, time_zone: str) -> str:
        day = self._days.get(time_zone)
        if day is None or not day.starts_at <= unix_now < day.ends_at:
            if len(self._days) >= _MAX_ZONES:
                self._days.clear()
            day = self._days[time_zone] = day_of(unix_now, time_zone)
        return day.name

    def export(self) -> tuple[Spend, ...]:
        """Return the cumulative figures for a report."""
        return tuple(
            Spend(budget=name, window=day, usd_micros=spent)
            for name, days in self._spent.items()
            for day, spent in days.items()
        )


class Mark(Value, frozen=True, kw_only=True):
    """The highest figure that one process reported for a budget and day."""

    instance: str
    budget: str
    day: str
    usd_micros: int


class LedgerState(Value, frozen=True, kw_only=True):
    """The ledger as it is stored. Days by budget, hours of recent spend by budget, alerts that were given.

    `users` is the money of single users, by allocation and day.
    """

    days: dict[str, dict[str, int]] = {}
    hours: dict[str, dict[int, int]] = {}
    marks: tuple[Mark, ...] = ()
    alerts: dict[str, dict[str, int]] = {}
    users: dict[str, dict[str, dict[str, int]]] = {}


class Alert(Value, frozen=True, kw_only=True):
    """A budget has passed a share of itself for the first time in a window, or its spend per hour is unusual."""

    budget: str
    window: str
    percent: int
    kind: str = "Threshold"  # or "Anomaly": then `percent` is the last hour's spend, of the baseline
    spent_usd_micros: int
    limit_usd_micros: int


class WindowShare(Value, frozen=True, kw_only=True):
    """How much of a budget is spent in one of its windows, in percent, and when that ends, in Unix seconds."""

    percent: int
    until: float


class Assessment(Value, frozen=True, kw_only=True):
    """Where a budget stands. Times are Unix seconds, None where they do not apply."""

    spent_today_usd_micros: int
    spent_month_usd_micros: int
    resets_at: float
    runs_out_at: float | None = None
    exhausted_until: float | None = None
    shares: tuple[WindowShare, ...] = ()


class SpendLedger:
    """What was spent under each budget, by day. The leader's half."""

    __slots__ = ("_alerts", "_days", "_hours", "_marks", "_oldest")

    def __init__(self, state: LedgerState | None = None) -> None:
        state = state or LedgerState()
        self._days = {name: dict(days) for name, days in state.days.items()}
        self._hours = {name: dict(hours) for name, hours in state.hours.items()}
        self._marks = {(each.instance, each.budget, each.day): each.usd_micros for each in state.marks}
        self._alerts = {name: dict(windows) for name, windows in state.alerts.items()}
        self._oldest = ""

    def state(self) -> LedgerState:
        """Return what must be stored to go on from here."""
        marks = (
            Mark(instance=instance, budget=budget, day=day, usd_micros=spent)
            for (instance, budget, day), spent in self._marks.items()
        )
        return LedgerState(
            days={name: dict(days) for name, days in self._days.items()},
            hours={name: dict(hours) for name, hours in self._hours.items()},
            marks=tuple(marks),
            alerts={name: dict(windows) for name, windows in self._alerts.items()},
        )

    def report(self, instance: str, spends: Iterable[Spend], unix_now: float) -> bool:
        """Take the cumulative figures of one process; what was counted before is not. Tell whether there was more."""
        charged = False
        hour = int(unix_now // HOUR_SECONDS)
        # Older days are closed: their marks are gone, so a late repetition could not be told from a first report.
        oldest = (datetime.fromtimestamp(unix_now, UTC).date() - timedelta(days=_DAYS_REPORTED)).isoformat()
        if oldest != self._oldest:
            self._oldest = oldest
            self._marks = {key: spent for key, spent in self._marks.items() if key[2] >= oldest}
        for spend in spends:
            key = (instance, spend.budget, spend.window)
            more = spend.usd_micros - self._marks.get(key, 0)
            if more <= 0 or spend.window < oldest or (key not in self._marks and len(self._marks) >= _MAX_MARKS):
                continue
            charged = True
            self._marks[key] = spend.usd_micros
            days = self._days.setdefault(spend.budget, {})
            days[spend.window] = days.get(spend.window, 0) + more
            while len(days) > _DAYS_KEPT:
                del days[min(days)]
            hours = self._hours.setdefault(spend.budget, {})
            hours[hour] = hours.get(hour, 0) + more
            while len(hours) > _BASELINE_HOURS + 2:
                del hours[min(hours)]
        return charged

    def forget(self, instances: Collection[str]) -> None:
        """Forget which figures processes reported that will report no more; what they spent stays spent."""
        self._marks = {key: spent for key, spent in self._marks.items() if key[0] not in instances}

    def last_day(self) -> str:
        """Return the latest day that anything was spent on, empty if there is none."""
        return max((day for days in self._days.values() for day in days), default="")

    def spent(self, budget: str, window: CalendarWindow) -> int:
        """Return what was spent in a day or month."""
        return sum(spent for day, spent in self._days.get(budget, {}).items() if day.startswith(window.name))

    def assess(self, name: str, budget: Budget, unix_now: float) -> Assessment:
        """Return where a budget stands."""
        rate = self._rate(name, unix_now)
        day, month = day_of(unix_now, budget.time_zone), month_of(unix_now, budget.time_zone)
        exhausted: float | None = None
        runs_out: float | None = None
        shares: list[WindowShare] = []
        for window, limit in _limits(budget, day, month):
            spent = self.spent(name, window)
            left = limit - spent
            shares.append(WindowShare(percent=_percent(spent, limit), until=window.ends_at))
            if left <= 0:
                exhausted = max(exhausted or 0.0, window.ends_at)
                runs_out = unix_now
            elif rate > 0 and unix_now + left / rate < window.ends_at:
                runs_out = min(runs_out if runs_out is not None else float("inf"), unix_now + left / rate)
        return Assessment(
            spent_today_usd_micros=self.spent(name, day),
            spent_month_usd_micros=self.spent(name, month),
            resets_at=day.ends_at if budget.daily_usd else month.ends_at,
            runs_out_at=runs_out,
            exhausted_until=exhausted,
            shares=tuple(shares),
        )

    def exhausted(self, budgets: Mapping[str, Budget], unix_now: float) -> tuple[Exhausted, ...]:
        """Return the spent ones of these budgets, for the answer to a report."""
        found = []
        for name, budget in budgets.items():
            until = self.assess(name, budget, unix_now).exhausted_until
            if until is not None:
                found.append(Exhausted(budget=name, until=until))
        return tuple(found)

    def shares(self, budgets: Mapping[str, Budget], unix_now: float) -> tuple[SpentShare, ...]:
        """Return how much is spent of those budgets that have come to a step, for the answer to a report."""
        return tuple(
            SpentShare(budget=name, percent=share.percent, until=share.until)
            for name, budget in budgets.items()
            if (first := lowest_step(budget)) is not None
            for share in self.assess(name, budget, unix_now).shares
            if share.percent >= first
        )

    def take_alerts(self, name: str, budget: Budget, unix_now: float) -> tuple[Alert, ...]:
        """Return the alerts that are due and count them as given: each percentage once per window, the highest only."""
        day, month = day_of(unix_now, budget.time_zone), month_of(unix_now, budget.time_zone)
        given = self._alerts.setdefault(name, {})
        for old in [window for window in given if not window.startswith((month.name, "anomaly"))]:
            del given[old]
        alerts = []
        for window, limit in _limits(budget, day, month):
            spent = self.spent(name, window)
            passed = [percent for percent in budget.alert_percents if spent * 100 >= limit * percent]
            if passed and max(passed) > given.get(window.name, 0):
                given[window.name] = max(passed)
                alerts.append(_alert(name, window.name, max(passed), spent, limit))
        if (percent := self.anomaly_percent(name, unix_now)) is not None:
            hour = int(unix_now // HOUR_SECONDS)
            if given.get("anomaly") != hour:
                given["anomaly"] = hour
                spent = self._hours[name][hour - 1]
                alerts.append(_alert(name, day.name, percent, spent, 0, kind="Anomaly"))
        return tuple(alerts)

    def anomaly_percent(self, name: str, unix_now: float) -> int | None:
        """Return the last full hour's spend in percent of the week's mean hour, if that is unusually much.

        Less than six earlier hours are no baseline; less than a dollar is no anomaly.
        """
        hours = self._hours.get(name, {})
        last = int(unix_now // HOUR_SECONDS) - 1
        earlier = [hour for hour in hours if last - _BASELINE_HOURS <= hour < last]
        if not earlier or last - min(earlier) < _LEAST_BASELINE_HOURS:
            return None
        total, count, spent = sum(hours[hour] for hour in earlier), last - min(earlier), hours.get(last, 0)
        if spent < _LEAST_ANOMALY_USD_MICROS or spent * count * 100 <= total * ANOMALY_PERCENT:
            return None
        return spent * count * 100 // total

    def _rate(self, name: str, unix_now: float) -> float:
        """Return micro-dollars a second over about the last hour."""
        hours = self._hours.get(name, {})
        hour, into = divmod(unix_now, HOUR_SECONDS)
        before = hours.get(int(hour) - 1, 0) * (1.0 - into / HOUR_SECONDS)
        return (hours.get(int(hour), 0) + before) / HOUR_SECONDS


def _limits(budget: Budget, day: CalendarWindow, month: CalendarWindow) -> list[tuple[CalendarWindow, int]]:
    pairs = ((day, budget.daily_usd), (month, budget.monthly_usd))
    return [(window, usd_micros(usd)) for window, usd in pairs if usd is not None]


def _percent(spent: int, limit: int) -> int:
    return min(MOST_PERCENT, spent * 100 // limit) if limit else MOST_PERCENT


def _alert(name: str, window: str, percent: int, spent: int, limit: int, kind: str = "Threshold") -> Alert:
    return Alert(budget=name, window=window, percent=percent, kind=kind, spent_usd_micros=spent, limit_usd_micros=limit)
