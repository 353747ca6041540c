"""What was spent in each hour of about a week: the present rate, and unusual hours.

Hours are those of Unix time, so that they are all of one length. The usual spend of an hour is looked up by the clock
on the wall of the budget's zone, or a change of the clocks would make the first hour of each working day unusual.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from statistics import median_low
from typing import Final
from zoneinfo import ZoneInfo

from sluice_core.api.base import Value

HOUR_SECONDS: Final = 3600.0
DAY_SECONDS: Final = 24 * HOUR_SECONDS
ANOMALY_PERCENT: Final = 150
_BASELINE_DAYS: Final = 7
_BASELINE_HOURS: Final = _BASELINE_DAYS * 24
_LEAST_BASELINE_HOURS: Final = 6
_LEAST_ANOMALY_USD_MICROS: Final = 1_000_000
_LEAST_RATE_SECONDS: Final = 300.0
"""Shortest time over which a rate is taken: two calls in a row are no rate."""


class UnusualHour(Value, frozen=True, kw_only=True):
    """An hour that was unusually expensive. `hour` counts from 1970, `percent` is of the usual."""

    hour: int
    percent: int
    spent_usd_micros: int


class SpendHours:
    """Micro-dollars by budget and hour. Every `unix_now` is in seconds since 1970."""

    __slots__ = ("_began", "_hours")

    def __init__(self, hours: Mapping[str, Mapping[int, int]]) -> None:
        self._hours = {name: dict(each) for name, each in hours.items()}
        self._began: dict[str, float] = {}  # of budgets that spend for the first time: when exactly

    def state(self) -> dict[str, dict[int, int]]:
        """Return what must be stored."""
        return {name: dict(hours) for name, hours in self._hours.items()}

    def charge(self, name: str, usd_micros: int, since: float, unix_now: float) -> None:
        """Count what was spent between `since` and now: evenly, if that is longer than an hour."""
        hours = self._hours.setdefault(name, {})
        if not hours:
            self._began[name] = since
        last, rest = int(unix_now // HOUR_SECONDS), usd_micros
        if unix_now - since > HOUR_SECONDS:
            since = max(since, (last - _BASELINE_HOURS) * HOUR_SECONDS)
            for hour in range(int(since // HOUR_SECONDS), last):
                seconds = (hour + 1) * HOUR_SECONDS - max(since, hour * HOUR_SECONDS)
                part = int(usd_micros * seconds / (unix_now - since))
                hours[hour] = hours.get(hour, 0) + part
                rest -= part
        hours[last] = hours.get(last, 0) + rest
        while len(hours) > _BASELINE_HOURS + 2:
            del hours[min(hours)]

    def rate(self, name: str, span_seconds: float, unix_now: float) -> float:
        """Return micro-dollars a second over about the last `span_seconds`, or over less if less is known."""
        hours = self._hours.get(name)
        if not hours:
            return 0.0
        began = self._began.get(name, min(hours) * HOUR_SECONDS)
        span = min(max(unix_now - began, _LEAST_RATE_SECONDS), span_seconds)
        start, present = unix_now - span, int(unix_now // HOUR_SECONDS)
        spent = 0.0
        for hour, usd_micros in hours.items():
            ends = (hour + 1) * HOUR_SECONDS
            part = 1.0 if hour == present else (ends - start) / (ends - max(began, hour * HOUR_SECONDS))
            spent += usd_micros * min(1.0, max(0.0, part))
        return spent / span

    def unusual(self, name: str, time_zone: str, unix_now: float) -> tuple[UnusualHour, ...]:
        """Return which of the last hour and the present one cost more than one and a half times the usual.

        The usual is the mean of the week before, or the median of the same hour of the days before if that is more.
        Less than six earlier hours are no baseline; less than a dollar is no anomaly.
        """
        hours = self._hours.get(name)
        if not hours:
            return ()
        present = int(unix_now // HOUR_SECONDS)
        found = (_unusual(hours, hour, ZoneInfo(time_zone)) for hour in (present - 1, present))
        return tuple(each for each in found if each is not None)


def hour_name(hour: int, time_zone: str) -> str:
    """Return an hour as "2026-10-25T02:00+01:00": with its offset, because one of them comes twice a year."""
    return datetime.fromtimestamp(hour * HOUR_SECONDS, ZoneInfo(time_zone)).isoformat(timespec="minutes")


def _unusual(hours: Mapping[int, int], hour: int, zone: ZoneInfo) -> UnusualHour | None:
    spent = hours.get(hour, 0)
    if spent < _LEAST_ANOMALY_USD_MICROS:
        return None
    earlier = [each for each in hours if hour - _BASELINE_HOURS <= each < hour]
    if not earlier or hour - min(earlier) < _LEAST_BASELINE_HOURS:
        return None
    mean = sum(hours[each] for each in earlier) // (hour - min(earlier))
    same = [hours.get(each, 0) for each in _days_before(hour, zone) if each >= min(earlier)]
    usual = max(mean, median_low(same) if same else 0, 1)
    if spent * 100 <= usual * ANOMALY_PERCENT:
        return None
    return UnusualHour(hour=hour, percent=spent * 100 // usual, spent_usd_micros=spent)


def _days_before(hour: int, zone: ZoneInfo) -> list[int]:
    """Return the hours at which the same time was on the clock on the days before."""
    local = datetime.fromtimestamp(hour * HOUR_SECONDS, zone)
    days = (local - timedelta(days=day) for day in range(1, _BASELINE_DAYS + 1))
    return [int(each.timestamp() // HOUR_SECONDS) for each in days]
