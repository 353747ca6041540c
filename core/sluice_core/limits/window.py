"""What was used within the last window, and what is in flight. Integers only; memory in proportion to recent use.

A token bucket with a full burst admits up to twice its limit within one window. The sliding window here returns a
permit taken at `t` no earlier than at `t + window`, so that no window, wherever it begins, holds more than the limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping


class SlidingWindow:
    """Use in the last `window_seconds`, in slots of `slot_seconds`; a slot counts until its youngest permit is over.

    All calls take `now`, in monotonic seconds; a clock that steps back is treated as standing still.
    Memory and the cost of a step are bounded by the number of slots; an idle window is empty.
    """

    __slots__ = ("amounts", "newest", "newest_ends", "slot_seconds", "slots", "used", "window_seconds")

    def __init__(self, window_seconds: float, slot_seconds: float) -> None:
        self.window_seconds = window_seconds
        self.slot_seconds = slot_seconds
        self.used = 0
        """Use within the window, as of the last call of `expire`."""
        self.slots = math.ceil(window_seconds / slot_seconds)
        self.amounts: dict[int, int] = {}
        """What was used in each slot; it grows at its end and shrinks at its beginning."""
        self.newest = -(2**62)
        """The slot of the last step; it is over at `newest_ends`."""
        self.newest_ends = -math.inf

    def expire(self, now: float) -> int:
        """Drop what is older than the window; return what is used within it."""
        if now < self.newest_ends:  # most calls come within the slot of the one before
            return self.used
        slot = int(now // self.slot_seconds)
        if slot > self.newest:
            self.newest = slot
            self.newest_ends = (slot + 1) * self.slot_seconds
            amounts, oldest = self.amounts, slot - self.slots
            while amounts:
                first = next(iter(amounts))
                if first >= oldest:
                    break
                self.used -= amounts.pop(first)
        return self.used

    def take(self, amount: int, now: float) -> int:
        """Use `amount` now; return the slot that it is in, for `adjust`."""
        if now >= self.newest_ends:
            self.expire(now)
        slot, amounts = self.newest, self.amounts
        amounts[slot] = amounts.get(slot, 0) + amount
        self.used += amount
        return slot

    def adjust(self, slot: int, delta: int, now: float) -> None:
        """Correct an earlier `take` by `delta`, where it was taken.

        Once that slot is over, a refund has nothing left to give back. A charge then counts from now on, so that a call
        that outlives its window still pays for what it used.
        """
        if now >= self.newest_ends:
            self.expire(now)
        if slot in self.amounts:
            self.amounts[slot] += delta
            self.used += delta
        elif delta > 0:
            self.take(delta, now)

    def recent(self, slots: int, now: float) -> int:
        """Return what was used in the last few slots, the present one included."""
        self.expire(now)
        oldest, total = self.newest - slots, 0
        for slot in reversed(self.amounts):
            if slot <= oldest:
                break
            total += self.amounts[slot]
        return total

    def peak(self, arrivals: int, slots: int, now: float) -> int:
        """Return the most that would be in use at once within the next `slots` slots if `arrivals` came evenly in them.

        What is used now leaves meanwhile, as it came a window ago.
        """
        used = most = self.expire(now)
        for slot, taken in self.amounts.items():
            ahead = slot + self.slots + 1 - self.newest  # slots until this one is over
            if ahead > slots:
                break
            most = max(most, used + arrivals * ahead // slots)
            used -= taken
        return max(most, used + arrivals)

    def fading(self, parts: int, now: float) -> tuple[int, ...]:
        """Return what is left of the present use after 1, 2 ... `parts` - 1 parts of the window."""
        self.expire(now)
        oldest = self.newest - self.slots
        return tuple(
            sum(taken for slot, taken in self.amounts.items() if slot - oldest >= self.slots * part // parts)
            for part in range(1, parts)
        )

    def certain(self, parts: int, uncertain: Mapping[int, int], now: float) -> tuple[int, ...]:
        """Return what is used for certain, now and after 1, 2 ... `parts` - 1 parts of the window.

        `uncertain` is what may still be given back, by the slot that it is in.
        """
        self.expire(now)
        slots, oldest = self.slots, self.newest - self.slots
        lasting = [0] * (parts + 1)
        for slot, taken in self.amounts.items():
            if slot in uncertain:
                taken = max(0, taken - uncertain[slot])
            lasting[(slot - oldest) * parts // slots] += taken  # after so many parts it still counts
        return tuple(itertools.accumulate(reversed(lasting)))[:0:-1]

    def earliest(self, amount: int, limit: int, now: float, slots: int | None = None) -> float | None:
        """Return when `amount` fits under `limit` if nothing else is used till then, or None if it never does.

        With `slots` the limit is one on the use within so many slots instead of the whole window.
        """
        used = self.expire(now) if slots is None else self.recent(slots, now)
        excess = used + amount - limit
        if excess <= 0:
            return now
        if amount > limit:
            return None
        length = self.slots if slots is None else slots
        oldest = self.newest - length
        for slot, taken in self.amounts.items():
            if slots is not None and slot <= oldest:
                continue
            excess -= taken
            if excess <= 0:
                return (slot + length + (1 if slots is None else 0)) * self.slot_seconds
        return None


class SlotPool:
    """Calls in flight. A slot that nobody gives back comes back by itself after `hold_seconds`."""

    __slots__ = ("_expiry", "_next", "hold_average_seconds", "hold_seconds")

    def __init__(self, hold_seconds: float) -> None:
        self.hold_seconds = hold_seconds
        self._expiry: dict[int, tuple[float, float]] = {}  # by slot, oldest first: (taken at, back at)
        self._next = 0
        self.hold_average_seconds = 1.0
        """How long slots were held lately, as a moving average."""

    @property
    def used(self) -> int:
        """Return how many are taken, as of the last call of `expire`."""
        return len(self._expiry)

    def expire(self, now: float) -> int:
        """Take back what was held too long; return what is in use."""
        expiry = self._expiry
        while expiry:
            first = next(iter(expiry))
            if expiry[first][1] > now:
                break
            del expiry[first]
        return len(expiry)

    def take(self, now: float) -> int:
        """Take a slot and return its number."""
        self._next += 1
        self._expiry[self._next] = (now, now + self.hold_seconds)
        return self._next

    def give_back(self, slot: int, now: float) -> None:
        """Free a slot; harmless if it is free already."""
        taken = self._expiry.pop(slot, None)
        if taken is not None:
            held = now - taken[0]
            self.hold_average_seconds += 0.1 * (max(0.0, held) - self.hold_average_seconds)

    def renew(self, slot: int, now: float) -> None:
        """Hold a slot for as long again, because its call shows that it goes on."""
        taken = self._expiry.pop(slot, None)
        if taken is not None:
            self._expiry[slot] = (taken[0], now + self.hold_seconds)

    def untake(self, slot: int) -> None:
        """Free a slot as if it had not been taken: how long it was held says nothing."""
        self._expiry.pop(slot, None)

    def earliest(self, limit: int, now: float) -> float | None:
        """Return when a slot is likely free: a forecast from how long slots were held lately. None if never."""
        used = self.expire(now)
        if used < limit:
            return now
        if limit <= 0:
            return None
        return now + min(self.hold_seconds, max(0.05, self.hold_average_seconds * (used - limit + 1) / used))
