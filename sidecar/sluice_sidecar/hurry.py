"""When to report next: at an even pace, sooner when somebody waits, and not too often while that brings nothing."""

from __future__ import annotations

import asyncio

from sluice_core.sync import Lease


class Hurry:
    """The pause between two reports. What is short for long must not flood whoever leases it.

    Args:
        least_seconds: the shortest pause.
        most_seconds: that of a pod in a hurry whose reports have brought nothing for a while.
    """

    __slots__ = ("_event", "_gap_seconds", "_granted", "least_seconds", "most_seconds")

    def __init__(self, least_seconds: float, most_seconds: float) -> None:
        self.least_seconds = least_seconds
        self.most_seconds = most_seconds
        self._event = asyncio.Event()
        self._gap_seconds = least_seconds
        self._granted: dict[str, int] = {}

    def set(self) -> None:
        """Report soon: somebody waits."""
        self._event.set()

    def weigh(self, leases: tuple[Lease, ...]) -> None:
        """Take note of what a report has brought: without more of anything, the pause doubles."""
        grew = any(lease.amount > self._granted.get(lease.limit, 0) for lease in leases)
        self._gap_seconds = self.least_seconds if grew else min(self.most_seconds, 2 * self._gap_seconds)
        self._granted = {lease.limit: lease.amount for lease in leases}

    async def pause(self, seconds: float) -> None:
        """Wait for the next report."""
        await asyncio.sleep(min(seconds, self._gap_seconds))
        if (rest := seconds - self._gap_seconds) > 0:
            try:
                async with asyncio.timeout(rest):
                    await self._event.wait()
            except TimeoutError:
                pass
        self._event.clear()
