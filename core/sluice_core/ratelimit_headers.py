"""What the upstream says about its own limits in `x-ratelimit-*` headers.

The values are advice: they may be absent, -1 or 0 on some deployments, and `reset` is the time to a full refill, not to
the next call that fits. Whatever makes no sense is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sluice_core.api.base import Value
from sluice_core.classify import duration_seconds

DIMENSIONS = ("requests", "tokens", "project-requests", "project-tokens")
"""Suffixes of the headers; those of a project are sent while a limit of the project applies."""

_MAX_LIMIT = 10**15


class ObservedLimit(Value, frozen=True, kw_only=True):
    """One limit as the upstream reported it."""

    dimension: str
    limit: int
    remaining: int
    reset_seconds: float | None = None

    @property
    def remaining_percent(self) -> float:
        """Return what is left, in percent of the limit."""
        return 100.0 * self.remaining / self.limit


def read_limits(headers: Mapping[str, str]) -> tuple[ObservedLimit, ...]:
    """Return the limits that an answer reports. `headers` has lower-case names or ignores case."""
    found: list[ObservedLimit] = []
    for dimension in DIMENSIONS:
        limit = _whole(headers.get("x-ratelimit-limit-" + dimension))
        if not limit:
            continue
        remaining = _whole(headers.get("x-ratelimit-remaining-" + dimension))
        if remaining is None:
            continue
        reset = duration_seconds(headers.get("x-ratelimit-reset-" + dimension, ""))
        found.append(
            ObservedLimit(dimension=dimension, limit=limit, remaining=min(remaining, limit), reset_seconds=reset)
        )
    return tuple(found)


def refill_seconds(limits: Iterable[ObservedLimit], tokens: int) -> float | None:
    """Return how long it takes until a call of so many tokens has room under these limits; None if it has, or unknown.

    A limit fills evenly: what was used of it is back after `reset_seconds`.
    """
    longest: float | None = None
    for limit in limits:
        short = (tokens if limit.dimension.endswith("tokens") else 1) - limit.remaining
        used = limit.limit - limit.remaining
        if short > 0 and used > 0 and limit.reset_seconds is not None:
            longest = max(longest or 0.0, limit.reset_seconds * min(1.0, short / used))
    return longest


def _whole(text: str | None) -> int | None:
    """Return a non-negative whole number; None for anything else."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 16:
        return None
    return min(int(text), _MAX_LIMIT)
