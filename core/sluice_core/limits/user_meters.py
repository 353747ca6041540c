"""The meters of one user: requests and tokens of a minute, money of a calendar day."""

from __future__ import annotations

import math
from typing import Final

from sluice_core.limits.keys import Dimension, Layer
from sluice_core.limits.lease import Allowance
from sluice_core.limits.meters import USER_TOKEN_UNIT, Meter, RateMeter

_DAY_SECONDS: Final = 86_400.0


class UserAllowance(Allowance):
    """How much of a user's limit this pod may use. Whoever looks the user up sets it, for it changes with time.

    `room` is what may be used within any window that ends now, at most the ceiling. `leases` says that somebody may
    lease more. `alone` says that nobody does: then a single call goes that is larger than `room`, if nothing else was
    used within the window.
    """

    __slots__ = ("alone", "leases", "listed", "room")

    def __init__(self) -> None:
        super().__init__(ceiling=0, safe=0, sole=False)
        self.room = 0
        self.leases = False
        self.listed = False
        self.alone = False

    def amount(self, now: float) -> int:  # noqa: ARG002 - as of all allowances
        """Return what may be used within any window that ends now."""
        return self.room

    def may_use(self, now: float) -> float:  # noqa: ARG002 - as of all allowances
        """Return what may be used within any window that ends now, infinite without a limit."""
        return self.room if self.ceiling else math.inf

    def largest(self) -> int:
        """Return the most that could ever be granted."""
        return self.ceiling

    def may_grow(self, wanted: int, now: float) -> bool:  # noqa: ARG002 - as of all allowances
        """Tell whether the next answer may be larger."""
        return self.leases and (not self.listed or 4 * wanted > 5 * self.answered)


class UserRateMeter(RateMeter):
    """A user's requests or tokens within a minute."""

    __slots__ = ()
    allowance: UserAllowance

    def __init__(self, *, name: str, dimension: Dimension) -> None:
        super().__init__(name=name, layer=Layer.USER, dimension=dimension, allowance=UserAllowance())
        if dimension is Dimension.TOKENS:
            self.unit = USER_TOKEN_UNIT

    def fits(self, amount: int, now: float) -> bool:
        return super().fits(amount, now) or self._goes_alone(amount, now)

    def _take_all_the_same(self, amount: int, now: float) -> int | None:
        return self.window.take(amount, now) if self._goes_alone(amount, now) else None

    def earliest(self, amount: int, now: float) -> float | None:
        allowance = self.allowance
        if allowance.alone and allowance.room < amount <= allowance.ceiling:
            return self.window.earliest(allowance.ceiling, allowance.ceiling, now)  # when nothing is used any more
        return super().earliest(amount, now)

    def wanted(self, now: float) -> int:
        """Return what would be used if it were allowed. Other than for a pod, growth is not anticipated."""
        return self.used(now) + self.waiting + self._denied.expire(now)

    def _goes_alone(self, amount: int, now: float) -> bool:
        allowance = self.allowance
        return allowance.alone and amount <= allowance.ceiling and not self.window.expire(now)


class Day:
    """The calendar day that the money of users is counted in, and whose has changed since it was last told."""

    __slots__ = ("changed", "ends_at", "name", "serial")

    def __init__(self) -> None:
        self.name = ""
        self.serial = 0
        self.ends_at = float("-inf")
        self.changed: set[str] = set()

    def begin(self, name: str, ends_at: float) -> None:
        """Learn which day it is, and when it ends in monotonic seconds; with another day all begin anew."""
        if self.name and name != self.name:
            self.serial += 1
            self.changed.clear()
        self.name, self.ends_at = name, ends_at

    def end_after(self, now: float) -> float:
        """Return when the day ends; before it is known which one it is, a day from now."""
        return max(now, self.ends_at) if self.name else now + _DAY_SECONDS


class UserMoneyMeter(Meter):
    """A user's micro-dollars of a day in this process, what is reserved included."""

    __slots__ = ("_day", "_serial", "_used", "user")
    allowance: UserAllowance

    def __init__(self, *, name: str, user: str, day: Day) -> None:
        super().__init__(name=name, layer=Layer.USER, dimension=Dimension.MONEY_DAY, allowance=UserAllowance())
        self.user = user
        self._day = day
        self._serial = day.serial
        self._used = 0

    def used(self, now: float) -> int:  # noqa: ARG002 - as of all meters
        if self._serial != self._day.serial:
            self._serial, self._used = self._day.serial, 0
        return self._used

    def take(self, amount: int, now: float) -> int:
        self._used = self.used(now) + amount
        if amount:
            self._day.changed.add(self.user)
        return self._serial

    def take_if_fits(self, amount: int, now: float) -> int | None:
        used = (self._used if self._serial == self._day.serial else self.used(now)) + amount
        if used > self.allowance.may_use(now):
            return None
        self._used = used
        if amount:
            self._day.changed.add(self.user)
        return self._serial

    def adjust(self, slot: int, delta: int, now: float) -> None:
        # What a call cost more than was reserved for it counts on the day on which that is known.
        if delta > 0 or slot == self._day.serial:
            self.take(delta, now)

    def untake(self, slot: int, amount: int, now: float) -> None:
        self.adjust(slot, -amount, now)

    def soonest(self, amount: int, limit: int, now: float) -> float | None:
        if self.used(now) + amount <= limit:
            return now
        return None if amount > limit else self._day.end_after(now)

    def earliest(self, amount: int, now: float) -> float | None:
        ceiling = self.allowance.ceiling
        if self.fits(amount, now):
            return now
        return None if amount > ceiling else self._day.end_after(now)

    def turnover_seconds(self) -> float:
        return _DAY_SECONDS

    def wanted(self, now: float) -> int:
        return self.used(now)
