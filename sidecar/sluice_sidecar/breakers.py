"""The breakers of one pod: narrow ones by upstream, model and key, wide ones for a key or an account that is stopped.

A narrow breaker learns from every attempt. A wide one is made when the upstream refuses a key, or says that a project
or the account is out of money, and goes when an attempt succeeds again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from sluice_core.api.upstream import Breaker
from sluice_core.breaker import CircuitBreaker, Permit, Rejected, State, counts, stops
from sluice_core.classify import Failure, Scope

MAX_BREAKERS = 4096
"""Model names come from callers; beyond this many, breakers that are closed are forgotten."""

Place = tuple[str, str | None, str | None]
"""Upstream, model, key; None stands for any."""

_DEFAULT = Breaker()


class Pass(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Leave for one attempt. It must be given back with `settle` or `cancel`, whatever happens."""

    place: Place
    permit: Permit
    wide: tuple[tuple[Place, Permit], ...] = ()


class Breakers:
    """Breakers by place. Times are monotonic seconds."""

    __slots__ = ("_narrow", "_policies", "_wide")

    def __init__(self) -> None:
        self._policies: dict[str, Breaker] = {}
        self._narrow: dict[Place, CircuitBreaker] = {}
        self._wide: dict[Place, CircuitBreaker] = {}

    def configure(self, policies: Mapping[str, Breaker]) -> None:
        """Take new settings, by upstream. Breakers live on; those of upstreams that are gone are dropped."""
        self._policies = dict(policies)
        for breakers in (self._narrow, self._wide):
            for place in list(breakers):
                policy = self._policies.get(place[0])
                if policy is None:
                    del breakers[place]
                else:
                    breakers[place].configure(policy)

    def keys_changed(self) -> None:
        """Let new keys try at once what the old ones were refused."""
        self._wide.clear()

    def allow(self, upstream: str, model: str | None, key: str | None, now: float) -> Pass | Rejected:
        """Return leave for one attempt, or the earliest time for one. A refusal takes no permit anywhere."""
        place = (upstream, model, key)
        if not self._wide:  # as nearly always
            found = (self._narrow.get(place) or self._new(place)).allow(now)
            return Pass(place=place, permit=found) if isinstance(found, Permit) else found
        wide: list[tuple[Place, Permit]] = []
        answer: Permit | Rejected | None = self._allow_wide(upstream, key, wide, now)
        if answer is None:
            answer = (self._narrow.get(place) or self._new(place)).allow(now)
        if isinstance(answer, Permit):
            return Pass(place=place, permit=answer, wide=tuple(wide))
        for taken, permit in wide:
            self._wide[taken].record(permit, None, now)
        return answer

    def _allow_wide(
        self, upstream: str, key: str | None, taken: list[tuple[Place, Permit]], now: float
    ) -> Rejected | None:
        for place in dict.fromkeys(((upstream, None, None), (upstream, None, key))):
            breaker = self._wide.get(place)
            if breaker is None:
                continue
            answer = breaker.allow(now)
            if isinstance(answer, Rejected):
                return answer
            taken.append((place, answer))
        return None

    def settle(self, leave: Pass, failure: Failure | None, now: float, *, repeated: bool = False) -> None:
        """Give a pass back with what came of the attempt; `failure` is None for an answer.

        `repeated` says that an earlier attempt of the same call, with another key, failed in the same way.
        """
        if failure is None:
            self._give_back(leave, True, now)
            return
        self._give_back(leave, counts(failure.outcome, repeated=repeated), now)
        scope = stops(failure)
        if scope is not None and leave.place[2] is not None:
            self._stop(leave.place, failure, scope, now)

    def cancel(self, leave: Pass, now: float) -> None:
        """Give a pass back for an attempt that was not made, or of which nothing is known."""
        self._give_back(leave, None, now)

    def not_closed(self) -> Iterator[tuple[Place, State, float]]:
        """Yield (place, state, open until) of each breaker that is not closed."""
        for breakers in (self._wide, self._narrow):
            for place, breaker in breakers.items():
                if breaker.state is not State.CLOSED:
                    yield place, breaker.state, breaker.until

    def _give_back(self, leave: Pass, ok: bool | None, now: float) -> None:
        narrow = self._narrow.get(leave.place)
        if narrow is not None:
            narrow.record(leave.permit, ok, now)
        for place, permit in leave.wide:
            breaker = self._wide.get(place)
            if breaker is None:
                continue
            # Only an answer shows that a key or an account works again; other failures are the narrow breaker's.
            breaker.record(permit, ok or None, now)
            if breaker.state is State.CLOSED:
                del self._wide[place]

    def _stop(self, place: Place, failure: Failure, scope: Scope, now: float) -> None:
        upstream, _, key = place
        wide: Place = (upstream, None, None if scope is Scope.ACCOUNT else key)
        policy = self._policies.get(upstream, _DEFAULT)
        breaker = self._wide.get(wide)
        if breaker is None:
            breaker = self._wide[wide] = CircuitBreaker(policy)
        breaker.trip(now + max(policy.open_seconds, failure.retry_after_seconds or 0.0), now)

    def _new(self, place: Place) -> CircuitBreaker:
        if len(self._narrow) >= MAX_BREAKERS:
            self._narrow = {each: kept for each, kept in self._narrow.items() if kept.state is not State.CLOSED}
        if len(self._narrow) >= MAX_BREAKERS:
            del self._narrow[next(iter(self._narrow))]
        breaker = self._narrow[place] = CircuitBreaker(self._policies.get(place[0], _DEFAULT))
        return breaker
