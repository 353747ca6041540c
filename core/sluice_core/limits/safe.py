"""What one pod may use of an allocation while it holds no lease."""

from __future__ import annotations

from sluice_core.api.upstream import Limits


def safe_limits(effective: Limits, share_percent: int, pods: int) -> Limits:
    """Return one pod's part of the tenth of the guaranteed share that is kept for pods without a lease.

    The tenth is divided by twice the pods that are counted, and by ten at least, so that pods may double before the
    parts together exceed it. 0 stays "no limit" only in dimensions that have none.
    """
    divisor = 1000 * max(pods * 2, 10)

    def part(limit: int | None) -> int:
        return limit * share_percent // divisor if limit else 0

    return Limits(
        requests_per_minute=part(effective.requests_per_minute),
        tokens_per_minute=part(effective.tokens_per_minute),
        requests_per_day=part(effective.requests_per_day),
        concurrency=part(effective.concurrency),
    )
