"""How the script divides one account: shares, lending, headroom, and what it makes of old and last reports."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from sluice_core.api.quotaallocation import StoreType
from sluice_core.api.upstream import Limits
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.limits.redis_slices import SliceAnswerError, SliceCall, slice_answer, slice_call
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, StorePolicy, UpstreamPolicy

LEASE_MS = 30_000
ENDS_MS = 93_000
STOPS_MS = 62_000
RUN = "a" * 40

_accounts = itertools.count()


class Limit(NamedTuple):
    """What a pod reports of one limit."""

    wanted: int = 0
    held: int = 0
    used: int = 0
    safe: int = 0
    least: int = 0
    capacity: int = 1000
    reserve: int = 0
    part: int = 0
    whole: int = 1
    returned: int = 0
    fading: tuple[int, ...] = ()
    certain: tuple[int, ...] = ()
    stops: int = 62_000


class Account:
    """An account that has learned that nothing is out, under a clock that the test sets."""

    def __init__(self, timed: Any, *, settled: bool = True) -> None:
        self.name = f"sluice:{{divide-{next(_accounts)}}}"
        self.now = 1_000_000
        self.run = RUN
        self.interval = 0
        self.short: list[int] = []
        self._timed = timed
        self._sequences = itertools.count(1)
        if settled:
            known = {"run": RUN, "epoch": "1", "last": self.now, "settled": 1}
            timed.client.hset(self.name, mapping=known)

    def report(
        self,
        pod: str,
        limits: Mapping[str, Limit],
        allocation: str = "chat",
        percent: int = 100,
        weight: int = 4,
        sequence: int | None = None,
        stopping: bool = False,
    ) -> list[int]:
        """Report and return the slices."""
        keys = [self.name]
        arguments: list[str | int] = [
            self.run, pod, sequence or next(self._sequences), allocation, percent, weight, LEASE_MS, int(stopping)
        ]  # fmt: skip
        for name, each in limits.items():
            keys += [f"{self.name}:{name}:{part}" for part in ("sums", "pods", "order")]
            arguments += [each.capacity, LEASE_MS + each.stops + 1000, each.stops, each.reserve, each.part]
            arguments += [each.held, each.used, each.wanted, each.safe, each.least, each.whole, each.returned]
            arguments += [" ".join(map(str, each.fading)), " ".join(map(str, each.certain))]
        _, _, _, self.interval, *answer = self._timed.call(keys, arguments, self.now)
        self.short = answer[len(limits) :]
        return answer[: len(limits)]

    def one(self, pod: str, wanted: int, held: int = 0, **fields: Any) -> int:
        """Report on a single limit and return the slice."""
        place = {name: fields.pop(name) for name in list(fields) if name in Limit._fields}
        (amount,) = self.report(pod, {"tokens:": Limit(wanted=wanted, held=held, **place)}, **fields)
        return amount


@pytest.fixture
def account(timed: Any) -> Account:
    """A settled account."""
    return Account(timed)


def rounds(account: Account, wants: Mapping[str, tuple[str, int, int, int]], count: int = 4) -> dict[str, int]:
    """Let every pod (allocation, percent, weight, wanted) report in turn; return the slices of the last round."""
    held = dict.fromkeys(wants, 0)
    for _ in range(count):
        account.now += 1000
        for pod, (allocation, percent, weight, wanted) in wants.items():
            held[pod] = account.one(pod, wanted, held[pod], allocation=allocation, percent=percent, weight=weight)
    return held


@pytest.mark.parametrize(
    ("wants", "expected"),
    [
        ({"a": ("chat", 60, 4, 500), "b": ("batch", 40, 4, 300)}, {"a": 500, "b": 300}),
        ({"a": ("chat", 60, 4, 5000), "b": ("batch", 40, 4, 5000)}, {"a": 600, "b": 400}),
        ({"a": ("chat", 60, 4, 100), "b": ("batch", 40, 4, 5000)}, {"a": 100, "b": 900}),
        ({"a": ("chat", 50, 8, 5000), "b": ("batch", 25, 2, 5000), "c": ("idle", 25, 4, 0)}, {"a": 700, "b": 300}),
        ({"a": ("chat", 60, 4, 900), "b": ("chat", 60, 4, 300)}, {"a": 750, "b": 250}),
        ({"a": ("chat", 70, 8, 400), "b": ("batch", 30, 2, 5000)}, {"a": 450, "b": 550}),
        ({"a": ("chat", 70, 8, 690), "b": ("batch", 30, 2, 5000)}, {"a": 700, "b": 300}),
    ],
    ids=[
        "enough for all",
        "each its share",
        "idle share is lent",
        "lent by weight",
        "in proportion within one",
        "realtime keeps room to grow",
        "but no more than was promised",
    ],
)
def test_the_account_is_divided_by_shares(
    account: Account, wants: dict[str, tuple[str, int, int, int]], expected: dict[str, int]
) -> None:
    """Demand within the share is met, idle share is lent by weight, nothing that is wanted is left idle."""
    granted = rounds(account, wants)
    for pod, amount in expected.items():
        assert granted[pod] == pytest.approx(amount, rel=0.01) or granted[pod] >= amount == wants[pod][3]
    assert sum(granted.values()) <= 1000


def test_a_slice_shrinks_before_another_grows(account: Account) -> None:
    """Who wakes up gets of its share what nobody holds, and the rest once it was given back."""
    account.one("greedy", 5000, allocation="batch", percent=40)
    greedy = account.one("greedy", 5000, 900, used=700, allocation="batch", percent=40)
    assert greedy == 1000
    first = account.one("woken", 5000, allocation="chat", percent=60)
    assert first == 0
    kept = account.one("greedy", 5000, 700, used=700, allocation="batch", percent=40)
    assert kept == 400
    assert account.one("woken", 5000, first, allocation="chat", percent=60) == 300, "700 have yet to leave the window"


def test_headroom_lets_an_idle_pod_begin(account: Account) -> None:
    """Without any demand every pod holds something, and together not all."""
    granted = rounds(account, {"a": ("chat", 60, 4, 0), "b": ("batch", 40, 4, 0)})
    assert granted["a"] >= 250
    assert granted["b"] >= 150
    assert sum(granted.values()) <= 1000


def test_what_is_too_little_for_all_goes_round(account: Account) -> None:
    """Three requests among ten pods: some get one and the others none, and not always the same ones."""
    got = set()
    for _ in range(40):
        account.now += 95_000
        amounts = [0] * 10
        for _ in range(3):
            amounts = [account.one(f"pod-{pod}", 5, held, capacity=3) for pod, held in enumerate(amounts)]
        assert sum(amounts) <= 3
        assert set(amounts) <= {0, 1}
        got.update(pod for pod, amount in enumerate(amounts) if amount)
    assert len(got) == 10


def test_slices_are_all_or_nothing(account: Account) -> None:
    """Without a token for one more call no further request is taken, so that others can use it."""
    account.report("first", {"tokens:": Limit(wanted=900, capacity=900), "requests:": Limit(wanted=10)})
    blocked = {"tokens:": Limit(wanted=500, least=400, capacity=900), "requests:": Limit(wanted=50)}
    assert account.report("second", blocked)[1] == 0
    of_a_model = {"tokens:gpt*": Limit(wanted=500, least=400, capacity=0, whole=0), "requests:": Limit(wanted=50)}
    assert account.report("third", of_a_model)[1] > 0, "other models may be called"


def test_an_old_report_changes_nothing(account: Account) -> None:
    """A call that lay in a paused server is executed after a newer one, and is not believed."""
    account.one("a", 800, sequence=7)
    assert account.one("a", 0, 0, sequence=6) == -1
    assert account.one("b", 5000, allocation="batch", percent=0) <= 200


def test_a_last_report_frees_the_slice_and_keeps_the_use(account: Account) -> None:
    """What was used leaves the window first; the rest is there at once."""
    account.one("a", 800)
    account.one("a", 0, 800, used=300, stopping=True)
    assert account.one("b", 5000) == 700
    account.now += STOPS_MS + 1
    assert account.one("b", 5000, 700) == 1000


def test_what_a_stopped_pod_used_is_free_in_steps(account: Account) -> None:
    """Three quarters are there after a quarter of the window, and so on; a report that is repeated changes nothing."""
    account.one("a", 1000)
    last = {"held": 800, "used": 800, "fading": (600, 400, 100), "stopping": True, "sequence": 100}
    account.one("a", 0, **last)
    account.one("a", 0, **last)
    got, held = [], 0
    for part in range(1, 5):
        account.now = 1_000_000 + STOPS_MS * part // 4
        held = account.one("b", 5000, held)
        account.now += 1_000  # a step comes as late as the end does
        held = account.one("b", 5000, held)
        got.append(held)
    assert got == [400, 600, 900, 1000]


def test_what_a_killed_pod_used_for_certain_is_free_as_it_leaves(account: Account) -> None:
    """Not before its lease and its part of the window are over; what it may have used since counts to the end."""
    account.one("dead", 1000, 800, used=700, safe=20, certain=(600, 600, 500, 500, 400, 300))  # of ten seconds each
    got, held = {}, 0
    for seconds in (31, 42, 53, 62, 64, 92):
        account.now = 1_000_000 + seconds * 1000
        held = account.one("b", 5000, held)
        got[seconds] = held
    assert got == {31: 0, 42: 0, 53: 100, 62: 100, 64: 400, 92: 400}
    account.now = 1_000_000 + ENDS_MS
    assert account.one("b", 5000, held) == 1000


def test_a_pod_hears_that_others_want_more(account: Account) -> None:
    """Then it gives back what it does not want, and calls sooner the more it holds."""
    account.one("a", 900)
    assert (account.short, account.interval) == ([0], 1000)
    account.one("b", 900)
    assert (account.short, account.interval) == ([1], 1000)
    account.one("a", 900, 900)
    assert (account.short, account.interval) == ([1], 500)


def test_what_is_given_back_is_there_in_the_same_round(account: Account) -> None:
    """A report that holds less than was granted frees the difference, once: repeated or lost answers free no more."""
    account.one("a", 900)
    account.one("b", 1000)
    account.one("a", 100, 100, sequence=50)
    assert account.one("b", 1000, 100) == 900
    assert account.one("a", 100, 0, sequence=50) == -1, "the same report again"
    assert account.one("c", 1000) == 0
    assert account.one("a", 100, 100) <= 100


def test_what_was_given_back_with_the_first_report_is_learned(timed: Any) -> None:
    """A store that knows nothing may give out again what a pod gives back before it has been heard of."""
    account = Account(timed, settled=False)
    kept = account.one("a", 100, 100, returned=300)
    assert kept + account.one("b", 5000, 0) == 400


@pytest.mark.parametrize(("stops", "most"), [(STOPS_MS, 1000), (87_568_000, 7)], ids=["minute", "day"])
def test_spare_slices_of_a_day_are_small(account: Account, stops: int, most: int) -> None:
    """What is lent ahead of demand would be out for a day if its pod were killed, so that it is two leases' worth."""
    spare = account.one("a", 100, capacity=10_000, stops=stops) - 100
    assert spare == most if stops != STOPS_MS else spare >= most
    account.now += LEASE_MS + 1  # and was killed
    assert account.one("b", 10_000, capacity=10_000, stops=stops) == 10_000 - 100 - spare


def test_a_killed_pod_takes_no_more_of_a_day_than_it_used(timed: Any) -> None:
    """What was lent to a busy pod and not used is there again within two minutes, not after 24 hours."""
    limits = Limits(requests_per_day=10_000, requests_per_minute=0, tokens_per_minute=0, concurrency=0)
    quota = QuotaPolicy(
        key="team/quota",
        upstream="team/openai",
        store=StorePolicy(type=StoreType.REDIS, url="redis://x", name=f"day-{next(_accounts)}"),
        allocations=(AllocationPolicy(name="chat", share_percent=100),),
    )
    upstream = UpstreamPolicy(key="team/openai", base_url="http://x", limits=limits)
    policy = PodPolicy(
        namespace="team",
        revision="1",
        upstreams={"team/openai": upstream},
        quotas={"team/openai": (quota, quota.allocations[0])},
    )
    pods = {name: Admission() for name in ("killed", "other")}
    for admission in pods.values():
        admission.configure(policy)
    sequences = itertools.count(1)

    def take(name: str, now: float) -> int:
        demands = pods[name].demands_of("team/openai", now)
        call = slice_call(
            pods[name].account("team/openai"), demands, server=RUN, pod=name, sequence=next(sequences), stopping=False
        )
        leases = slice_answer(call, timed.call(call.keys, call.arguments, round(now * 1000))).leases
        pods[name].apply_leases(leases, sent_at=now)
        return leases[0].amount

    take("killed", 1000.0)
    timed.client.hset(f"sluice:{{{quota.store.name}}}", "settled", 1)
    used = 0
    for second in range(1001, 1601):
        take("killed", second)
        for _ in range(2):
            used += isinstance(pods["killed"].reserve("team/openai", Ask(), second), Admitted)
    for _ in range(12_000):
        pods["other"].deny("team/openai", Ask(), 1720.0)
    assert used == 1200
    assert 0 <= 10_000 - used - take("other", 1720.0) <= 50


def test_a_great_many_pods_call_less_often(timed: Any, account: Account) -> None:
    """One server is not to be called more than about two thousand times a second."""
    account.one("a", 10)
    with timed.client.pipeline() as pipe:
        for number in range(3000):
            pipe.hset(f"{account.name}:tokens::pods", f"x{number}", f"1 0 0 0 {account.now + ENDS_MS} 1 chat")
            pipe.zadd(f"{account.name}:tokens::order", {f"x{number}": account.now + LEASE_MS})
        pipe.hset(f"{account.name}:tokens::sums", "count", 3001)
        pipe.execute()
    account.one("a", 10, 10)
    assert account.interval == 1501


def test_a_silent_pod_is_forgotten_after_lease_and_window(account: Account) -> None:
    """Its slice is nobody's until then, and everybody's after."""
    slice_of_dead = account.one("dead", 800)
    account.now += ENDS_MS - 1
    assert account.one("b", 5000) == 1000 - slice_of_dead
    account.now += 1
    assert account.one("b", 5000, 100) == 1000


def test_what_is_kept_for_pods_without_a_slice_is_not_given_out(account: Account) -> None:
    """Five percent stay, less what the pods that are known may use without a slice."""
    assert account.one("a", 5000, reserve=50, part=50, safe=20) == 970


def test_who_knows_nothing_gives_out_what_it_is_told_of(timed: Any) -> None:
    """A store without memory lets pods keep what they hold, among themselves, until nothing unknown can be out."""
    account = Account(timed, settled=False)
    assert account.one("a", 5000, 300) == 300
    assert account.one("b", 5000, 0) == 0
    account.now += ENDS_MS
    assert account.one("b", 5000, 0) > 0


def test_another_server_is_not_believed(account: Account) -> None:
    """With another run id the data may be old: what it says of holdings is dropped, and learned anew."""
    account.one("a", 800)
    account.run = "b" * 40
    assert account.one("b", 5000, 100) == 100


@pytest.mark.parametrize("part", ["", ":tokens::sums", ":tokens::pods", ":tokens::order"])
def test_a_part_that_was_evicted_is_noticed(timed: Any, account: Account, part: str) -> None:
    """A server short of memory drops single keys; what is left is not believed."""
    account.one("a", 800)
    timed.client.delete(account.name + part)
    timed.client.hdel(account.name, "settled")
    assert account.one("b", 5000, 30) == 30


@pytest.mark.parametrize(("step_ms", "forgets"), [(-4000, False), (-60_000, True)], ids=["correction", "another clock"])
def test_a_clock_that_steps_back_frees_nothing(account: Account, step_ms: int, forgets: bool) -> None:
    """A small step is waited out; after a large one the store begins anew."""
    slice_of_other = account.one("a", 800)
    account.now += step_ms
    assert account.one("b", 5000) == (0 if forgets else 1000 - slice_of_other)


@pytest.mark.parametrize(
    "answer", [None, [7, 2, 3], [7, 2, 3, 4, 5, "6"], [7, 2, 3, 4, 5, 6, 7], [6, 2, 3, 4, 5, 0], b"OK"]
)
def test_an_answer_that_is_none_is_refused(answer: object) -> None:
    """Nothing is made of an answer of another shape."""
    with pytest.raises(SliceAnswerError):
        slice_answer(SliceCall(keys=("k",), arguments=(), limits=("a|b|tokens|",), sequence=7), answer)
