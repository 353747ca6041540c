"""One class of the waiting line: users take turns by what they use.

Self-clocked fair queueing (Golestani 1994): a call is tagged with the virtual time at which it would end if all users
shared evenly, and the smallest tag goes first. Unlike plain turns it is fair in tokens, and unlike start-time tags it
cannot be starved by ever new users.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Final

from sluice_core.limits.decisions import Ask, Obstacle
from sluice_core.limits.keys import SLOT_SECONDS, WINDOW_SECONDS, Layer

_FINISHES_REMEMBERED: Final = 1024


class Waiting:
    """A call in the line."""

    __slots__ = ("ask", "cost", "deadline", "earliest", "entered_at", "id", "obstacle", "rank", "upstream")

    def __init__(
        self,
        *,
        number: int,
        upstream: str,
        ask: Ask,
        rank: int,
        entered_at: float,
        deadline: float,
        obstacle: Obstacle,
    ) -> None:
        self.id = number
        self.upstream = upstream
        self.ask = ask
        self.rank = rank
        self.entered_at = entered_at
        self.deadline = deadline
        self.obstacle = obstacle
        self.earliest = entered_at
        self.cost = max(1, ask.tokens)

    def holds_up(self, now: float) -> bool:
        """Tell whether calls behind must not pass.

        They may while a whole window remains before the deadline: what they take now is back by then. After that nobody
        passes as long as this call can make it. What only its user's own limit stops holds up nobody else.
        """
        if self.obstacle.layer is Layer.USER or self.earliest > self.deadline:
            return False
        dimension = self.obstacle.dimension
        return now + WINDOW_SECONDS.get(dimension, 0.0) + SLOT_SECONDS.get(dimension, 0.0) > self.deadline


class _Flow:
    __slots__ = ("calls", "finish", "seq")

    def __init__(self) -> None:
        self.calls: OrderedDict[int, Waiting] = OrderedDict()
        self.finish = 0
        self.seq = 0


class FairQueue:
    """Waiting calls of one class. Entering, leaving and taking turns cost O(log users)."""

    __slots__ = ("_calls", "_finishes", "_flows", "_heap", "_seq", "_virtual", "tokens")

    def __init__(self) -> None:
        self._calls: OrderedDict[int, Waiting] = OrderedDict()
        self._flows: dict[str | None, _Flow] = {}
        self._heap: list[tuple[int, int, str | None]] = []  # at most one valid entry per flow: that with its seq
        self._finishes: dict[str | None, int] = {}  # of users who wait no more but may be back soon
        self._seq = 0
        self._virtual = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._calls)

    def push(self, waiting: Waiting) -> None:
        """Let a call wait behind the others of its user."""
        user = waiting.ask.user
        self._calls[waiting.id] = waiting
        self.tokens += waiting.ask.tokens
        flow = self._flows.get(user)
        if flow is None:
            flow = self._flows[user] = _Flow()
            flow.calls[waiting.id] = waiting
            flow.finish = max(self._virtual, self._finishes.pop(user, 0)) + waiting.cost
            self._offer(user, flow)
        else:
            flow.calls[waiting.id] = waiting

    def remove(self, waiting: Waiting) -> None:
        """Take a call out, wherever it stands."""
        del self._calls[waiting.id]
        self.tokens -= waiting.ask.tokens
        user = waiting.ask.user
        flow = self._flows[user]
        del flow.calls[waiting.id]
        if not flow.calls:
            del self._flows[user]
            self._remember(user, flow.finish - waiting.cost)
            if len(self._heap) > 2 * len(self._flows) + 64:
                self._heap = [(each.finish, each.seq, name) for name, each in self._flows.items()]
                heapq.heapify(self._heap)

    def served(self, waiting: Waiting) -> None:
        """Charge a call to its user and take it out: the user's next one waits a turn for it."""
        user = waiting.ask.user
        flow = self._flows[user]
        self._virtual = max(self._virtual, flow.finish)
        finish = flow.finish
        self.remove(waiting)
        if flow.calls:
            flow.finish = finish + next(iter(flow.calls.values())).cost
            self._offer(user, flow)
        else:
            self._remember(user, finish)

    def oldest(self) -> Waiting | None:
        """Return the call that has waited longest."""
        return next(iter(self._calls.values()), None)

    def pop(self) -> Waiting | None:
        """Return the call whose turn it is. Its user has no further turn until `served` or `put_back`."""
        while self._heap:
            _, seq, user = heapq.heappop(self._heap)
            flow = self._flows.get(user)
            if flow is not None and flow.seq == seq:
                return next(iter(flow.calls.values()))
        return None

    def put_back(self, waiting: Waiting) -> None:
        """Let a call that did not fit keep its turn."""
        user = waiting.ask.user
        flow = self._flows.get(user)
        if flow is not None:
            self._offer(user, flow)

    def ahead_of(self, ask: Ask) -> Ask:
        """Estimate what is served before a newcomer: what the others get until its user's turns have come."""
        own = self._flows.get(ask.user)
        calls = 1 + (len(own.calls) if own else 0)
        tokens = ask.tokens + (sum(each.ask.tokens for each in own.calls.values()) if own else 0)
        flows = len(self._flows)
        return Ask(requests=min(len(self._calls), flows * calls), tokens=min(self.tokens, flows * tokens))

    def _offer(self, user: str | None, flow: _Flow) -> None:
        self._seq += 1
        flow.seq = self._seq
        heapq.heappush(self._heap, (flow.finish, flow.seq, user))

    def _remember(self, user: str | None, finish: int) -> None:
        if finish <= self._virtual:
            self._finishes.pop(user, None)
            return
        if len(self._finishes) >= _FINISHES_REMEMBERED:
            self._finishes = {name: each for name, each in self._finishes.items() if each > self._virtual}
        if len(self._finishes) < _FINISHES_REMEMBERED:
            self._finishes[user] = finish
