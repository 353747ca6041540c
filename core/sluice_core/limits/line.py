"""Those who wait for one upstream, by class. The rules are those of `queue`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from sluice_core.api.quotaallocation import Priority
from sluice_core.limits.decisions import Admitted, Ask, Obstacle, Refused, Wait
from sluice_core.limits.fair import FairQueue, Waiting

AGEING_SECONDS: Final = 15.0
AGED_PART: Final = 16
BACKFILL: Final = 16
CLASSES: Final = tuple(Priority)

RANKS: Final = {priority: rank for rank, priority in enumerate(CLASSES)}

Reserve = Callable[[str, Ask, int, float], Admitted | Wait | Refused]
"""How a call of a rank is reserved: upstream, ask, rank, now."""


class Waiter(Struct, frozen=True, kw_only=True):
    """A call that wants to be admitted. `id` is the caller's own name for it; `deadline` is in monotonic seconds."""

    id: int
    upstream: str
    ask: Ask
    priority: Priority = Priority.STANDARD
    retry: int = 0
    deadline: float


class Line:
    """Those who wait for one upstream."""

    __slots__ = ("_aged_credit", "_classes", "earliest")

    def __init__(self) -> None:
        self._classes = tuple(FairQueue() for _ in CLASSES)
        self._aged_credit = 0.0
        self.earliest = float("inf")
        """When the next one is expected to fit."""

    def __len__(self) -> int:
        return sum(len(each) for each in self._classes)

    def add(self, waiter: Waiter, obstructed: Wait, now: float) -> Waiting:
        rank = rank_of(waiter)
        waiting = Waiting(
            number=waiter.id,
            upstream=waiter.upstream,
            ask=waiter.ask,
            rank=rank,
            entered_at=now,
            deadline=waiter.deadline,
            obstacle=obstructed.obstacle,
        )
        self._classes[rank].push(waiting)
        self.earliest = min(self.earliest, obstructed.earliest)
        return waiting

    def remove(self, waiting: Waiting) -> None:
        self._classes[waiting.rank].remove(waiting)

    def ahead_of(self, waiter: Waiter) -> tuple[Ask, int]:
        """Return what will probably be served before a newcomer, and how many calls that is."""
        rank = rank_of(waiter)
        requests = sum(len(each) for each in self._classes[:rank])
        tokens = sum(each.tokens for each in self._classes[:rank])
        same = self._classes[rank].ahead_of(waiter.ask)
        return Ask(requests=requests + same.requests, tokens=tokens + same.tokens), requests + same.requests

    def has_equals(self, rank: int) -> bool:
        """Tell whether anybody waits whom a newcomer of this rank does not outrank."""
        return any(len(each) for each in self._classes[: rank + 1])

    def first_obstacle(self) -> Obstacle:
        """Return what the highest of those who wait waits for."""
        return next(oldest.obstacle for each in self._classes if (oldest := each.oldest()) is not None)

    def serve(self, reserve: Reserve, now: float) -> list[tuple[Waiting, Admitted | Refused]]:
        """Take out and return those who go now, in order."""
        served: list[tuple[Waiting, Admitted | Refused]] = []
        self.earliest = float("inf")
        if self._serve_aged(reserve, now, served):
            for queue in self._classes:
                if not self._serve_class(queue, reserve, now, served):
                    break
        return served

    def _serve_aged(self, reserve: Reserve, now: float, served: list[tuple[Waiting, Admitted | Refused]]) -> bool:
        """Serve those of lower classes who waited long, as far as their part goes; tell whether others may follow."""
        while (aged := self._oldest_aged(now)) is not None and self._aged_credit >= aged.cost:
            answer = self._try(aged, reserve, now)
            if answer is None:
                return not aged.holds_up(now)
            self._aged_credit -= aged.cost
            self._classes[aged.rank].served(aged)
            served.append((aged, answer))
        return True

    def _serve_class(
        self, queue: FairQueue, reserve: Reserve, now: float, served: list[tuple[Waiting, Admitted | Refused]]
    ) -> bool:
        """Serve one class; tell whether lower ones may follow."""
        passed: list[Waiting] = []
        may_pass = True
        while may_pass and len(passed) < BACKFILL and (waiting := queue.pop()) is not None:
            answer = self._try(waiting, reserve, now)
            if answer is not None:
                self._earn(waiting, now)
                queue.served(waiting)
                served.append((waiting, answer))
                continue
            passed.append(waiting)
            may_pass = not waiting.holds_up(now)
        for waiting in passed:
            queue.put_back(waiting)
        return may_pass

    def _try(self, waiting: Waiting, reserve: Reserve, now: float) -> Admitted | Refused | None:
        answer = reserve(waiting.upstream, waiting.ask, waiting.rank, now)
        if isinstance(answer, Wait):
            waiting.obstacle, waiting.earliest = answer.obstacle, answer.earliest
            self.earliest = min(self.earliest, answer.earliest)
            return None
        return answer

    def _oldest_aged(self, now: float) -> Waiting | None:
        aged = None
        for queue in self._classes[1:]:
            oldest = queue.oldest()
            if oldest is not None and now - oldest.entered_at >= AGEING_SECONDS:
                aged = oldest if aged is None or oldest.entered_at < aged.entered_at else aged
        if aged is None:
            self._aged_credit = 0.0
        return aged

    def _earn(self, served: Waiting, now: float) -> None:
        if self._oldest_aged(now) is not None:
            self._aged_credit += served.cost / AGED_PART


def rank_of(waiter: Waiter) -> int:
    """Return the class that a call waits in, 0 the highest."""
    return min(RANKS[waiter.priority] + waiter.retry, len(CLASSES) - 1)
