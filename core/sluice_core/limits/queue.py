"""The waiting line of one pod: who goes next when there is not enough for all. Pure; the shell sets one timer.

Order. Classes of priority are strict: a higher one goes first. Within a class users take turns by what they use
(self-clocked fair queueing over tokens), so a user with a thousand calls delays another one's single call by about one
call. A retry waits one class lower per attempt.

Ageing. A call of a lower class that has waited `AGEING_SECONDS` may go before higher ones, but these calls together
get at most one part in `AGED_PART` of what is served. So nobody starves, and a flood of batch calls, however old,
cannot take more than that from realtime calls.

Batch and below are spread: they go only while all calls together have used no more than an even part of the limit in
the last two seconds (longer for large calls). Over a minute it costs them nothing, and calls of higher classes find
permits that come back all the time instead of all at once a minute later.

A call that does not fit. When the next call needs more than there is, calls behind it may pass while a whole window
remains before its deadline, at most `BACKFILL` of them looked at per turn: what they take is back in time. After that
no call of its class or below passes, as long as it can still make it. So it neither starves nor holds up others for
longer than a window. A call that only its user's own limit stops holds up nobody but that user. Higher classes always
pass.

Deadlines. Who cannot be served in time, by the forecast from the limits and from what is ahead, is refused at once.
The forecast charges estimates; refunds only make it come true earlier.
"""

from __future__ import annotations

import heapq
from typing import Final

from msgspec import Struct

from sluice_core.api.quotaallocation import Priority
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask, Obstacle, Refused, Reservation, Wait
from sluice_core.limits.fair import Waiting
from sluice_core.limits.line import AGEING_SECONDS, CLASSES, RANKS, Line, Waiter, rank_of

MAX_LINE: Final = 10_000

_SPREAD_FROM: Final = CLASSES.index(Priority.BATCH)
_SPREAD_PARTS: Final = 30

__all__ = ["AGEING_SECONDS", "Entered", "Ready", "TimedOut", "Waiter", "WaitingLine"]


class Entered(Struct, frozen=True, kw_only=True):
    """The call is in the line. `expected` is the forecast of when it is admitted, `position` how many are ahead."""

    expected: float
    position: int
    obstacle: Obstacle


class Ready(Struct, frozen=True, kw_only=True):
    """A waiting call was admitted, `waited_seconds` after it entered."""

    id: int
    reservation: Reservation
    waited_seconds: float
    would_refuse: Obstacle | None = None


class TimedOut(Struct, frozen=True, kw_only=True):
    """A waiting call was not admitted in time, or cannot be any more; the line no longer knows it."""

    id: int
    refusal: Refused


class WaitingLine:
    """The line in front of all limits of one pod. Calls go through `walk_in` or `submit`, or they would jump it."""

    __slots__ = ("_admission", "_deadlines", "_lines", "_waiting")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._lines: dict[str, Line] = {}  # by upstream
        self._waiting: dict[int, Waiting] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def walk_in(self, upstream: str, ask: Ask, priority: Priority, retry: int, now: float) -> Admitted | None:
        """Admit a call that nobody is ahead of and for which there is enough, as most; None if it is for `submit`."""
        if self._lines or RANKS[priority] + retry >= _SPREAD_FROM:
            return None
        answer = self._admission.reserve(upstream, ask, now)
        return answer if isinstance(answer, Admitted) else None

    def submit(self, waiter: Waiter, now: float) -> Admitted | Entered | Refused:
        """Admit the call if it may go at once, else let it wait, else refuse it."""
        line = self._lines.get(waiter.upstream)
        if line is None:
            answer = self._reserve(waiter.upstream, waiter.ask, rank_of(waiter), now)
        else:
            # Somebody waits already: a newcomer goes first only if it outranks them and still fits.
            answer = self._reserve_past(line, waiter, now)
        match answer:
            case Admitted():
                return answer
            case Refused():
                self._admission.dismiss(waiter.upstream, now)
                return answer
            case Wait():
                return self._enter(waiter, answer, now)

    def leave(self, waiter_id: int) -> None:
        """Take a call out at once, because its client has gone; harmless if it is not in the line."""
        waiting = self._waiting.pop(waiter_id, None)
        if waiting is not None:
            self._forget(waiting)

    def ready(self, now: float) -> list[Ready | TimedOut]:
        """Return who may go now, with their reservations, and who has waited in vain. Call it when `next_event` is due,
        after a settlement or release, when leases arrive and when the policy changes."""
        outcomes: list[Ready | TimedOut] = []
        self._expire(now, outcomes)
        for upstream in list(self._lines):
            if not self._admission.knows(upstream):
                self._dissolve(upstream, now, outcomes)
                continue
            line = self._lines[upstream]
            for waiting, answer in line.serve(self._reserve, now):
                del self._waiting[waiting.id]
                self._admission.stop_waiting(upstream, waiting.ask)
                if isinstance(answer, Refused):
                    self._admission.dismiss(upstream, now)
                    outcomes.append(TimedOut(id=waiting.id, refusal=answer))
                else:
                    waited = now - waiting.entered_at
                    outcomes.append(
                        Ready(
                            id=waiting.id,
                            reservation=answer.reservation,
                            waited_seconds=waited,
                            would_refuse=answer.would_refuse,
                        )
                    )
            if not len(line):
                del self._lines[upstream]
        return outcomes

    def next_event(self, now: float) -> float | None:
        """Return when `ready` should be called next unless something happens before; None while nobody waits."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        if not self._waiting:
            return None
        times = [line.earliest for line in self._lines.values()]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        return max(now, min(times))

    def _reserve(self, upstream: str, ask: Ask, rank: int, now: float) -> Admitted | Wait | Refused:
        if rank < _SPREAD_FROM:
            return self._admission.reserve(upstream, ask, now)
        # Classes below are spread: they leave it to the others to use more than an even part of the window at once.
        spread = self._admission.check_spread(upstream, ask, _SPREAD_PARTS, now)
        if spread is not None:
            return self._admission.check(upstream, ask, now) or spread
        return self._admission.reserve(upstream, ask, now)

    def _reserve_past(self, line: Line, waiter: Waiter, now: float) -> Admitted | Wait | Refused:
        """Try a newcomer while others wait. Unless it outranks all of them it has to take its turn, even if it fits."""
        rank = rank_of(waiter)
        if not line.has_equals(rank):
            return self._reserve(waiter.upstream, waiter.ask, rank, now)
        alone = self._admission.check(waiter.upstream, waiter.ask, now)
        return alone or Wait(obstacle=line.first_obstacle(), earliest=now)

    def _enter(self, waiter: Waiter, obstructed: Wait, now: float) -> Entered | Refused:
        line = self._lines.get(waiter.upstream)
        account = self._admission.account(waiter.upstream)
        max_length = account.allocation.queue.max_length if account.allocation else MAX_LINE
        ahead, position = line.ahead_of(waiter) if line else (Ask(requests=0), 0)
        expected = self._admission.forecast(waiter.upstream, waiter.ask, ahead, now)
        refusal: str | None = None
        if len(self._waiting) >= MAX_LINE or (line is not None and len(line) >= max_length) or not max_length:
            refusal = "queue_full"
        elif expected is None or max(expected, obstructed.earliest) > waiter.deadline:
            refusal = "deadline"
        expected = max(obstructed.earliest, now if expected is None else expected)
        if refusal is not None:
            self._admission.deny(waiter.upstream, waiter.ask, now)
            return Refused(reason=refusal, obstacle=obstructed.obstacle, retry_at=expected)
        if line is None:
            line = self._lines[waiter.upstream] = Line()
        waiting = line.add(waiter, obstructed, now)
        self._waiting[waiter.id] = waiting
        self._admission.wait(waiter.upstream, waiter.ask)
        if len(self._deadlines) > 2 * len(self._waiting) + 64:  # of calls that left long ago
            self._deadlines = [(each.deadline, each.id) for each in self._waiting.values()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (waiter.deadline, waiter.id))
        return Entered(expected=expected, position=position, obstacle=obstructed.obstacle)

    def _forget(self, waiting: Waiting) -> None:
        line = self._lines[waiting.upstream]
        line.remove(waiting)
        self._admission.stop_waiting(waiting.upstream, waiting.ask)
        if not len(line):
            del self._lines[waiting.upstream]

    def _dissolve(self, upstream: str, now: float, outcomes: list[Ready | TimedOut]) -> None:
        """Send everybody away: the policy has no such upstream any more. A new try is routed elsewhere."""
        del self._lines[upstream]
        for waiting in [each for each in self._waiting.values() if each.upstream == upstream]:
            del self._waiting[waiting.id]
            refusal = Refused(reason="timed_out", obstacle=waiting.obstacle, retry_at=now)
            outcomes.append(TimedOut(id=waiting.id, refusal=refusal))

    def _expire(self, now: float, outcomes: list[Ready | TimedOut]) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, waiter_id = heapq.heappop(self._deadlines)
            waiting = self._waiting.pop(waiter_id, None)
            if waiting is None:
                continue
            line = self._lines[waiting.upstream]
            retry_at = max(now, line.earliest)
            self._forget(waiting)
            self._admission.deny(waiting.upstream, waiting.ask, now)
            refusal = Refused(reason="timed_out", obstacle=waiting.obstacle, retry_at=retry_at)
            outcomes.append(TimedOut(id=waiter_id, refusal=refusal))
