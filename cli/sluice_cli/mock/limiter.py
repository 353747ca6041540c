"""
OpenAI's rate limiter: token buckets per model, for requests and tokens per minute and requests per day.

Each bucket holds at most the limit of its period and refills continuously. A request is charged one request and
the larger of its `max_tokens` and the estimate from its characters, in all dimensions or in none: what is refused
costs nothing. The caller gives the time; there is no clock here.
"""

from collections import OrderedDict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from sluice_cli.mock.wire import go_duration

MINUTE_SECONDS: Final = 60.0
DAY_SECONDS: Final = 86_400.0
_MAX_MODELS: Final = 10_000  # of live buckets; a model beyond it pushes out the one longest unused
# What an unlimited model advertises: figures of a real account, never enforced.
_ADVERTISED_REQUESTS: Final = 30_000
_ADVERTISED_TOKENS: Final = 150_000_000


class ModelLimit(msgspec.Struct, frozen=True, kw_only=True):
    """
    The limits of the models that `model` (a glob) matches; 0 means unlimited.

    With `shared` all those models draw on one bucket, as some families do. `project_tokens_per_minute` adds
    the project's own token limit and its headers.
    """

    model: str = "*"
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    requests_per_day: int = 0
    project_tokens_per_minute: int = 0
    shared: bool = False


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """The request may go on; `headers` are the `x-ratelimit-*` of its answer."""

    headers: dict[str, str]


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The request is over a limit. `retry_after_seconds` is None when no waiting can make it fit."""

    kind: str  # "requests" or "tokens"
    unit: str  # "requests per min (RPM)" and the like
    limit: int
    used: int
    requested: int
    retry_after_seconds: float | None
    headers: dict[str, str]

    @property
    def message(self) -> str:
        """The text that OpenAI puts into the error body."""
        figures = f"Limit {self.limit}, Used {self.used}, Requested {self.requested}."
        if self.retry_after_seconds is None:
            return f"Request too large in organization org-mock on {self.unit}: {figures}"
        again = go_duration(self.retry_after_seconds)
        return f"Rate limit reached in organization org-mock on {self.unit}: {figures} Please try again in {again}."


class _Bucket:
    __slots__ = ("at", "kind", "level", "limit", "period_seconds", "suffix", "unit")

    def __init__(self, kind: str, unit: str, suffix: str, limit: int, period_seconds: float, now: float) -> None:
        self.kind = kind
        self.unit = unit
        self.suffix = suffix  # of the header names; empty when the dimension has none
        self.limit = limit
        self.period_seconds = period_seconds
        self.level = float(limit)
        self.at = now

    def refill(self, now: float) -> None:
        gained = max(0.0, now - self.at) * self.limit / self.period_seconds
        self.level = min(float(self.limit), self.level + gained)
        self.at = max(self.at, now)

    def wait_seconds(self, amount: int) -> float | None:
        """Time until `amount` fits, 0 when it does now, None when it never will."""
        if amount > self.limit:
            return None
        # The level is a sum of many small refills: a millionth of a unit is rounding, not a shortage.
        missing = amount - self.level - 1e-6
        return max(0.0, missing * self.period_seconds / self.limit)

    def headers(self) -> dict[str, str]:
        if not self.suffix:
            return {}
        full_in_seconds = (self.limit - self.level) * self.period_seconds / self.limit
        return {
            f"x-ratelimit-limit-{self.suffix}": str(self.limit),
            f"x-ratelimit-remaining-{self.suffix}": str(int(self.level)),
            f"x-ratelimit-reset-{self.suffix}": go_duration(full_in_seconds),
        }


UNLIMITED_HEADERS: Final = {
    "x-ratelimit-limit-requests": str(_ADVERTISED_REQUESTS),
    "x-ratelimit-limit-tokens": str(_ADVERTISED_TOKENS),
    "x-ratelimit-remaining-requests": str(_ADVERTISED_REQUESTS - 1),
    "x-ratelimit-remaining-tokens": str(_ADVERTISED_TOKENS - 1),
    "x-ratelimit-reset-requests": "2ms",
    "x-ratelimit-reset-tokens": "0ms",
}


class RateLimiter:
    """The live buckets of every model, and counts of what was admitted and refused."""

    __slots__ = ("_buckets", "admitted", "limits", "refused")

    def __init__(self, limits: Sequence[ModelLimit] = ()) -> None:
        self.configure(limits)

    def configure(self, limits: Sequence[ModelLimit]) -> None:
        """Replace all limits; buckets start full and counts at zero."""
        self.limits = tuple(limits)
        self.reset()

    def reset(self) -> None:
        """Fill every bucket and forget the counts."""
        self._buckets: OrderedDict[str, tuple[_Bucket, ...]] = OrderedDict()
        self.admitted: dict[str, int] = {}
        self.refused: dict[str, int] = {}

    def admit(self, model: str, tokens: int, now: float) -> Admitted | Refused:
        """
        Charge one request of `tokens` to `model` at `now` (seconds, monotonic).

        The first limit whose glob matches applies.
        """
        limit = next((row for row in self.limits if fnmatchcase(model, row.model)), None)
        if limit is None:
            return Admitted(headers=UNLIMITED_HEADERS)
        name = limit.model if limit.shared else model
        buckets = self._live(name, limit, now)
        costs = [tokens if bucket.kind == "tokens" else 1 for bucket in buckets]
        waits = [bucket.wait_seconds(cost) for bucket, cost in zip(buckets, costs, strict=True)]
        if any(wait is None or wait > 0 for wait in waits):
            self.refused[name] = self.refused.get(name, 0) + 1
            return _refusal(buckets, costs, waits)
        for bucket, cost in zip(buckets, costs, strict=True):
            bucket.level -= cost
        self.admitted[name] = self.admitted.get(name, 0) + 1
        return Admitted(headers=_headers(buckets))

    def _live(self, name: str, limit: ModelLimit, now: float) -> tuple[_Bucket, ...]:
        buckets = self._buckets.get(name)
        if buckets is None:
            buckets = self._buckets[name] = _new_buckets(limit, now)
            if len(self._buckets) > _MAX_MODELS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        for bucket in buckets:
            bucket.refill(now)
        return buckets


def _new_buckets(limit: ModelLimit, now: float) -> tuple[_Bucket, ...]:
    rows = (
        ("requests", "requests per min (RPM)", "requests", limit.requests_per_minute, MINUTE_SECONDS),
        ("tokens", "tokens per min (TPM)", "tokens", limit.tokens_per_minute, MINUTE_SECONDS),
        ("requests", "requests per day (RPD)", "", limit.requests_per_day, DAY_SECONDS),
        (
            "tokens",
            "project tokens per min (TPM)",
            "project-tokens",
            limit.project_tokens_per_minute,
            MINUTE_SECONDS,
        ),
    )
    return tuple(
        _Bucket(kind, unit, suffix, capacity, period, now) for kind, unit, suffix, capacity, period in rows if capacity
    )


def _headers(buckets: Sequence[_Bucket]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for bucket in buckets:
        headers |= bucket.headers()
    return headers


def _refusal(buckets: Sequence[_Bucket], costs: Sequence[int], waits: Sequence[float | None]) -> Refused:
    """Blame the dimension that holds the request back longest."""
    infinite = float("inf")
    worst = max(range(len(buckets)), key=lambda index: infinite if waits[index] is None else waits[index] or 0.0)
    bucket = buckets[worst]
    return Refused(
        kind=bucket.kind,
        unit=bucket.unit,
        limit=bucket.limit,
        used=bucket.limit - int(bucket.level),
        requested=costs[worst],
        retry_after_seconds=waits[worst],
        headers=_headers(buckets),
    )
