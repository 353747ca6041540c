"""What single users have spent today over all pods of an allocation: the leader's memory of their money.

Pods tell what a user has spent in them today, reservations included, so a report may be lost or repeated. What a
process had told when it ended is kept, and stored, for it will not be told again. Bounded: of more users than find
room only those are known who came first; for the others each pod's own count holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sluice_core.budget import CalendarWindow, day_of
from sluice_core.limits.accounts import zone_of
from sluice_core.limits.money import usd_micros
from sluice_core.limits.user_leases import scope_of
from sluice_core.snapshot import QuotaPolicy
from sluice_core.sync import UserReport, UserSpend

MAX_USERS: Final = 5000
"""Users of one allocation whose money is known together, and whose spending outlives the pods that reported it."""

MAX_EXHAUSTED: Final = 500
"""Users of one allocation that pods are told of as spent: those who spent most."""


Stored = dict[str, dict[str, dict[str, int]]]
"""What ended processes have told: by allocation, day and user, in micro-dollars."""


class UserLedger:
    """The users of one allocation on one calendar day, in micro-dollars."""

    __slots__ = ("_ended", "_living", "_over", "_totals", "day", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.day = ""
        self._totals: dict[str, int] = {}
        self._living: dict[str, dict[str, int]] = {}
        self._ended: dict[str, int] = {}
        self._over: set[str] = set()

    def begin(self, day: str) -> None:
        """Learn which day it is; with another day everybody begins anew."""
        if day != self.day:
            self.day = day
            self._totals, self._living, self._ended, self._over = {}, {}, {}, set()

    def restore(self, day: str, ended: Mapping[str, int]) -> None:
        """Go on from what was stored, if it is of today."""
        if day == self.day:
            for user, spent in ended.items():
                self._ended[user] = self._ended.get(user, 0) + spent
                self._add(user, spent)

    def stored(self) -> dict[str, int]:
        """Return what must be stored: what ended processes have told."""
        return dict(self._ended)

    def report(self, instance: str, day: str, spends: Iterable[UserSpend]) -> None:
        """Take what a process tells; of another day, or of too many users, it is left out."""
        if day != self.day:
            return
        told = self._living.setdefault(instance, {})
        for spend in spends:
            if spend.user not in self._totals and len(self._totals) >= MAX_USERS:
                continue
            self._add(spend.user, spend.usd_micros - told.get(spend.user, 0))
            told[spend.user] = spend.usd_micros

    def end(self, instance: str) -> bool:
        """Learn that a process will report no more. Tell whether there is more to store."""
        told = self._living.pop(instance, {})
        for user, spent in told.items():
            self._ended[user] = self._ended.get(user, 0) + spent
        return bool(told)

    def configure(self, limit: int) -> None:
        """Put another limit into force."""
        if limit != self.limit:
            self.limit = limit
            self._over = {user for user, spent in self._totals.items() if spent >= limit}

    def exhausted(self) -> tuple[str, ...]:
        """Return who has spent all that a user may."""
        if len(self._over) <= MAX_EXHAUSTED:
            return tuple(self._over)
        return tuple(sorted(self._over, key=lambda user: -self._totals[user])[:MAX_EXHAUSTED])

    def _add(self, user: str, usd_micros: int) -> None:
        total = self._totals[user] = self._totals.get(user, 0) + usd_micros
        if total >= self.limit:
            self._over.add(user)
        else:
            self._over.discard(user)


class UserMoney:
    """The ledgers of all allocations that limit the money of their users. `unix_now` is seconds since 1970."""

    __slots__ = ("_days", "_ledgers", "_places", "_restored", "_zones")

    def __init__(self) -> None:
        self._ledgers: dict[str, UserLedger] = {}  # by scope, as everything here
        self._places: dict[str, tuple[str, str]] = {}  # quota and allocation
        self._zones: dict[str, str] = {}
        self._days: dict[str, CalendarWindow] = {}  # by time zone
        self._restored: dict[str, tuple[str, Mapping[str, int]]] = {}

    def configure(self, quotas: Iterable[QuotaPolicy]) -> None:
        """Put limits into force; what was spent stays spent."""
        self._places, self._zones = {}, {}
        for quota in quotas:
            for each in quota.allocations:
                if each.per_user is None or each.per_user.daily_usd is None:
                    continue
                scope, limit = scope_of(quota, each), usd_micros(each.per_user.daily_usd)
                self._places[scope] = quota.key, each.name
                self._zones[scope] = zone_of(quota, each)
                if scope in self._ledgers:
                    self._ledgers[scope].configure(limit)
                else:
                    self._ledgers[scope] = UserLedger(limit)
        for scope in self._ledgers.keys() - self._places.keys():
            del self._ledgers[scope]

    def restore(self, quota: str, users: Stored) -> None:
        """Go on from what was stored of a quota."""
        for allocation, days in users.items():
            for day, spent in days.items():
                self._restored[f"{quota}/{allocation}"] = day, spent
        for scope, ledger in self._ledgers.items():
            self._resume(scope, ledger)

    def state(self, quota: str) -> Stored:
        """Return what must be stored of a quota."""
        return {
            allocation: {self._ledgers[scope].day: stored}
            for scope, (key, allocation) in self._places.items()
            if key == quota and (stored := self._ledgers[scope].stored())
        }

    def quotas(self) -> frozenset[str]:
        """Return the quotas that limit the money of users."""
        return frozenset(quota for quota, _ in self._places.values())

    def report(self, instance: str, report: UserReport, unix_now: float) -> None:
        """Take what a process tells of the users of one allocation."""
        ledger = self._today(report.scope, unix_now)
        if ledger is not None and report.spends:
            ledger.report(instance, report.day, report.spends)

    def end(self, instance: str) -> frozenset[str]:
        """Learn that a process will report no more; return the quotas of which there is more to store."""
        return frozenset(self._places[scope][0] for scope, each in self._ledgers.items() if each.end(instance))

    def exhausted(self, scope: str, unix_now: float) -> tuple[str, ...]:
        """Return the users of an allocation who have spent all that they may today."""
        ledger = self._today(scope, unix_now)
        return ledger.exhausted() if ledger is not None else ()

    def _today(self, scope: str, unix_now: float) -> UserLedger | None:
        ledger = self._ledgers.get(scope)
        if ledger is None:
            return None
        zone = self._zones[scope]
        day = self._days.get(zone)
        if day is None or not day.starts_at <= unix_now < day.ends_at:
            day = self._days[zone] = day_of(unix_now, zone)
        if ledger.day != day.name:
            ledger.begin(day.name)
            self._resume(scope, ledger)
        return ledger

    def _resume(self, scope: str, ledger: UserLedger) -> None:
        if ledger.day and scope in self._restored:
            ledger.restore(*self._restored.pop(scope))
