"""Which budgets will be spent within seconds, at the pace of the last seconds: their pods are to report more often.

What goes over a budget is what pods spend between two reports, so the last of the money is watched more closely.
"""

from __future__ import annotations

from typing import Final

CLOSE_SECONDS: Final = 30.0
_SMOOTHING_SECONDS: Final = 15.0


class LastMoney:
    """What is left of budgets, and how fast it goes. Every `unix_now` is in seconds since 1970."""

    __slots__ = ("_seen", "closing")

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float, float]] = {}  # what was left, when, and how fast it went
        self.closing: frozenset[str] = frozenset()

    def look(self, left: dict[str, int], unix_now: float) -> None:
        """Take what is left of each budget now, in micro-dollars; nothing or less of one that is spent."""
        seen: dict[str, tuple[int, float, float]] = {}
        for name, now_left in left.items():
            before, at, rate = self._seen.get(name, (now_left, unix_now, 0.0))
            seconds = unix_now - at
            if seconds > 0:
                gone = max(0, before - now_left) / seconds
                rate += (gone - rate) * min(1.0, seconds / _SMOOTHING_SECONDS)
            seen[name] = now_left, unix_now, rate
        self._seen = seen
        self.closing = frozenset(
            name for name, (now_left, _, rate) in seen.items() if 0 < now_left <= rate * CLOSE_SECONDS
        )
