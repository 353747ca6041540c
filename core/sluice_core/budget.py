"""Money per calendar day and month: windows, the ledger of what was spent, and what follows from it.

Sidecars report what they have settled, cumulative per process and day, so that a report may be lost or repeated. The
leader remembers the highest figure of each, in a state that survives it.

A budget stops spending after the fact: what goes over it is at most what all pods settle within two reports (5 s each)
and what is in flight when they hear that it is spent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from sluice_core.alerts import Alert, AlertBook
from sluice_core.api.base import Value
from sluice_core.api.quotaallocation import Budget
from sluice_core.ladder import lowest_step
from sluice_core.limits.money import usd_micros
from sluice_core.spend_hours import DAY_SECONDS, HOUR_SECONDS, SpendHours, hour_name
from sluice_core.sync import Exhausted, Spend, SpentShare

MOST_PERCENT: Final = 1000
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
    today = _date(unix_now, zone)
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
    first = _date(unix_now, zone).replace(day=1)
    following = (first + timedelta(days=31)).replace(day=1)
    return CalendarWindow(
        name=first.isoformat()[:7],
        starts_at=_midnight(first, zone),
        ends_at=_midnight(following, zone),
    )


def _date(unix_now: float, zone: ZoneInfo) -> date:
    # To whole seconds, because parts of a microsecond would be rounded up, into the next day.
    return datetime.fromtimestamp(unix_now // 1, zone).date()


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
            days = self._spent.get(name)
            if days is None:
                days = self._spent[name] = {}
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
    """The ledger as it is stored. Days by budget, hours of recent spend by budget, alerts that were decided.

    `users` is the money of single users, by allocation and day; `pending` are the alerts that are still to be told.
    `at` is when a process reported last, in Unix seconds.
    """

    days: dict[str, dict[str, int]] = {}
    hours: dict[str, dict[int, int]] = {}
    marks: tuple[Mark, ...] = ()
    alerts: dict[str, dict[str, int]] = {}
    users: dict[str, dict[str, dict[str, int]]] = {}
    pending: tuple[Alert, ...] = ()
    at: float = 0.0


class WindowShare(Value, frozen=True, kw_only=True):
    """How much of a budget is spent in one of its windows, in percent, and when that ends, in Unix seconds."""

    percent: int
    until: float


class Assessment(Value, frozen=True, kw_only=True):
    """Where a budget stands. Times are Unix seconds, None where they do not apply.

    `resets_at` is when it may be spent again: the end of the day, or of the month if that is what is spent.
    `runs_out_at` is when it will be spent at the present rate, or was.
    """

    spent_today_usd_micros: int
    spent_month_usd_micros: int
    resets_at: float
    runs_out_at: float | None = None
    exhausted_until: float | None = None
    shares: tuple[WindowShare, ...] = ()


class SpendLedger:
    """What was spent under each budget, by day. The leader's half."""

    __slots__ = ("_at", "_days", "_heard", "_hours", "_marks", "_oldest", "alerts")

    def __init__(self, state: LedgerState | None = None) -> None:
        state = state or LedgerState()
        self._days = {name: dict(days) for name, days in state.days.items()}
        self._hours = SpendHours(state.hours)
        self._marks = {(each.instance, each.budget, each.day): each.usd_micros for each in state.marks}
        self._at = state.at
        self._heard = {each.instance: state.at for each in state.marks} if state.at else {}
        self._oldest = ""
        self.alerts = AlertBook(state.alerts, state.pending)

    def state(self) -> LedgerState:
        """Return what must be stored to go on from here."""
        marks = (
            Mark(instance=instance, budget=budget, day=day, usd_micros=spent)
            for (instance, budget, day), spent in self._marks.items()
        )
        return LedgerState(
            days={name: dict(days) for name, days in self._days.items()},
            hours=self._hours.state(),
            marks=tuple(marks),
            alerts=self.alerts.given(),
            pending=self.alerts.pending(),
            at=self._at,
        )

    def report(self, instance: str, spends: Iterable[Spend], unix_now: float) -> bool:
        """Take the cumulative figures of one process; what was counted before is not. Tell whether there was more."""
        charged = False
        self._close_days(unix_now)
        # What was spent while nobody listened is not the spend of this hour.
        since = self._heard.get(instance, unix_now)
        for spend in spends:
            key = (instance, spend.budget, spend.window)
            more = spend.usd_micros - self._marks.get(key, 0)
            if more <= 0 or spend.window < self._oldest or (key not in self._marks and len(self._marks) >= _MAX_MARKS):
                continue
            charged = True
            self._marks[key] = spend.usd_micros
            days = self._days.setdefault(spend.budget, {})
            days[spend.window] = days.get(spend.window, 0) + more
            while len(days) > _DAYS_KEPT:
                del days[min(days)]
            self._hours.charge(spend.budget, more, since, unix_now)
        if charged or instance in self._heard:
            self._heard[instance] = self._at = unix_now
        return charged

    def _close_days(self, unix_now: float) -> None:
        # Older days are closed: their marks are gone, so a late repetition could not be told from a first report.
        oldest = (datetime.fromtimestamp(unix_now, UTC).date() - timedelta(days=_DAYS_REPORTED)).isoformat()
        if oldest != self._oldest:
            self._oldest = oldest
            self._marks = {key: spent for key, spent in self._marks.items() if key[2] >= oldest}
            reporting = {key[0] for key in self._marks}
            self._heard = {instance: at for instance, at in self._heard.items() if instance in reporting}

    def absorb(self, other: SpendLedger, unix_now: float) -> None:
        """Take in what another leader's memory has more of: what each process reported, counted once."""
        spends: dict[str, list[Spend]] = {}
        for (instance, budget, day), spent in other._marks.items():
            spends.setdefault(instance, []).append(Spend(budget=budget, window=day, usd_micros=spent))
        for instance, own in spends.items():
            self.report(instance, own, unix_now)
        for name, days in other._days.items():
            own_days = self._days.setdefault(name, {})
            own_days.update({day: max(most, own_days.get(day, 0)) for day, most in days.items()})
        self.alerts.absorb(other.alerts)

    def forget(self, instances: Collection[str]) -> None:
        """Forget which figures processes reported that will report no more; what they spent stays spent."""
        self._marks = {key: spent for key, spent in self._marks.items() if key[0] not in instances}
        for instance in instances:
            self._heard.pop(instance, None)

    def last_day(self) -> str:
        """Return the latest day that anything was spent on, empty if there is none."""
        return max((day for days in self._days.values() for day in days), default="")

    def spent(self, budget: str, window: CalendarWindow) -> int:
        """Return what was spent in a day or month."""
        return sum(spent for day, spent in self._days.get(budget, {}).items() if day.startswith(window.name))

    def assess(self, name: str, budget: Budget, unix_now: float) -> Assessment:
        """Return where a budget stands.

        The day is forecast from the last hour, the month from the last day, or no night would ever come in it.
        """
        day, month = day_of(unix_now, budget.time_zone), month_of(unix_now, budget.time_zone)
        exhausted: float | None = None
        times: list[float] = []  # when it will be spent, or was
        shares: list[WindowShare] = []
        for window, limit in _limits(budget, day, month):
            spent = self.spent(name, window)
            shares.append(WindowShare(percent=_percent(spent, limit), until=window.ends_at))
            rate = self._hours.rate(name, HOUR_SECONDS if window is day else DAY_SECONDS, unix_now)
            if spent >= limit:
                exhausted = max(exhausted or 0.0, window.ends_at)
                times.append(self.alerts.spent_at(name, window.name) or unix_now)
            elif rate > 0 and (ends := unix_now + (limit - spent) / rate) < window.ends_at:
                times.append(ends)
        return Assessment(
            spent_today_usd_micros=self.spent(name, day),
            spent_month_usd_micros=self.spent(name, month),
            resets_at=exhausted or (day.ends_at if budget.daily_usd else month.ends_at),
            runs_out_at=min(times, default=None),
            exhausted_until=exhausted,
            shares=tuple(shares),
        )

    def exhausted(self, budgets: Mapping[str, Budget], unix_now: float) -> tuple[Exhausted, ...]:
        """Return the spent ones of these budgets, for the answer to a report."""
        found = []
        for name, budget in budgets.items():
            day, month = day_of(unix_now, budget.time_zone), month_of(unix_now, budget.time_zone)
            ends = [
                window.ends_at for window, limit in _limits(budget, day, month) if self.spent(name, window) >= limit
            ]
            if ends:
                found.append(Exhausted(budget=name, until=max(ends)))
        return tuple(found)

    def left(self, name: str, budget: Budget, unix_now: float) -> int:
        """Return what may be spent under a budget before one of its windows is spent."""
        day, month = day_of(unix_now, budget.time_zone), month_of(unix_now, budget.time_zone)
        return min(limit - self.spent(name, window) for window, limit in _limits(budget, day, month))

    def shares(self, budgets: Mapping[str, Budget], unix_now: float) -> tuple[SpentShare, ...]:
        """Return how much is spent of those budgets that have come to a step, for the answer to a report."""
        return tuple(
            SpentShare(budget=name, percent=share.percent, until=share.until)
            for name, budget in budgets.items()
            if (first := lowest_step(budget)) is not None
            for share in self.assess(name, budget, unix_now).shares
            if share.percent >= first
        )

    def decide_alerts(self, name: str, budget: Budget, unix_now: float) -> bool:
        """Decide which alerts of a budget are due; they are pending then. Tell whether there is anything to store."""
        day, month = day_of(unix_now, budget.time_zone), month_of(unix_now, budget.time_zone)
        self.alerts.begin(name, month.name)
        news = False
        for window, limit in _limits(budget, day, month):
            spent = self.spent(name, window)
            news = self.alerts.weigh(name, budget, window.name, spent, limit, unix_now) or news
        for each in self._hours.unusual(name, budget.time_zone, unix_now):
            window_name = hour_name(each.hour, budget.time_zone)
            told = self.alerts.notice(name, each.hour, window_name, each.percent, each.spent_usd_micros, unix_now)
            news = told or news
        return news

    def unusual(self, name: str, budget: Budget, unix_now: float) -> bool:
        """Tell whether the last hour, or the present one already, costs unusually much."""
        return bool(self._hours.unusual(name, budget.time_zone, unix_now))


def _limits(budget: Budget, day: CalendarWindow, month: CalendarWindow) -> list[tuple[CalendarWindow, int]]:
    pairs = ((day, budget.daily_usd), (month, budget.monthly_usd))
    return [(window, usd_micros(usd)) for window, usd in pairs if usd is not None]


def _percent(spent: int, limit: int) -> int:
    return min(MOST_PERCENT, spent * 100 // limit) if limit else MOST_PERCENT
