"""All breakers of one pod: one per upstream, model and key, and wider ones for a key or an account that is stopped.

A narrow breaker learns from every attempt. A wide one exists only while it has something to say: it is made when the
upstream refuses a key, or says that a project or the account is out of money, and goes when a probe succeeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sluice_core.api.base import Value
from sluice_core.api.upstream import Breaker
from sluice_core.breaker import CircuitBreaker, Permit, Rejected, State, counts
from sluice_core.classify import Failure, Scope
from sluice_core.records import Outcome

MAX_BREAKERS = 4096
"""Model names come from callers; beyond this many, breakers that are closed are forgotten."""

BreakerKey = tuple[str, str | None, str | None]
"""Upstream, model, credential; None stands for any."""

_STOPS = frozenset({Outcome.EXHAUSTED, Outcome.CREDENTIAL_ERROR})


class Pass(Value, frozen=True, kw_only=True, gc=False):
    """Leave for one attempt from every breaker that it concerns. To be given back with `settle`, whatever happens."""

    key: BreakerKey
    permit: Permit
    wide: tuple[tuple[BreakerKey, Permit], ...] = ()


class BreakerBoard:
    """Breakers by key. All times are monotonic seconds."""

    __slots__ = ("_narrow", "_policies", "_wide")

    def __init__(self, policies: Mapping[str, Breaker]) -> None:
        self._policies = dict(policies)
        self._narrow: dict[BreakerKey, CircuitBreaker] = {}
        self._wide: dict[BreakerKey, CircuitBreaker] = {}

    def configure(self, policies: Mapping[str, Breaker]) -> None:
        """Take the settings of a new policy, by upstream key. Breakers live on; those of gone upstreams are dropped."""
        self._policies = dict(policies)
        for breakers in (self._narrow, self._wide):
            for key in list(breakers):
                policy = self._policies.get(key[0])
                if policy is None:
                    del breakers[key]
                else:
                    breakers[key].configure(policy)

    def allow(self, upstream: str, model: str | None, credential: str | None, now: float) -> Pass | Rejected:
        """Return leave for one attempt, or the earliest time for one. A refusal takes no permit anywhere."""
        key = (upstream, model, credential)
        breaker = self._narrow.get(key) or self._new(key)
        if not self._wide:
            permit = breaker.allow(now)
            return Pass(key=key, permit=permit) if isinstance(permit, Permit) else permit
        return self._allow_all(key, breaker, now)

    def settle(self, granted: Pass, failure: Failure | None, now: float, *, repeated: bool = False) -> None:
        """Give a pass back with what came of the attempt; `failure` is None for an answer.

        `repeated` says that an earlier attempt of the same call failed in the same way: a request that makes the
        upstream fail wherever it is sent must not open every key's breaker.
        """
        ok = counts(failure.outcome) if failure is not None else True
        if repeated and ok is False:
            ok = None
        self._give_back(granted, ok, now)
        if failure is not None and failure.outcome in _STOPS:
            self._stop(granted.key, failure, now)

    def cancel(self, granted: Pass, now: float) -> None:
        """Give a pass back for an attempt that was not made, or of which nothing is known."""
        self._give_back(granted, None, now)

    def not_closed(self) -> Iterator[tuple[BreakerKey, State, float]]:
        """Yield (key, state, open until) of each breaker that is not closed."""
        for breakers in (self._wide, self._narrow):
            for key, breaker in breakers.items():
                if breaker.state is not State.CLOSED:
                    yield key, breaker.state, breaker.until

    def _allow_all(self, key: BreakerKey, breaker: CircuitBreaker, now: float) -> Pass | Rejected:
        upstream, _, credential = key
        taken: list[tuple[BreakerKey, Permit]] = []
        rejected: Rejected | None = None
        wide_keys: list[BreakerKey] = [(upstream, None, None)]
        if credential is not None:
            wide_keys.append((upstream, None, credential))
        for wide_key in wide_keys:
            wide = self._wide.get(wide_key)
            if wide is not None and rejected is None:
                answer = wide.allow(now)
                if isinstance(answer, Permit):
                    taken.append((wide_key, answer))
                else:
                    rejected = answer
        permit = breaker.allow(now) if rejected is None else rejected
        if isinstance(permit, Permit):
            return Pass(key=key, permit=permit, wide=tuple(taken))
        for wide_key, each in taken:
            self._wide[wide_key].record(each, None, now)
        return permit

    def _give_back(self, granted: Pass, ok: bool | None, now: float) -> None:
        narrow = self._narrow.get(granted.key)
        if narrow is not None:
            narrow.record(granted.permit, ok, now)
        for key, permit in granted.wide:
            wide = self._wide.get(key)
            if wide is not None:
                # Only an answer shows that a key or an account works again; other failures are the narrow breaker's.
                wide.record(permit, ok or None, now)
                if wide.state is State.CLOSED:
                    del self._wide[key]

    def _stop(self, key: BreakerKey, failure: Failure, now: float) -> None:
        upstream, _, credential = key
        if credential is None:
            return  # the application's own key: its state says nothing about other callers
        wide_key: BreakerKey
        match failure.scope:
            case Scope.KEY | Scope.PROJECT:
                wide_key = (upstream, None, credential)
            case Scope.ACCOUNT:
                wide_key = (upstream, None, None)
            case Scope.CALL | Scope.MODEL | Scope.UPSTREAM:
                return
        policy = self._policies.get(upstream, _DEFAULT)
        wide = self._wide.get(wide_key)
        if wide is None:
            wide = self._wide[wide_key] = CircuitBreaker(policy)
        wide.trip(now + max(policy.open_seconds, failure.retry_after_seconds or 0.0), now)

    def _new(self, key: BreakerKey) -> CircuitBreaker:
        if len(self._narrow) >= MAX_BREAKERS:
            self._narrow = {each: kept for each, kept in self._narrow.items() if kept.state is not State.CLOSED}
        if len(self._narrow) >= MAX_BREAKERS:
            del self._narrow[next(iter(self._narrow))]
        breaker = self._narrow[key] = CircuitBreaker(self._policies.get(key[0], _DEFAULT))
        return breaker


_DEFAULT = Breaker()
