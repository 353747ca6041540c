"""One limit in one dimension with its live use: the part of admission that counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final

from sluice_core.limits.keys import SLOT_SECONDS, WINDOW_SECONDS, Dimension, Layer
from sluice_core.limits.lease import Allowance
from sluice_core.limits.window import SlidingWindow, SlotPool

AHEAD_SECONDS: Final = 5.0
"""How far ahead demand is reported: until the next report. What cannot be used until then is of more use to others."""
_DENIED_SLOT_SECONDS: Final = 1.0
_LONGEST_AHEAD_SECONDS: Final = 60.0
_LATELY_SECONDS: Final = 15.0
# Which of the amounts of a call a dimension counts.
REQUEST_UNIT: Final = 0
TOKEN_UNIT: Final = 1
MONEY_UNIT: Final = 2
SLOT_UNIT: Final = 3
USER_TOKEN_UNIT: Final = 4  # the same as tokens, but settled without the floor that the upstream charges
_UNITS: Final = {
    Dimension.REQUESTS: REQUEST_UNIT,
    Dimension.REQUESTS_DAY: REQUEST_UNIT,
    Dimension.TOKENS: TOKEN_UNIT,
    Dimension.MONEY_DAY: MONEY_UNIT,
    Dimension.CONCURRENCY: SLOT_UNIT,
}
FADING_PARTS: Final = 12
LEASE_ROUND_SECONDS: Final = 2.0
"""How long the answer to a report of new demand takes at most, as a forecast for those who wait for it."""


class Meter(ABC):
    """Use, allowance and unmet demand in one dimension. `name` says in refusals and metrics which limit it is."""

    __slots__ = (
        "_denied",
        "_entered",
        "_largest_denied",
        "_lined_up",
        "ahead_seconds",
        "allowance",
        "dimension",
        "largest_waiting",
        "layer",
        "name",
        "unit",
        "waiting",
    )

    def __init__(self, *, name: str, layer: Layer, dimension: Dimension, allowance: Allowance) -> None:
        self.name = name
        self.layer = layer
        self.dimension = dimension
        self.unit = _UNITS[dimension]
        self.allowance = allowance
        self.ahead_seconds = AHEAD_SECONDS
        self.waiting = 0
        self.largest_waiting = 0
        self._largest_denied = 0
        self._denied = SlidingWindow(AHEAD_SECONDS, _DENIED_SLOT_SECONDS)
        self._entered = 0  # the line since last looked at
        self._lined_up = SlidingWindow(AHEAD_SECONDS, _DENIED_SLOT_SECONDS)

    @abstractmethod
    def used(self, now: float) -> int:
        """Return what is in use: within the window, or in flight."""

    @abstractmethod
    def take(self, amount: int, now: float) -> int:
        """Use `amount`, whether it fits or not; return the slot for `adjust`."""

    @abstractmethod
    def take_if_fits(self, amount: int, now: float) -> int | None:
        """Use `amount` if it may be used now; return the slot, None if it may not."""

    @abstractmethod
    def adjust(self, slot: int, delta: int, now: float) -> None:
        """Correct what was taken."""

    @abstractmethod
    def untake(self, slot: int, amount: int, now: float) -> None:
        """Undo a `take` of the same moment: it leaves no trace."""

    @abstractmethod
    def soonest(self, amount: int, limit: int, now: float) -> float | None:
        """Return when `amount` fits under `limit`; None if never."""

    @abstractmethod
    def turnover_seconds(self) -> float:
        """Return how long it takes until the whole limit is free again."""

    @abstractmethod
    def wanted(self, now: float) -> int:
        """Return the most that would be in use soon if it were allowed, with those who wait or were refused lately."""

    def lasting(self, now: float) -> int:  # noqa: ARG002 - what is in flight is wanted as long as it is
        """Return what would be in use after a whole window like the last, if there was too little in that."""
        return 0

    def fading(self, now: float) -> tuple[int, ...]:  # noqa: ARG002 - what is in flight ends with the process
        """Return what will still be in use after each further part of the window but the last, if nothing is added."""
        return ()

    def fits(self, amount: int, now: float) -> bool:
        """Tell whether `amount` may be used now."""
        ceiling = self.allowance.ceiling
        return not ceiling or self.used(now) + amount <= self.allowance.amount(now)

    def earliest(self, amount: int, now: float) -> float | None:
        """Return when `amount` may be used if nobody else comes first, or None if waiting cannot help."""
        if not self.allowance.ceiling:
            return now
        if amount > self.allowance.largest():
            return None
        soonest = self.soonest(amount, self.allowance.amount(now), now)
        if soonest is not None and soonest <= now + LEASE_ROUND_SECONDS:
            return soonest
        if not self.allowance.may_grow(self.wanted(now) + amount, now):
            return now + LEASE_ROUND_SECONDS if soonest is None else soonest
        grown = self.soonest(amount, self.allowance.largest(), now)  # the next answer may bring a larger lease
        later = now + LEASE_ROUND_SECONDS if grown is None else max(grown, now + LEASE_ROUND_SECONDS)
        return later if soonest is None else min(soonest, later)

    def forecast(self, ahead: int, amount: int, now: float) -> float | None:
        """Return when `amount` may be used if `ahead` is used first, or None if waiting cannot help."""
        if not self.allowance.ceiling or not amount:
            return now
        if amount > self.allowance.largest():
            return None
        growing = self.allowance.may_grow(self.wanted(now) + amount, now)
        limit = self.allowance.largest() if growing else self.allowance.amount(now)
        if limit < amount:
            return now + LEASE_ROUND_SECONDS
        rounds, rest = divmod(ahead, limit)
        if rest + amount > limit:
            rounds, rest = rounds + 1, 0
        soonest = self.soonest(rest + amount, limit, now)
        return None if soonest is None else soonest + rounds * self.turnover_seconds()

    def deny(self, amount: int, now: float) -> None:
        """Remember demand that was refused."""
        if not self._denied.expire(now):
            self._largest_denied = 0
        self._denied.take(amount, now)
        self._largest_denied = max(self._largest_denied, amount)

    def wait(self, amount: int) -> None:
        """Count somebody in who waits for `amount`."""
        self.waiting += amount
        self._entered += amount
        self.largest_waiting = max(self.largest_waiting, amount)

    def stop_waiting(self, amount: int) -> None:
        """Count somebody out."""
        self.waiting -= amount
        if self.waiting <= 0:
            self.waiting = self.largest_waiting = 0


class RateMeter(Meter):
    """Use within a sliding window."""

    __slots__ = ("_unmet_at", "window")

    def __init__(self, *, name: str, layer: Layer, dimension: Dimension, allowance: Allowance) -> None:
        super().__init__(name=name, layer=layer, dimension=dimension, allowance=allowance)
        self.window = SlidingWindow(WINDOW_SECONDS[dimension], SLOT_SECONDS[dimension])
        self._unmet_at = float("-inf")

    def used(self, now: float) -> int:
        return self.window.expire(now)

    def fits(self, amount: int, now: float) -> bool:
        # What uses nothing waits for nobody, be there debts or a smaller lease than what is in use.
        return not amount or super().fits(amount, now)

    def take(self, amount: int, now: float) -> int:
        return self.window.take(amount, now)

    def take_if_fits(self, amount: int, now: float) -> int | None:
        # `fits` and then `take`, without the steps between: every call of the application goes through several meters.
        allowance, window = self.allowance, self.window
        if now >= window.newest_ends:
            window.expire(now)
        used = window.used + amount
        if used > (allowance.usable if now < allowance.usable_until else allowance.may_use(now)) and amount:
            return self._take_all_the_same(amount, now)
        slot, amounts = window.newest, window.amounts
        amounts[slot] = amounts.get(slot, 0) + amount
        window.used = used
        return slot

    def _take_all_the_same(self, amount: int, now: float) -> int | None:  # noqa: ARG002 - some meters have exceptions
        return None

    def adjust(self, slot: int, delta: int, now: float) -> None:
        window = self.window
        if slot == window.newest and now < window.newest_ends:  # as short as most calls are
            window.amounts[slot] += delta
            window.used += delta
        else:
            window.adjust(slot, delta, now)

    def untake(self, slot: int, amount: int, now: float) -> None:
        self.window.adjust(slot, -amount, now)

    def soonest(self, amount: int, limit: int, now: float) -> float | None:
        return self.window.earliest(amount, limit, now)

    def turnover_seconds(self) -> float:
        return self.window.window_seconds

    def wanted(self, now: float) -> int:
        window = self.window
        slots = max(2, round(self.ahead_seconds / window.slot_seconds))
        denied = self._denied.expire(now)
        lately = self._denied.recent(round(self.ahead_seconds / _DENIED_SLOT_SECONDS) + 1, now)
        arrivals = window.recent(slots, now)
        if window.slot_seconds > self.ahead_seconds:  # of a day: so many came in a slot, but it is far longer
            arrivals = math.ceil(arrivals * self.ahead_seconds / window.slot_seconds)
        # As much will be asked for as lately; and less than one call is of no use to those who were refused.
        peak = window.peak(arrivals + lately, slots, now)
        return self.waiting + max(peak, window.used + (self._largest_denied if denied else 0))

    def lasting(self, now: float) -> int:
        if self._entered:
            self._lined_up.take(self._entered, now)
            self._entered = 0
        window = self.window
        unmet = max(self._denied.expire(now), self._lined_up.expire(now))
        if unmet:
            self._unmet_at = now
        if now - self._unmet_at > window.window_seconds or window.window_seconds > _LONGEST_AHEAD_SECONDS:
            return 0
        lately = window.recent(round(_LATELY_SECONDS / window.slot_seconds), now)
        per_second = max(unmet / AHEAD_SECONDS, lately / _LATELY_SECONDS)
        return min(self.allowance.ceiling, int(per_second * window.window_seconds))

    def fading(self, now: float) -> tuple[int, ...]:
        return self.window.fading(FADING_PARTS, now)

    def spread(self, amount: int, most_parts: int, now: float) -> float:
        """Return when `amount` may be used if no more than an even part of the limit is to be used within a part.

        The window is cut into so many parts, but for large calls into fewer, so that four of the kind fit into one.
        """
        whole = self.allowance.amount(now)
        parts = min(most_parts, whole // (4 * amount)) if amount else 1
        if not self.allowance.ceiling or parts <= 1:
            return now
        earliest = self.window.earliest(amount, whole // parts, now, self.window.slots // parts)
        return now if earliest is None else max(now, earliest)


class SlotMeter(Meter):
    """Calls in flight."""

    __slots__ = ("slots",)

    def __init__(self, *, name: str, layer: Layer, allowance: Allowance, hold_seconds: float) -> None:
        super().__init__(name=name, layer=layer, dimension=Dimension.CONCURRENCY, allowance=allowance)
        self.slots = SlotPool(hold_seconds)

    def used(self, now: float) -> int:
        return self.slots.expire(now)

    def take(self, amount: int, now: float) -> int:
        return self.slots.take(now) if amount else 0

    def take_if_fits(self, amount: int, now: float) -> int | None:
        allowance, slots = self.allowance, self.slots
        usable = allowance.usable if now < allowance.usable_until else allowance.may_use(now)
        if slots.used + amount > usable and slots.expire(now) + amount > usable:
            return None
        return slots.take(now) if amount else 0

    def adjust(self, slot: int, delta: int, now: float) -> None:
        if delta < 0:
            self.slots.give_back(slot, now)

    def untake(self, slot: int, amount: int, now: float) -> None:  # noqa: ARG002 - as of all meters
        self.slots.untake(slot)

    def soonest(self, amount: int, limit: int, now: float) -> float | None:
        return self.slots.earliest(limit - amount + 1, now)

    def turnover_seconds(self) -> float:
        return self.slots.hold_average_seconds

    def wanted(self, now: float) -> int:
        # So many calls a second, each in flight for so long, are this many at once (Little's law).
        unmet = self._denied.expire(now) * self.slots.hold_average_seconds / AHEAD_SECONDS
        return self.used(now) + self.waiting + math.ceil(unmet)
