"""The circuit breaker: stops calls to what keeps failing, and lets them resume through a few probes. Pure.

It opens on the share of failures in a sliding window, once there are enough calls for a share to mean something, or on
failures in a row. After a while it lets single probes through; enough successes close it, one failure opens it again.
The rules are the table `TRANSITIONS`; `CircuitBreaker` only finds out which event has happened.

What the caller did wrong says nothing about the upstream and never counts; neither does a 429, which says that the
upstream is well and that this account should wait.
"""

from __future__ import annotations

from enum import StrEnum

from sluice_core.api.base import Value
from sluice_core.api.upstream import Breaker
from sluice_core.classify import Failure, Scope
from sluice_core.records import Outcome


class State(StrEnum):
    """Whether calls pass."""

    CLOSED = "Closed"
    OPEN = "Open"
    HALF_OPEN = "HalfOpen"


class Event(StrEnum):
    """What may change the state."""

    TRIPPED = "Tripped"  # too many failures, or an order from outside to stop until some time
    COOLED = "Cooled"  # the time to stay open is over
    PROBE_FAILED = "ProbeFailed"
    RECOVERED = "Recovered"  # enough probes succeeded


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.CLOSED, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.TRIPPED): State.OPEN,
    (State.OPEN, Event.COOLED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.TRIPPED): State.OPEN,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    (State.HALF_OPEN, Event.RECOVERED): State.CLOSED,
}

_COUNTS: dict[Outcome, bool | None] = {
    Outcome.SUCCESS: True,
    Outcome.PROVIDER_ERROR: False,
    Outcome.TIMEOUT: False,
    Outcome.CONNECTION_ERROR: False,
    Outcome.TRUNCATED: False,
    Outcome.REFUSED: None,
    Outcome.THROTTLED: None,
    Outcome.EXHAUSTED: None,  # trips the key or the account instead, see `trip`
    Outcome.CONFIG_ERROR: None,
    Outcome.CREDENTIAL_ERROR: None,
    Outcome.CLIENT_ERROR: None,
    Outcome.CLIENT_CLOSED: None,
}

SLOTS = 10
"""Parts of the sliding window: a result is forgotten between nine and ten tenths of a window later."""

SOONEST_RETRY_SECONDS = 1.0
"""What is told to a caller that finds all probes taken: their end is not known."""


def counts(outcome: Outcome, *, repeated: bool = False) -> bool | None:
    """Return whether an outcome is a success or a failure of the upstream, or None if it says nothing about it.

    `repeated` says that an earlier attempt of the same call, with another key, failed in the same way: a request that
    makes the upstream fail wherever it is sent must not open every key's breaker.
    """
    verdict = _COUNTS[outcome]
    return None if repeated and verdict is False else verdict


def stops(failure: Failure) -> Scope | None:
    """Return what a failure stops for everybody (a key, a project, the account), None if only this attempt failed.

    A 403 about one operation (scope Call) leaves the key as it is, or one caller could stop it for all others.
    """
    if failure.outcome not in (Outcome.EXHAUSTED, Outcome.CREDENTIAL_ERROR):
        return None
    return failure.scope if failure.scope in (Scope.KEY, Scope.PROJECT, Scope.ACCOUNT) else None


class Permit(Value, frozen=True, kw_only=True, gc=False):
    """Leave to make one attempt. It must be given back with `record`, also when the call is cancelled."""

    generation: int
    probe: bool = False


class Rejected(Value, frozen=True, kw_only=True, gc=False):
    """No attempt now; `until` is the earliest time at which one may be allowed."""

    until: float


class CircuitBreaker:
    """One breaker. All times are monotonic seconds."""

    __slots__ = (
        "_consecutive",
        "_failures",
        "_generation",
        "_in_flight",
        "_permit",
        "_policy",
        "_slot",
        "_slot_seconds",
        "_state",
        "_successes",
        "_totals",
        "_until",
    )

    def __init__(self, policy: Breaker) -> None:
        self._policy = policy
        self._slot_seconds = policy.window_seconds / SLOTS
        self._state = State.CLOSED
        self._generation = 0
        self._until = 0.0
        self._in_flight = 0
        self._successes = 0
        self._clear()

    @property
    def state(self) -> State:
        """Return the state as of the last event. An open breaker turns half-open only when a call asks."""
        return self._state

    @property
    def until(self) -> float:
        """Return the time until which an open breaker stays open."""
        return self._until

    def configure(self, policy: Breaker) -> None:
        """Take new settings; the state stays, the window starts anew if its length has changed."""
        if policy.window_seconds != self._policy.window_seconds:
            self._slot_seconds = policy.window_seconds / SLOTS
            self._clear()
        self._policy = policy

    def allow(self, now: float) -> Permit | Rejected:
        """Return leave for one attempt, or until when there is none."""
        if self._state is State.CLOSED:
            return self._permit
        if self._state is State.OPEN:
            if now < self._until:
                return Rejected(until=self._until)
            self._enter(Event.COOLED, now)
        if self._in_flight >= self._policy.half_open_probes:
            return Rejected(until=now + SOONEST_RETRY_SECONDS)
        self._in_flight += 1
        return Permit(generation=self._generation, probe=True)

    def record(self, permit: Permit, ok: bool | None, now: float) -> None:
        """Give a permit back with what came of it; None if that says nothing about the upstream.

        A permit of an earlier state, from before the breaker opened or closed, is out of date and counts nothing.
        """
        if permit.generation != self._generation:
            return
        if permit.probe:
            self._in_flight -= 1
            self._record_probe(ok, now)
        elif ok is not None:
            self._record_call(ok, now)

    def trip(self, until: float, now: float) -> None:
        """Stay open at least until the given time, because the upstream said so. The longest such time wins."""
        if until > now:
            self._enter(Event.TRIPPED, now, until)

    def _record_probe(self, ok: bool | None, now: float) -> None:
        if ok is False:
            self._enter(Event.PROBE_FAILED, now)
        elif ok:
            self._successes += 1
            if self._successes >= self._policy.successes_to_close:
                self._enter(Event.RECOVERED, now)

    def _record_call(self, ok: bool, now: float) -> None:
        slot = int(now // self._slot_seconds)
        slot = slot % SLOTS if slot == self._slot else self._turn(slot)
        self._totals[slot] += 1
        if ok:
            self._consecutive = 0
            return
        self._failures[slot] += 1
        self._consecutive += 1
        if self._is_failing():
            self._enter(Event.TRIPPED, now)

    def _is_failing(self) -> bool:
        policy = self._policy
        if 0 < policy.consecutive_failures <= self._consecutive:
            return True
        total = sum(self._totals)
        return total >= policy.minimum_requests and sum(self._failures) * 100 >= policy.failure_percent * total

    def _enter(self, event: Event, now: float, until: float | None = None) -> None:
        before = self._state
        self._state = TRANSITIONS[before, event]
        if self._state is State.OPEN:
            end = until if until is not None else now + self._policy.open_seconds
            self._until = max(self._until, end)
        if self._state is not before:
            self._in_flight = self._successes = 0
            self._generation += 1
            self._clear()

    def _clear(self) -> None:
        self._permit = Permit(generation=self._generation)
        self._totals = [0] * SLOTS
        self._failures = [0] * SLOTS
        self._consecutive = 0
        self._slot: int | None = None

    def _turn(self, slot: int) -> int:
        """Go on to a slot; return its index, with those emptied that have left the window since the last."""
        if self._slot is None:
            self._slot = slot
        for passed in range(self._slot + 1, min(slot, self._slot + SLOTS) + 1):
            self._totals[passed % SLOTS] = self._failures[passed % SLOTS] = 0
        self._slot = max(self._slot, slot)
        return self._slot % SLOTS


def diagram() -> str:
    """Return the transition table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.CLOSED}"]
    lines += [f"    {before} --> {after}: {event}" for (before, event), after in TRANSITIONS.items()]
    return "\n".join(lines) + "\n"
