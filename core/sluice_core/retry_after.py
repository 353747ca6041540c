"""Until when an upstream has asked not to be called, for all calls of one model with one key.

A `Retry-After` speaks of the account, not of the one call that it answers: who else calls meanwhile gets another 429,
and with each the account's limiter has one more failed request to count. Longer than the cap nobody is held: what asks
for more is a fault or a limit per day, and is tried again once in a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sluice_core.api.base import Value

MAX_HOLD_SECONDS: Final = 60.0
MAX_PLACES: Final = 1024

Place = tuple[str, str | None, str | None]
"""Upstream, model, key."""


class Hold(Value, frozen=True, kw_only=True, gc=False):
    """No call before `until`; `asked` is what the upstream said, which may be later. Monotonic seconds."""

    until: float
    asked: float

    @property
    def is_waited_for(self) -> bool:
        """Tell whether it is worth waiting for: the upstream asked for no more than is waited."""
        return self.asked <= self.until


class Holds:
    """What upstreams asked for, by place. Bounded: of too many places the one that ends first is forgotten."""

    __slots__ = ("_holds", "any")

    def __init__(self) -> None:
        self._holds: dict[Place, Hold] = {}
        self.any = False
        """Whether anything may be held."""

    def ask(self, place: Place, seconds: float, cap_seconds: float, now: float) -> None:
        """Take note of a `Retry-After`. The latest time counts, whoever was told it."""
        if seconds <= 0:
            return
        before = self._holds.get(place)
        until, asked = now + min(seconds, cap_seconds, MAX_HOLD_SECONDS), now + seconds
        if before is not None and before.until > now:
            until, asked = max(until, before.until), max(asked, before.asked)
        self._holds[place] = Hold(until=until, asked=asked)
        self.any = True
        if len(self._holds) > MAX_PLACES:
            self.tick(now)
        if len(self._holds) > MAX_PLACES:
            del self._holds[min(self._holds, key=lambda each: self._holds[each].until)]

    def of(self, place: Place, now: float) -> Hold | None:
        """Return what holds calls of a place back now."""
        hold = self._holds.get(place)
        return hold if hold is not None and hold.until > now else None

    def tick(self, now: float) -> None:
        """Forget what is over."""
        if self.any:
            self._holds = {place: hold for place, hold in self._holds.items() if hold.until > now}
            self.any = bool(self._holds)

    def in_force(self, now: float) -> Iterable[tuple[Place, float]]:
        """Return the places that are held, and for how many seconds more."""
        return [(place, hold.until - now) for place, hold in self._holds.items() if hold.until > now]
