"""Which alerts about budgets are due, and which of them are still to be told.

An alert is pending from the moment in which it is decided. It is stored so with the ledger before anybody hears of it,
and stays pending until it has been told: a process that is killed at any moment tells it again, under the same id, so
that a receiver can drop the double, and loses none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from sluice_core.api.base import Value
from sluice_core.api.quotaallocation import Budget

MAX_PENDING_ALERTS: Final = 128
"""Alerts of one quota that wait to be told; beyond this the oldest is lost."""

_ANOMALY: Final = "anomaly"
_SPENT: Final = " spent"


class Alert(Value, frozen=True, kw_only=True):
    """A budget has passed a share of itself for the first time in a window, or its spend per hour is unusual.

    `id` is the same for the same alert, whoever decides it. Of an anomaly, `percent` is the spend of the hour that
    began at `window`, of the usual. `at` is when it was decided, in Unix seconds.
    """

    id: str
    budget: str
    window: str
    percent: int
    kind: str = "Threshold"  # or "Anomaly"
    spent_usd_micros: int
    limit_usd_micros: int
    at: int


class AlertBook:
    """The alerts of the budgets of one quota: which were decided, by budget and window, and which are to be told.

    Also since when a budget is spent, which is noticed here.
    """

    __slots__ = ("_given", "_pending", "_told", "lost")

    def __init__(self, given: Mapping[str, Mapping[str, int]], pending: Iterable[Alert] = ()) -> None:
        self._given = {name: dict(windows) for name, windows in given.items()}
        self._pending = {each.id: each for each in pending}
        self._told: dict[str, None] = {}
        self.lost = 0

    def given(self) -> dict[str, dict[str, int]]:
        """Return what must be stored of the alerts that were decided."""
        return {name: dict(windows) for name, windows in self._given.items() if windows}

    def pending(self) -> tuple[Alert, ...]:
        """Return what is to be told, the oldest first."""
        return tuple(self._pending.values())

    def begin(self, name: str, month: str) -> None:
        """Forget the windows of other months."""
        windows = self._given.get(name, {})
        for old in [window for window in windows if not window.startswith((month, _ANOMALY))]:
            del windows[old]

    def weigh(self, name: str, budget: Budget, window: str, spent: int, limit: int, unix_now: float) -> bool:
        """Decide about the marks of one window: of several passed at once the highest. Tell whether there is news.

        A mark that was passed and is so no more, because the budget was raised, may be passed again.
        """
        windows, news = self._given.setdefault(name, {}), False
        if (spent >= limit) != (window + _SPENT in windows):
            windows.pop(window + _SPENT, None)
            windows |= {window + _SPENT: int(unix_now)} if spent >= limit else {}
            news = True
        passed = max((percent for percent in budget.alert_percents if spent * 100 >= limit * percent), default=0)
        before = windows.get(window, 0)
        if passed == before:
            return news
        windows[window] = passed
        if passed > before:
            self._add(name, window, passed, "Threshold", spent, limit, unix_now)
        return True

    def spent_at(self, name: str, window: str) -> int | None:
        """Return since when the money of a window is known to be spent, in Unix seconds; None if it is not."""
        return self._given.get(name, {}).get(window + _SPENT)

    def notice(self, name: str, hour: int, window: str, percent: int, spent: int, unix_now: float) -> bool:
        """Decide about an unusual hour, given as hours since 1970: once for each. Tell whether there is news."""
        windows = self._given.setdefault(name, {})
        if windows.get(_ANOMALY, 0) >= hour:
            return False
        windows[_ANOMALY] = hour
        self._add(name, window, percent, "Anomaly", spent, 0, unix_now)
        return True

    def told(self, alert_id: str) -> bool:
        """Learn that an alert was told; tell whether it was pending."""
        self._told[alert_id] = None
        while len(self._told) > MAX_PENDING_ALERTS:
            del self._told[next(iter(self._told))]
        return self._pending.pop(alert_id, None) is not None

    def absorb(self, other: AlertBook) -> None:
        """Take in what another one knows; what that one has told is not to be told again."""
        for name, windows in other._given.items():
            own = self._given.setdefault(name, {})
            own.update({window: max(mark, own.get(window, 0)) for window, mark in windows.items()})
        self._told = dict(other._told)
        self._pending = {
            name: each for name, each in (self._pending | other._pending).items() if name not in self._told
        }

    def _add(self, name: str, window: str, percent: int, kind: str, spent: int, limit: int, unix_now: float) -> None:
        # What is spent is left out of the id: two leaders may decide the same alert at different figures.
        named = f"{name}\n{kind}\n{window}\n{percent if kind == 'Threshold' else ''}\n{limit}"
        alert = Alert(
            id=hashlib.sha256(named.encode()).hexdigest()[:16],
            budget=name,
            window=window,
            percent=percent,
            kind=kind,
            spent_usd_micros=spent,
            limit_usd_micros=limit,
            at=int(unix_now),
        )
        self._pending[alert.id] = alert
        while len(self._pending) > MAX_PENDING_ALERTS:
            del self._pending[next(iter(self._pending))]
            self.lost += 1
