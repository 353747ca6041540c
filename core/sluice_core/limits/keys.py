"""Names of limits: what a pod asks capacity for, what the leader leases, what a refusal and a metric mention."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Final

from sluice_core.api.base import Value
from sluice_core.api.upstream import Limits, ModelLimits


class Dimension(StrEnum):
    """What is counted."""

    REQUESTS = "requests"  # in any minute
    TOKENS = "tokens"  # in any minute
    REQUESTS_DAY = "requests-day"  # in any 24 hours
    CONCURRENCY = "concurrency"  # in flight
    MONEY_DAY = "money-day"  # micro-dollars in any 24 hours; of single users only


class Layer(StrEnum):
    """Whose limit it is."""

    USER = "User"
    ALLOCATION = "Allocation"  # this pod's part of the allocation's share of the whole account
    MODEL = "Model"  # the same of the limits of one model
    BUDGET = "Budget"


LEASED: Final = (Dimension.REQUESTS, Dimension.TOKENS, Dimension.REQUESTS_DAY, Dimension.CONCURRENCY)
"""The dimensions of an account, in the order in which they are checked."""

WINDOW_SECONDS: Final = {
    Dimension.REQUESTS: 60.0,
    Dimension.TOKENS: 60.0,
    Dimension.REQUESTS_DAY: 86_400.0,
    Dimension.MONEY_DAY: 86_400.0,
}

SLOT_SECONDS: Final = {
    Dimension.REQUESTS: 0.25,
    Dimension.TOKENS: 0.25,
    Dimension.REQUESTS_DAY: 300.0,
    Dimension.MONEY_DAY: 300.0,
}
"""How finely a window is cut. A permit comes back up to one slot late, never early: 0.4 % of a minute or of a day."""

_SEPARATOR: Final = "|"
_LONGEST_NAME: Final = 150


class LimitKey(Value, frozen=True, kw_only=True):
    """A dimension of an allocation's share in an upstream, or in those of its models that match a pattern."""

    upstream: str
    allocation: str
    dimension: Dimension
    model: str = ""

    @property
    def text(self) -> str:
        """Return the key as it travels: `upstream|allocation|dimension|model pattern`, at most 512 characters."""
        names = (self.shorten(self.upstream), self.shorten(self.allocation), self.dimension.value)
        return _SEPARATOR.join((*names, self.shorten(self.model)))

    @staticmethod
    def shorten(name: str) -> str:
        """Return a name as it stands in a key: a long one by its beginning and a digest."""
        if len(name) <= _LONGEST_NAME:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return f"{name[: _LONGEST_NAME - 17]}~{digest}"


def parse(text: str) -> LimitKey | None:
    """Return the key that `text` is, or None if it is none. Names that were shortened stay shortened."""
    parts = text.split(_SEPARATOR, 3)
    if len(parts) != 4 or parts[2] not in LEASED:
        return None
    return LimitKey(upstream=parts[0], allocation=parts[1], dimension=Dimension(parts[2]), model=parts[3])


def capacity_of(limits: Limits, dimension: Dimension) -> int:
    """Return the limit in one dimension; 0 means no limit."""
    match dimension:
        case Dimension.REQUESTS:
            value = limits.requests_per_minute
        case Dimension.TOKENS:
            value = limits.tokens_per_minute
        case Dimension.REQUESTS_DAY:
            value = limits.requests_per_day
        case Dimension.CONCURRENCY:
            value = limits.concurrency
        case Dimension.MONEY_DAY:
            value = 0
    return value or 0


def pattern_for(model: str, limits: tuple[ModelLimits, ...]) -> str | None:
    """Return the most specific pattern that `model` matches: its own name, else the longest prefix, else None."""
    best: str | None = None
    for row in limits:
        pattern = row.model
        if pattern == model:
            return pattern
        if pattern.endswith("*") and model.startswith(pattern[:-1]) and (best is None or len(pattern) > len(best)):
            best = pattern
    return best
