"""What the upstream's own answers say about its limits: slow down when it throttles, and learn what it allows.

A declared limit is enforced before calls are made, so little of this acts while the declaration is right and nobody
else uses the account. It is for the other cases.

| what happens | what follows |
|---|---|
| 429 by a rate limit | back-off doubles, at most to 8, and divides the limit; once for a burst of them |
| success | a tenth off the back-off; without answers it halves every 30 s, so that nothing stays shut for good |
| less than 20 % remaining | half pace until its reset, a minute at most, if throttled lately or not limited by us |
| more than 80 % remaining | full pace again |
| `slow_down` | half pace, then a ramp back to full over 15 minutes, as OpenAI asks |

Low remaining alone is no reason to slow down where our own limit is the upstream's: being near it is the aim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from sluice_core.sync import LimitObservation

MAX_BACKOFF: Final = 8.0
RAMP_SECONDS: Final = 900.0
_DECAY_SECONDS: Final = 30.0
LOW_PERCENT: Final = 20.0
_HIGH_PERCENT: Final = 80.0
_RECENT_SECONDS: Final = 60.0
_MAX_LEARNED: Final = 1024
_FORGET_SECONDS: Final = 3600.0


class Pacer:
    """The pace of calls to one upstream and model. Every `now` is in monotonic seconds."""

    __slots__ = ("_backoff", "_backoff_at", "_halved_until", "_ramp_from", "_throttled_at")

    def __init__(self) -> None:
        self._backoff = 1.0
        self._backoff_at = 0.0
        self._halved_until = float("-inf")
        self._ramp_from = float("-inf")
        self._throttled_at = float("-inf")

    def backoff(self, now: float) -> float:
        """Return the present back-off, between 1 and 8."""
        idle = max(0.0, now - self._backoff_at)
        return max(1.0, self._backoff * math.exp2(-idle / _DECAY_SECONDS))

    def throttled(self, sent_at: float, now: float, *, slow_down: bool = False) -> None:
        """Take note of a 429 to a call that was sent at `sent_at`; of a burst of them only the first one counts."""
        if slow_down:
            self._ramp_from = now
        if sent_at >= self._throttled_at:
            self._set_backoff(min(MAX_BACKOFF, 2.0 * self.backoff(now)), now)
            self._throttled_at = now

    def succeeded(self, now: float) -> None:
        """Take note of a call that was let through."""
        if self._backoff > 1.0:
            self._set_backoff(max(1.0, 0.9 * self.backoff(now)), now)

    def observed(
        self, remaining_percent: float, now: float, *, governed: bool, reset_seconds: float | None = None
    ) -> None:
        """Take note of what the upstream says is left, and when it will be whole again.

        `governed`: a limit of ours covers the same dimension.
        """
        if remaining_percent > _HIGH_PERCENT:
            self._halved_until = now
        elif remaining_percent < LOW_PERCENT and (not governed or now - self._throttled_at < _RECENT_SECONDS):
            self._halved_until = now + min(_RECENT_SECONDS, reset_seconds or _RECENT_SECONDS)

    def pace(self, now: float) -> float:
        """Return the part of the limit to use now, above 0 and at most 1."""
        pace = 1.0 / self.backoff(now)
        if now < self._halved_until:
            pace = min(pace, 0.5)
        ramp = 0.5 + 0.5 * (now - self._ramp_from) / RAMP_SECONDS
        return min(pace, max(0.5, ramp), 1.0)

    def _set_backoff(self, backoff: float, now: float) -> None:
        self._backoff = backoff
        self._backoff_at = now


class LearnedLimits:
    """The limits that an upstream reported to any pod, latest first. The leader's memory; bounded."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, str], tuple[int, float]] = {}

    def observe(self, observations: Iterable[LimitObservation], now: float) -> None:
        """Take in what a pod was told."""
        for each in observations:
            key = (each.upstream, each.model, each.dimension)
            if each.limit > 0 and (key in self._seen or len(self._seen) < _MAX_LEARNED):
                self._seen[key] = (each.limit, now)

    def limits(self, upstream: str, now: float) -> dict[tuple[str, str], int]:
        """Return the limits of an upstream by model and dimension, those that were heard of within the hour."""
        for key in [key for key, (_, at) in self._seen.items() if now - at > _FORGET_SECONDS]:
            del self._seen[key]
        return {(key[1], key[2]): limit for key, (limit, _) in self._seen.items() if key[0] == upstream}
