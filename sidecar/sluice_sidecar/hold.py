"""Calls that an upstream asked not to be sent yet: they wait if that is worth it, fall back, or are refused."""

from __future__ import annotations

import asyncio

from sluice_core.limits.line import RANKS
from sluice_core.limits.queue import MAX_LINE
from sluice_core.records import Outcome
from sluice_core.retry import MIN_ATTEMPT_SECONDS
from sluice_core.retry_after import Hold
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.plan import Plan
from sluice_sidecar.refusals import held_back

PATIENCE_SECONDS = 1.0
"""So long a call waits although it has a fallback."""

_TURN_SECONDS = 0.001
"""Of those who wait for the same moment, each class of priority begins so much later than the one above it."""


class HeldError(RefusedError):
    """No key of an upstream may be used yet for a model."""

    def __init__(self, upstream: str, hold: Hold, now: float) -> None:
        super().__init__(held_back(upstream, hold.asked - now), Outcome.THROTTLED)
        self.hold = hold


class Waiters:
    """Those who wait for the end of a hold; bounded, as every line is."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    async def wait_out(self, held: HeldError, call: Call, plan: Plan, *, falls_back: bool) -> None:
        """Wait for the end of a hold.

        Raises:
            HeldError: that would be too long, or too many wait.
        """
        now, hold = call.clock(), held.hold
        # What was waited before counts: holds that follow each other are one wait.
        patience = PATIENCE_SECONDS if falls_back else plan.max_wait_seconds
        latest = min(now + patience - call.queue_seconds, call.answer_deadline - MIN_ATTEMPT_SECONDS)
        allocation = plan.account.allocation
        most = min(MAX_LINE, allocation.queue.max_length) if allocation is not None else MAX_LINE
        if not hold.is_waited_for or hold.until > latest or self.count >= most:
            call.refused_by = f"{plan.key}/retry-after"
            raise held
        self.count += 1
        try:
            await asyncio.sleep(hold.until - now + _TURN_SECONDS * RANKS[plan.priority])
        finally:
            self.count -= 1
        call.queue_seconds += call.clock() - now
