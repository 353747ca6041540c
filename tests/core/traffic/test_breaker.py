"""The circuit breaker, against its table and against a plain re-computation from the whole history."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from sluice_core.api.upstream import Breaker
from sluice_core.breaker import (
    SLOTS,
    TRANSITIONS,
    CircuitBreaker,
    Event,
    Permit,
    Rejected,
    State,
    counts,
    diagram,
    stops,
)
from sluice_core.classify import Failure, Scope
from sluice_core.records import Outcome

POLICY = Breaker(
    failure_percent=50,
    minimum_requests=4,
    consecutive_failures=3,
    window_seconds=10,
    open_seconds=5,
    half_open_probes=2,
    successes_to_close=2,
)


def call(breaker: CircuitBreaker, now: float, ok: bool | None) -> None:
    permit = breaker.allow(now)
    assert isinstance(permit, Permit)
    breaker.record(permit, ok, now)


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(POLICY)
    for _ in range(3):
        call(breaker, now, ok=False)
    assert breaker.state is State.OPEN
    return breaker


def test_failures_in_a_row_open_it() -> None:
    """Three in a row are enough, whatever the share."""
    breaker = CircuitBreaker(POLICY)
    for ok in (True,) * 20 + (False, False, True, False, False):
        call(breaker, 0.0, ok)
    assert breaker.state is State.CLOSED
    call(breaker, 0.0, ok=False)
    assert breaker.allow(1.0) == Rejected(until=5.0)


def test_the_share_of_failures_needs_a_minimum_of_calls() -> None:
    """Two of three failed calls mean nothing yet; half of four do (P13)."""
    breaker = CircuitBreaker(POLICY)
    for ok in (False, True, False):
        call(breaker, 0.0, ok)
    assert breaker.state is State.CLOSED
    call(breaker, 0.0, ok=True)
    assert breaker.state is State.CLOSED  # a success never opens it, the next failure asks again
    call(breaker, 0.0, ok=False)
    assert breaker.state is State.OPEN


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """Failures of long ago do not add up with those of today."""
    breaker = CircuitBreaker(POLICY)
    for now, ok in ((0.0, False), (0.0, True), (0.0, False), (10.0, True), (10.0, True), (10.0, False)):
        call(breaker, now, ok)
    assert breaker.state is State.CLOSED
    call(breaker, 19.9, ok=False)  # what is in the window does add up: two of four
    assert breaker.state is State.OPEN


def test_probes_are_bounded_and_successes_close_it() -> None:
    """After the wait two probes may be in flight at once; two successes close it."""
    breaker = opened()
    first, second = breaker.allow(5.0), breaker.allow(5.0)
    assert breaker.state is State.HALF_OPEN
    assert isinstance(breaker.allow(5.0), Rejected)
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    breaker.record(first, True, 6.0)
    breaker.record(second, True, 6.0)
    assert breaker.state is State.CLOSED


def test_one_failed_probe_opens_it_again() -> None:
    """The wait starts anew, and the other probes count no more."""
    breaker = opened()
    first, second = breaker.allow(5.0), breaker.allow(5.0)
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    breaker.record(first, False, 6.0)
    breaker.record(second, True, 6.0)
    assert breaker.allow(10.9) == Rejected(until=11.0)
    assert isinstance(breaker.allow(11.0), Permit)


def test_a_cancelled_probe_gives_its_place_back() -> None:
    """A client that goes away takes no probe with it (P9)."""
    breaker = opened()
    for _ in range(10):
        permit = breaker.allow(5.0)
        assert isinstance(permit, Permit)
        breaker.record(permit, None, 5.0)
    assert breaker.state is State.HALF_OPEN


def test_the_longest_deadline_wins() -> None:
    """A shorter stop never cuts a longer one short, and a later longer one extends it (P13)."""
    breaker = opened()
    breaker.trip(60.0, 1.0)
    breaker.trip(20.0, 2.0)
    assert breaker.allow(59.0) == Rejected(until=60.0)
    fresh = CircuitBreaker(POLICY)
    fresh.trip(30.0, 0.0)
    assert fresh.allow(29.0) == Rejected(until=30.0)
    fresh.trip(5.0, 40.0)  # in the past
    assert isinstance(fresh.allow(40.0), Permit)


def test_results_of_calls_from_before_do_not_count() -> None:
    """A call that began before the breaker opened says nothing about the upstream of now."""
    breaker = CircuitBreaker(POLICY)
    old = breaker.allow(0.0)
    assert isinstance(old, Permit)
    for _ in range(3):
        call(breaker, 0.0, ok=False)
    probe = breaker.allow(5.0)
    assert isinstance(probe, Permit)
    breaker.record(old, False, 5.0)
    assert breaker.state is State.HALF_OPEN


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome.SUCCESS, True),
        (Outcome.PROVIDER_ERROR, False),
        (Outcome.TIMEOUT, False),
        (Outcome.CONNECTION_ERROR, False),
        (Outcome.TRUNCATED, False),
        (Outcome.CLIENT_ERROR, None),
        (Outcome.CONFIG_ERROR, None),
        (Outcome.CREDENTIAL_ERROR, None),
        (Outcome.THROTTLED, None),
        (Outcome.EXHAUSTED, None),
        (Outcome.CLIENT_CLOSED, None),
        (Outcome.REFUSED, None),
    ],
)
def test_only_the_upstreams_own_failures_count(outcome: Outcome, verdict: bool | None) -> None:
    """The caller's 4xx never count, and a failure that follows the call to another key counts once (P13)."""
    assert counts(outcome) is verdict
    assert counts(outcome, repeated=True) is (None if verdict is False else verdict)


@pytest.mark.parametrize(
    ("outcome", "scope", "stopped"),
    [
        (Outcome.EXHAUSTED, Scope.ACCOUNT, Scope.ACCOUNT),
        (Outcome.EXHAUSTED, Scope.PROJECT, Scope.PROJECT),
        (Outcome.CREDENTIAL_ERROR, Scope.KEY, Scope.KEY),
        (Outcome.CREDENTIAL_ERROR, Scope.CALL, None),
        (Outcome.PROVIDER_ERROR, Scope.UPSTREAM, None),
        (Outcome.THROTTLED, Scope.ACCOUNT, None),
    ],
)
def test_what_a_failure_stops_for_everybody(outcome: Outcome, scope: Scope, stopped: Scope | None) -> None:
    """A refused key and spent money concern all callers; a forbidden operation only its own."""
    assert stops(Failure(outcome=outcome, scope=scope)) is stopped


def test_every_outcome_is_in_the_table() -> None:
    """A new outcome needs a verdict."""
    for outcome in Outcome:
        counts(outcome)


def test_the_diagram_shows_every_transition() -> None:
    """What the documentation draws is what runs."""
    text = diagram()
    assert text.startswith("stateDiagram-v2\n    [*] --> Closed\n")
    assert len(text.splitlines()) == len(TRANSITIONS) + 2
    assert "    Open --> HalfOpen: Cooled\n" in text
    assert {event for _, event in TRANSITIONS} == set(Event)


class AgainstTheWholeHistory(RuleBasedStateMachine):
    """Recomputes each decision from a list of all that ever happened."""

    permits = Bundle("permits")

    @initialize(
        minimum=st.integers(1, 6),
        percent=st.integers(1, 100),
        consecutive=st.integers(0, 4),
        probes=st.integers(1, 3),
        successes=st.integers(1, 3),
    )
    def start(self, minimum: int, percent: int, consecutive: int, probes: int, successes: int) -> None:
        self.policy = Breaker(
            failure_percent=percent,
            minimum_requests=minimum,
            consecutive_failures=consecutive,
            window_seconds=10,
            open_seconds=5,
            half_open_probes=probes,
            successes_to_close=successes,
        )
        self.breaker = CircuitBreaker(self.policy)
        self.now = 0.0
        self.state = State.CLOSED
        self.era = 0
        self.until = 0.0
        self.history: list[tuple[int, bool]] = []  # of this era: slot and success
        self.probing = 0
        self.recovered = 0

    def change(self, state: State) -> None:
        self.state = state
        self.era += 1
        self.history, self.probing, self.recovered = [], 0, 0

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0, 5.0, 12.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=permits)
    def allow(self) -> tuple[Permit | None, int]:
        answer = self.breaker.allow(self.now)
        if self.state is State.OPEN and self.now >= self.until:
            self.change(State.HALF_OPEN)
        allowed = self.state is State.CLOSED or (
            self.state is State.HALF_OPEN and self.probing < self.policy.half_open_probes
        )
        assert isinstance(answer, Permit) is allowed
        if isinstance(answer, Rejected):
            assert answer.until > self.now
            return None, -1
        assert answer.probe is (self.state is State.HALF_OPEN)
        self.probing += self.state is State.HALF_OPEN
        return answer, self.era

    @rule(granted=consumes(permits), ok=st.sampled_from([True, False, False, None]))
    def record(self, granted: tuple[Permit | None, int], ok: bool | None) -> None:
        permit, era = granted
        if permit is None:
            return
        self.breaker.record(permit, ok, self.now)
        if era != self.era:
            return
        if self.state is State.HALF_OPEN:
            self.probing -= 1
            self.recovered += ok is True
            if ok is False:
                self.open(self.now + 5)
            elif self.recovered >= self.policy.successes_to_close:
                self.change(State.CLOSED)
        elif ok is not None:
            self.history.append((int(self.now // (10 / SLOTS)), ok))
            if not ok and self.is_failing():
                self.open(self.now + 5)

    @rule(seconds=st.sampled_from([-1.0, 2.0, 8.0]))
    def trip(self, seconds: float) -> None:
        self.breaker.trip(self.now + seconds, self.now)
        if seconds > 0:
            self.open(self.now + seconds)

    def open(self, until: float) -> None:
        self.until = max(self.until, until)
        if self.state is not State.OPEN:
            self.change(State.OPEN)

    def is_failing(self) -> bool:
        in_a_row = 0
        for _, ok in reversed(self.history):
            if ok:
                break
            in_a_row += 1
        if 0 < self.policy.consecutive_failures <= in_a_row:
            return True
        newest = self.history[-1][0]
        recent = [ok for slot, ok in self.history if slot > newest - SLOTS]
        enough = len(recent) >= self.policy.minimum_requests
        return enough and recent.count(False) * 100 >= self.policy.failure_percent * len(recent)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.state is self.state


TestAgainstTheWholeHistory = AgainstTheWholeHistory.TestCase
TestAgainstTheWholeHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
