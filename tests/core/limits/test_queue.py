"""The waiting line: who goes next, who is refused at once, and that nobody is lost."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.base import KeySource
from sluice_core.api.quotaallocation import PerUser, Priority, Queue
from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask, Refused
from sluice_core.limits.keys import Dimension
from sluice_core.limits.queue import AGEING_SECONDS, Entered, Ready, TimedOut, Waiter, WaitingLine
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy
from sluice_core.sync import Lease

UP = "team/openai"


class Bench:
    """A line before one upstream, and the calls that went through."""

    def __init__(self, *, sole: bool = True, max_length: int = 10_000, per_user: Any = None, **figures: int) -> None:
        none = {"requests_per_minute": 0, "tokens_per_minute": 0, "requests_per_day": 0, "concurrency": 0}
        upstream = UpstreamPolicy(key=UP, base_url="http://x", limits=Limits(**(none | figures)))
        allocation = AllocationPolicy(name="a", queue=Queue(max_length=max_length), per_user=per_user)
        quota = QuotaPolicy(key="q", upstream=UP, allocations=(allocation,))
        self.admission = Admission(sole=sole)
        self.admission.configure(
            PodPolicy(namespace="t", revision="1", upstreams={UP: upstream}, quotas={UP: (quota, allocation)})
        )
        self.line = WaitingLine(self.admission)
        self.open: dict[int, Any] = {}
        self.count = 0

    def submit(self, now: float, *, patience: float = 1e6, **fields: Any) -> int:
        """Submit a call; return its id if it waits or was admitted."""
        answer, number = self.answer(now, patience=patience, **fields)
        assert not isinstance(answer, Refused), answer
        return number

    def answer(self, now: float, *, patience: float = 1e6, **fields: Any) -> tuple[Admitted | Entered | Refused, int]:
        """Submit a call; return the answer."""
        self.count += 1
        known = {name: fields.pop(name) for name in ("priority", "retry") if name in fields}
        waiter = Waiter(id=self.count, upstream=UP, ask=Ask(**fields), deadline=now + patience, **known)
        answer = self.line.submit(waiter, now)
        if isinstance(answer, Admitted):
            self.open[self.count] = answer.reservation
        return answer, self.count

    def end(self, number: int, now: float) -> list[int]:
        """End a call and return whose turn came."""
        self.admission.settle(self.open.pop(number), tokens=None, usd_micros=None, now=now)
        return self.ready(now)

    def ready(self, now: float) -> list[int]:
        """Return who goes now."""
        went = []
        for outcome in self.line.ready(now):
            if isinstance(outcome, Ready):
                self.open[outcome.id] = outcome.reservation
                went.append(outcome.id)
        return went

    def one_at_a_time(self, now: float, first: int) -> list[int]:
        """End one call after the other, and return the order in which they went."""
        order, current = [], first
        while went := self.end(current, now):
            assert len(went) == 1
            current = went[0]
            order.append(current)
        return order


def test_higher_classes_go_first_and_equals_in_order() -> None:
    """Order is by class, then by arrival; a retry waits a class lower for each attempt."""
    bench = Bench(concurrency=1)
    first = bench.submit(0.0)
    low = bench.submit(0.0, priority=Priority.LOW)
    batch = bench.submit(0.0, priority=Priority.BATCH)
    retried = bench.submit(0.0, priority=Priority.REALTIME, retry=1, user="r")
    standard = bench.submit(0.0, priority=Priority.STANDARD, user="s")
    critical = bench.submit(0.0, priority=Priority.CRITICAL)
    realtime = bench.submit(0.0, priority=Priority.REALTIME)
    assert bench.one_at_a_time(0.0, first) == [critical, realtime, retried, standard, batch, low]


def test_users_take_turns() -> None:
    """One call of a user who comes last waits for one call of a user with many, not for all of them."""
    bench = Bench(concurrency=1)
    first = bench.submit(0.0, user="other")
    greedy = [bench.submit(0.0, user="greedy", tokens=10) for _ in range(50)]
    single = bench.submit(0.0, user="single", tokens=10)
    assert bench.one_at_a_time(0.0, first).index(single) <= 1
    assert greedy


def test_turns_are_by_tokens() -> None:
    """A user of large calls gets as many tokens as one of small calls."""
    bench = Bench(concurrency=1)
    first = bench.submit(0.0, user="x")
    large = {bench.submit(0.0, user="large", tokens=1000) for _ in range(10)}
    small = {bench.submit(0.0, user="small", tokens=100) for _ in range(100)}
    order = bench.one_at_a_time(0.0, first)[:44]
    assert sum(each in large for each in order) == 4
    assert sum(each in small for each in order) == 40


def test_ever_new_users_do_not_starve_an_old_one() -> None:
    """A user with many calls gets turns although a new user comes with every call that ends."""
    bench = Bench(concurrency=1)
    current = bench.submit(0.0, user="x")
    old = {bench.submit(0.0, user="old", tokens=10) for _ in range(20)}
    served = 0
    for index in range(60):
        bench.submit(0.0, user=f"new-{index}", tokens=10)
        (current,) = bench.end(current, 0.0)
        served += current in old
    assert served >= 10


def test_aged_calls_get_their_part_and_no_more() -> None:
    """Behind a steady stream of realtime calls, old batch calls go too, but at most one in sixteen."""
    bench = Bench(concurrency=1)
    current = bench.submit(0.0)
    batch = {bench.submit(0.0, priority=Priority.BATCH) for _ in range(100)}
    for _ in range(5):
        bench.submit(AGEING_SECONDS, priority=Priority.REALTIME)
    served = 0
    for _ in range(320):
        bench.submit(AGEING_SECONDS + 1, priority=Priority.REALTIME)
        (current,) = bench.end(current, AGEING_SECONDS + 1)
        served += current in batch
    assert 18 <= served <= 21


def _realtime_waits(flood: int) -> tuple[list[float], int]:
    """Waits of realtime calls at 60 % of capacity for ten minutes, beside a flood of batch calls, and all tokens."""
    bench = Bench(tokens_per_minute=60_000, concurrency=200)
    draw = random.Random(7)
    arrivals = sorted(draw.uniform(0, 600) for _ in range(3600))  # 100 tokens each: 36 000 a minute
    entered: dict[int, float] = {}
    waits: list[float] = []
    step, now, tokens = 0, 0.0, 0
    while now < 600.0:
        if step % 8 == 0:
            for _ in range(flood):
                bench.answer(now, priority=Priority.BATCH, tokens=500, user="batch", patience=300.0)
        while arrivals and arrivals[0] <= now:
            arrived = arrivals.pop(0)
            answer, number = bench.answer(
                now, priority=Priority.REALTIME, tokens=100, user=f"u{number_of(arrived)}", patience=60.0
            )
            entered[number] = now
            if isinstance(answer, Admitted):
                waits.append(0.0)
            else:
                assert isinstance(answer, Entered)
        waits.extend(now - entered[number] for number in bench.ready(now) if number in entered)
        for number in list(bench.open):
            tokens += bench.open[number].ask.tokens
            bench.admission.settle(bench.open.pop(number), tokens=None, usd_micros=None, now=now)
        step, now = step + 1, now + 0.25
    return sorted(waits), tokens


def number_of(arrived: float) -> int:
    """One of twenty users."""
    return int(arrived * 1000) % 20


def test_a_flood_of_batch_calls_does_not_move_the_p99_wait_of_realtime_calls() -> None:
    """At 60 % of capacity realtime calls do not wait, and neither do they while a flood uses all the rest."""
    (calm, _), (flooded, tokens) = _realtime_waits(0), _realtime_waits(20)
    assert calm[len(calm) * 99 // 100] == 0.0
    assert flooded[len(flooded) * 99 // 100] == 0.0
    assert tokens > 0.93 * 600_000


def test_a_large_call_neither_starves_nor_blocks_for_ever() -> None:
    """Small calls pass a large one while a window remains before its deadline; then it goes next, in time."""
    bench = Bench(tokens_per_minute=1000)
    for index in range(10):
        bench.submit(index * 6.0, tokens=100)
    large = bench.submit(60.0, tokens=900, patience=240.0, user="large")
    passed, went_at, now = 0, None, 60.0
    while now < 300.0 and went_at is None:
        bench.answer(now, tokens=100, user="small", patience=30.0)
        for number in bench.ready(now):
            if number == large:
                went_at = now
            else:
                assert now <= 240.0, "what is taken later is not back in time"
                passed += 1
        now += 1.0
    assert passed > 3
    assert went_at is not None


def test_a_user_at_its_own_limit_blocks_nobody() -> None:
    """Calls of others pass a call that only its user's limit stops."""
    bench = Bench(requests_per_minute=100, per_user=PerUser(key=KeySource(header="x"), requests_per_minute=1))
    bench.submit(0.0, user="a")
    waiting = bench.submit(0.0, user="a")
    others = [bench.submit(0.0, user=f"u{index}") for index in range(20)]
    assert bench.ready(0.0) == others
    assert bench.ready(60.5) == [waiting]


@pytest.mark.parametrize(
    ("fill", "patience", "expected"),
    [(0, 10.0, "deadline"), (0, 70.0, None), (1, 70.0, "deadline"), (1, 130.0, None)],
)
def test_who_cannot_make_it_is_refused_at_once(fill: int, patience: float, expected: str | None) -> None:
    """A deadline before the forecast is refused with the time at which it might have gone; others wait."""
    bench = Bench(tokens_per_minute=1000)
    bench.submit(0.0, tokens=1000)
    for _ in range(fill):
        bench.submit(0.0, tokens=1000)
    answer, _ = bench.answer(1.0, tokens=600, patience=patience)
    if expected is None:
        assert isinstance(answer, Entered)
        assert answer.position == fill
    else:
        assert isinstance(answer, Refused)
        assert answer.reason == expected
        assert answer.retry_at is not None
        assert answer.retry_at > 1.0 + patience


def test_the_line_is_bounded() -> None:
    """Beyond its length nobody enters; with length 0 nobody waits at all."""
    bench = Bench(max_length=2, concurrency=1)
    for _ in range(3):
        bench.submit(0.0)
    answer, _ = bench.answer(0.0)
    assert isinstance(answer, Refused)
    assert answer.reason == "queue_full"
    none = Bench(max_length=0, concurrency=1)
    none.submit(0.0)
    answer, _ = none.answer(0.0)
    assert isinstance(answer, Refused)


def test_who_waits_too_long_is_told() -> None:
    """At its deadline a call leaves the line, and the timer was set for it."""
    bench = Bench(concurrency=1)
    bench.submit(0.0)
    waiting = bench.submit(0.0, patience=5.0)
    assert 0.0 < (bench.line.next_event(0.0) or 0.0) <= 5.0
    assert bench.line.ready(4.9) == []
    (outcome,) = bench.line.ready(5.0)
    assert isinstance(outcome, TimedOut)
    assert (outcome.id, outcome.refusal.reason) == (waiting, "timed_out")
    assert len(bench.line) == 0
    assert bench.line.next_event(5.0) is None


def test_who_waits_for_an_upstream_that_is_removed_is_told() -> None:
    """A policy without the upstream sends the waiting away; the calls in flight end as usual, and its use is kept."""
    bench = Bench(concurrency=1)
    first = bench.submit(0.0)
    waiting = bench.submit(0.0)
    policy = PodPolicy(namespace="t", revision="2")
    bench.admission.configure(policy)
    (outcome,) = bench.line.ready(1.0)
    assert isinstance(outcome, TimedOut)
    assert (outcome.id, outcome.refusal.retry_at) == (waiting, 1.0)
    assert bench.line.next_event(1.0) is None
    upstream = UpstreamPolicy(key=UP, base_url="http://x", limits=Limits(concurrency=1))
    bench.admission.configure(PodPolicy(namespace="t", revision="3", upstreams={UP: upstream}))
    assert isinstance(bench.answer(2.0)[0], Entered)
    bench.admission.settle(bench.open.pop(first), tokens=0, usd_micros=None, now=3.0)
    assert len(bench.ready(3.0)) == 1


def test_newcomers_do_not_jump_the_line() -> None:
    """A call that would fit waits behind one of its class that does not, until that one has been tried."""
    bench = Bench(concurrency=1)
    first = bench.submit(0.0)
    waiting = bench.submit(0.0)
    bench.admission.settle(bench.open.pop(first), tokens=None, usd_micros=None, now=1.0)
    answer, _ = bench.answer(1.0)
    assert isinstance(answer, Entered)
    assert bench.ready(1.0) == [waiting]


def test_demand_of_those_who_wait_or_were_refused_is_reported() -> None:
    """The leader hears of use, of waiting calls and of refused ones, and of the largest that waits."""
    bench = Bench(sole=False, tokens_per_minute=10_000)
    answer, _ = bench.answer(0.0, tokens=300, patience=1.0)
    assert isinstance(answer, Refused)  # the answer to a report may take two seconds
    bench.submit(0.0, tokens=700, patience=30.0)
    demand = bench.admission.demands(0.0)[0]
    assert (demand.used, demand.wanted, demand.least, demand.held) == (0, 1000, 700, 0)
    bench.admission.apply_leases([Lease(limit=demand.limit, amount=1000, ttl_seconds=30.0)], sent_at=0.0)
    assert len(bench.ready(0.1)) == 1
    assert bench.admission.demands(0.1)[0].least == 0


def test_what_no_capacity_could_help_is_no_demand() -> None:
    """A call that is larger than the limit is refused and counted, but takes nothing from those that could go."""
    bench = Bench(sole=False, tokens_per_minute=10_000)
    for _ in range(50):
        answer, _ = bench.answer(0.0, tokens=20_000, patience=30.0)
        assert isinstance(answer, Refused)
        assert answer.reason == "too_large"
    demand = bench.admission.demands(0.0)[0]
    assert (demand.wanted, demand.least) == (0, 0)
    assert bench.admission.gauges(0.0)[0].refused == 50


class _Action:
    SUBMIT, LEAVE, END, TIME = range(4)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(0, 4), st.floats(0.1, 30.0)),
        max_size=120,
    )
)
def test_every_call_gets_exactly_one_answer(actions: list[tuple[int, int, int, float]]) -> None:
    """Admitted, refused, timed out or left: one of them, once; in the end nothing is waiting and nothing in use."""
    bench = Bench(tokens_per_minute=500, concurrency=3)
    now, waiting, answered = 0.0, set[int](), set[int]()

    def drain() -> None:
        for outcome in bench.line.ready(now):
            assert outcome.id in waiting
            waiting.remove(outcome.id)
            answered.add(outcome.id)
            if isinstance(outcome, Ready):
                bench.open[outcome.id] = outcome.reservation

    for action, number, rank, seconds in actions:
        if action == _Action.SUBMIT:
            answer, caller = bench.answer(
                now, patience=seconds, priority=list(Priority)[rank], tokens=number * 7, user=str(number % 3)
            )
            (waiting if isinstance(answer, Entered) else answered).add(caller)
        elif action == _Action.LEAVE and waiting:
            chosen = sorted(waiting)[number % len(waiting)]
            waiting.remove(chosen)
            answered.add(chosen)
            bench.line.leave(chosen)
        elif action == _Action.END and bench.open:
            chosen = sorted(bench.open)[number % len(bench.open)]
            bench.admission.settle(bench.open.pop(chosen), tokens=rank, usd_micros=None, now=now)
        elif action == _Action.TIME:
            now += seconds
        drain()
        assert len(bench.line) == len(waiting)
        event = bench.line.next_event(now)
        assert (event is None) == (not waiting)
    while waiting:
        event = bench.line.next_event(now)
        assert event is not None
        now = max(event, now + 0.25)
        for number in list(bench.open):
            bench.admission.settle(bench.open.pop(number), tokens=0, usd_micros=None, now=now)
        drain()
    assert answered == set(range(1, bench.count + 1))
    meters = bench.admission.account(UP).meters
    assert all(meter.waiting == 0 for meter in meters.values())
    for number in list(bench.open):
        bench.admission.settle(bench.open.pop(number), tokens=0, usd_micros=None, now=now)
    assert meters["", Dimension.CONCURRENCY].used(now) == 0


_steps = st.lists(
    st.tuples(
        st.sampled_from(list(Priority)),
        st.integers(0, 2),
        st.integers(0, 60),
        st.floats(0, 3),
        st.booleans(),
    ),
    max_size=40,
)


@given(_steps, st.integers(1, 3), st.integers(50, 200))
def test_who_walks_in_would_have_been_admitted_and_nobody_else_notices(
    steps: list[tuple[Priority, int, int, float, bool]], concurrency: int, tokens_per_minute: int
) -> None:
    """Calls that try to walk in first fare as those that are submitted at once, whoever waits and whoever ends."""
    lining, walking = (Bench(concurrency=concurrency, tokens_per_minute=tokens_per_minute) for _ in range(2))
    now = 0.0
    for priority, retry, tokens, pause, ends in steps:
        now += pause
        expected, number = lining.answer(now, patience=20.0, priority=priority, retry=retry, tokens=tokens)
        admitted = walking.line.walk_in(UP, Ask(tokens=tokens), priority, retry, now)
        if admitted is not None:
            walking.count += 1
            walking.open[walking.count] = admitted.reservation
            assert isinstance(expected, Admitted)
        else:
            answer, _ = walking.answer(now, patience=20.0, priority=priority, retry=retry, tokens=tokens)
            assert type(answer) is type(expected)
        assert walking.count == number
        if ends and lining.open:
            oldest = min(lining.open)
            assert walking.end(oldest, now) == lining.end(oldest, now)
        assert walking.ready(now) == lining.ready(now)
        for dimension in (Dimension.REQUESTS, Dimension.TOKENS, Dimension.CONCURRENCY):
            meters = [bench.admission.account(UP).meters["", dimension] for bench in (walking, lining)]
            assert meters[0].used(now) == meters[1].used(now)
            assert meters[0].waiting == meters[1].waiting


def test_nobody_walks_in_past_those_who_wait() -> None:
    """While somebody waits, and for classes that are spread, a call is for the line, and nothing is reserved."""
    bench = Bench(concurrency=2)
    assert bench.line.walk_in(UP, Ask(), Priority.BATCH, 0, 0.0) is None
    assert bench.line.walk_in(UP, Ask(), Priority.REALTIME, 3, 0.0) is None
    bench.submit(0.0)
    bench.submit(0.0)
    bench.submit(0.0, priority=Priority.STANDARD)
    assert bench.line.walk_in(UP, Ask(), Priority.CRITICAL, 0, 0.0) is None
    assert bench.admission.account(UP).meters["", Dimension.CONCURRENCY].used(0.0) == 2
