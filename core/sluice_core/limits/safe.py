"""What a pod may use when nobody leases anything to it.

Five percent of every limit are kept for this: an allocation's pods together have its share of that, and those of an
allocation without a guaranteed share half a percent of the limit. The leader counts the safe share of every pod that it
was told to expect as held, so that safe use and leases together stay within the limit.

Where the bound ends: without a leader the figures in the compiled policy stand. If more pods run than the policy was
compiled for, their safe use grows in proportion: twice the pods, ten percent of the limit. With a leader, pods beyond
the expected ones are counted as soon as they report, and leases shrink to make room.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from sluice_core.api.upstream import Limits, ModelLimits
from sluice_core.limits.lease import SAFE_PERMILLE

_LEAST_PERMILLE: Final = 5
_WHOLE: Final = 100_000


def safe_limits(effective: Limits, share_percent: int, pods: int) -> Limits:
    """Return what each of `pods` pods of an allocation may use without a lease.

    A small limit among many pods leaves 0, which is nothing; a dimension without a limit has 0 too, and nothing to
    keep to.
    """
    return Limits(
        requests_per_minute=_part(effective.requests_per_minute, share_percent, pods),
        tokens_per_minute=_part(effective.tokens_per_minute, share_percent, pods),
        requests_per_day=_part(effective.requests_per_day, share_percent, pods),
        concurrency=_part(effective.concurrency, share_percent, pods),
    )


def safe_model_limits(limits: tuple[ModelLimits, ...], share_percent: int, pods: int) -> tuple[ModelLimits, ...]:
    """Return the same for the limits of single models, in the same order."""
    return tuple(
        ModelLimits(model=row.model, **msgspec.structs.asdict(safe_limits(row, share_percent, pods))) for row in limits
    )


def rounded_up(pods: int) -> int:
    """Return the next power of two, so that a pod more or less rarely changes the policy of all the others."""
    return 1 << (pods - 1).bit_length() if pods > 1 else pods


def safe_part(capacity: int, share_percent: int) -> int:
    """Return what is kept of a limit for all pods of an allocation together."""
    return capacity * _weight(share_percent) // _WHOLE


def reserved_share(share_percents: Iterable[int]) -> int:
    """Return what is kept for the pods of all these allocations together, in hundred-thousandths of a limit."""
    return sum(_weight(percent) for percent in share_percents)


def reserved_part(capacity: int, share: int) -> int:
    """Return what such a share is of one limit; no less than the parts of its allocations together."""
    return capacity * share // _WHOLE


def _weight(share_percent: int) -> int:
    return max(SAFE_PERMILLE * share_percent, _LEAST_PERMILLE * 100)


def _part(capacity: int | None, share_percent: int, pods: int) -> int:
    return safe_part(capacity, share_percent) // max(1, pods) if capacity else 0
