"""One timer for the deadlines of all calls: `asyncio.timeout` sets one for each, at a price."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Deadlines:
    """Watches over the tasks that have a deadline."""

    __slots__ = ("_timer", "live", "next")

    def __init__(self) -> None:
        self.live: set[Deadline] = set()
        self.next = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def until(self, when: float, task: asyncio.Task[Any] | None = None) -> Deadline:
        """Return a context that is cancelled at `when`, by the loop's clock, and then raises TimeoutError.

        It is to be entered in `task`, the current one if none is given.
        """
        return Deadline(self, when, task or asyncio.current_task())

    def arm(self, when: float) -> None:
        """Set the timer for this time, which is sooner than what it was set for."""
        if self._timer is not None:
            self._timer.cancel()
        self.next = when
        self._timer = asyncio.get_running_loop().call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer, self.next = None, float("inf")
        now = asyncio.get_running_loop().time()
        for each in tuple(self.live):
            if each.when <= now:
                self.live.discard(each)
                each.expire()
        if self.live:
            self.arm(min(each.when for each in self.live))


class Deadline:
    """What happens in this context is cancelled at its deadline."""

    __slots__ = ("_cancelling", "_deadlines", "_expired", "_task", "when")

    def __init__(self, deadlines: Deadlines, when: float, task: asyncio.Task[Any] | None) -> None:
        assert task is not None  # noqa: S101 - only tasks can be cancelled
        self._deadlines = deadlines
        self._task = task
        self._cancelling = 0
        self._expired = False
        self.when = when

    def __enter__(self) -> None:
        self._cancelling = self._task.cancelling()
        deadlines = self._deadlines
        deadlines.live.add(self)
        if self.when < deadlines.next:
            deadlines.arm(self.when)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.live.discard(self)  # the timer stays: it looks for what is due when it fires
        # Only our own cancellation becomes a time-out; one from outside, even at the same moment, stays what it is.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel what goes on in the context."""
        self._expired = True
        self._task.cancel()
