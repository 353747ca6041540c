"""The leader's memory of money: counted once through repeats, restarts and changes of leader."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.alerts import Alert
from sluice_core.api.quotaallocation import Budget, OnExhausted
from sluice_core.budget import LedgerState, Mark, month_of
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, Snapshot
from sluice_core.spend_state import MAX_STATE_BYTES, StateError, decode_states, encode_states
from sluice_core.spending import KEPT_DAYS, TOMBSTONE_SECONDS, Spending, quota_of
from sluice_core.sync import Spend

DAY = 86_400.0
NOON = datetime(2026, 5, 5, 12, tzinfo=UTC).timestamp()
TODAY = "2026-05-05"
QUOTA = "team/openai"
CHAT = "team/openai/chat"


def quota(**budget: object) -> QuotaPolicy:
    fields = {"daily_usd": "10", "monthly_usd": "100", **budget}
    chat = AllocationPolicy(name="chat", budget=Budget(**fields))  # type: ignore[arg-type]
    return QuotaPolicy(key=QUOTA, upstream="team/openai", budget=Budget(monthly_usd="1000"), allocations=(chat,))


def configured(policy: QuotaPolicy, *, known: bool = True) -> Spending:
    spending = Spending(known=known)
    spending.configure([policy], [Snapshot(namespace="team", quotas=(policy,)), Snapshot(namespace="other")])
    return spending


def take_alerts(spending: Spending, now: float) -> list[Alert]:
    """Decide, store and tell at once what is due."""
    spending.decide_alerts(now)
    spending.alerts_stored(spending.unstored_alerts())
    told = spending.untold()
    for each in told:
        spending.told(each)
    return [each.alert for each in told]


def spent(usd: float, budget: str = CHAT, window: str = TODAY) -> Spend:
    return Spend(budget=budget, window=window, usd_micros=round(usd * 1_000_000))


def successor(spending: Spending, policy: QuotaPolicy, now: float = NOON) -> Spending:
    """A new leader that reads what the old one stored."""
    fresh = configured(policy, known=False)
    fresh.restore(decode_states(encode_states(spending.states())), now)
    return fresh


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.sampled_from(["", "", "store", "fail"])), max_size=60)
)
def test_money_is_counted_once_through_any_changes_of_leader(steps: list[tuple[int, int, str]]) -> None:
    """Totals of living pods reach the next leader whatever the last one had stored."""
    policy = quota()
    spending, totals = configured(policy), [0] * 5
    stored = encode_states(spending.states())
    for pod, more, then in steps:
        totals[pod] += more
        for _ in range(2):  # reports are repeated
            spending.report("team", f"pod{pod}", (Spend(budget=CHAT, window=TODAY, usd_micros=totals[pod]),), NOON)
        if then == "store":
            stored = encode_states(spending.states())
        elif then == "fail":
            spending = configured(policy, known=False)
            spending.restore(decode_states(stored), NOON)
    for pod, total in enumerate(totals):
        spending.report("team", f"pod{pod}", (Spend(budget=CHAT, window=TODAY, usd_micros=total),), NOON)

    assert spending.assess(QUOTA, NOON)[CHAT].spent_today_usd_micros == sum(totals)


def test_a_new_leader_says_nothing_of_budgets_before_it_knows_them() -> None:
    """None means that sidecars keep what they know; what they report meanwhile is counted once it knows."""
    policy = quota()
    first = configured(policy)
    first.report("team", "a", (spent(9),), NOON)
    second = configured(policy, known=False)
    second.report("team", "a", (spent(9.5),), NOON)
    second.report("team", "b", (spent(1),), NOON)

    assert second.exhausted("team", NOON) is None
    assert second.assess(QUOTA, NOON) == {}
    assert take_alerts(second, NOON) == []

    second.restore(decode_states(encode_states(first.states())), NOON)

    assert second.assess(QUOTA, NOON)[CHAT].spent_today_usd_micros == 10_500_000
    exhausted = second.exhausted("team", NOON)
    assert exhausted is not None
    assert [each.budget for each in exhausted] == [CHAT]


def test_a_spent_budget_comes_back_with_the_day() -> None:
    """In its own zone: the day of Berlin ends two hours before that of UTC in summer."""
    policy = quota(time_zone="Europe/Berlin", on_exhausted=OnExhausted.DEGRADE)
    spending = configured(policy)
    spending.report("team", "a", (spent(10),), NOON)
    (found,) = spending.exhausted("team", NOON) or ()

    assert found.until == datetime(2026, 5, 5, 22, tzinfo=UTC).timestamp()
    assert spending.exhausted("team", found.until - 2.0) == (found,)
    assert spending.exhausted("team", found.until) == ()
    assert spending.exhausted("other", NOON) == ()


def test_a_month_that_is_spent_outlasts_the_day() -> None:
    """The later of both ends counts."""
    policy = quota()
    spending = configured(policy)
    for day in range(2, 6):
        spending.report("team", "a", (spent(30, window=f"2026-05-0{day}"),), NOON)

    (found,) = spending.exhausted("team", NOON) or ()

    assert found.until == month_of(NOON, "UTC").ends_at


@pytest.mark.parametrize(
    ("namespace", "spend"),
    [
        ("team", spent(5, budget="team/openai/none")),
        ("team", spent(5, budget="elsewhere/openai")),
        ("other", spent(5)),
        ("team", spent(5, window="2026-05-07")),  # no clock is a day ahead
        ("team", spent(5, window="2026-04-01")),  # closed long ago
        ("team", spent(5, window="tomorrow")),
        ("team", spent(-5)),
    ],
)
def test_what_a_pod_may_not_charge_is_left_out(namespace: str, spend: Spend) -> None:
    """A pod that reports nonsense, or the budget of others, changes nothing and stores nothing."""
    spending = configured(quota())
    spending.report(namespace, "a", (spend,), NOON)

    assert spending.states() == {} or not any(state.days for state in spending.states().values())
    assert spending.assess(QUOTA, NOON)[CHAT].spent_month_usd_micros == 0
    assert spending.take_changes() == frozenset()


def test_alerts_come_once_across_leaders() -> None:
    """Each mark once in each window, the highest that was passed, and again in the next window."""
    policy = quota(alert_percents=(50, 90, 100))
    spending, told = configured(policy), []
    for usd in (4, 5, 6, 9.5, 9.6, 12):
        spending.report("team", "a", (spent(usd),), NOON)
        told += [(each.window, each.percent) for each in take_alerts(spending, NOON)]
        assert take_alerts(spending, NOON) == []
        spending = successor(spending, policy)
    assert told == [(TODAY, 50), (TODAY, 90), (TODAY, 100)]

    spending.report("team", "a", (spent(12), spent(6, window="2026-05-06")), NOON + DAY)
    assert [each.window for each in take_alerts(spending, NOON + DAY)] == ["2026-05-06"]


def test_only_what_changed_is_to_be_stored() -> None:
    """A repeated report is no change; what could not be stored is still to be."""
    spending = configured(quota())
    spending.report("team", "a", (spent(1),), NOON)
    changed = spending.take_changes()
    assert changed == {QUOTA}
    spending.report("team", "a", (spent(1),), NOON)
    assert spending.take_changes() == frozenset()
    spending.put_back(changed)
    assert spending.take_changes() == {QUOTA}


def test_processes_that_ended_are_forgotten_after_a_while() -> None:
    """A late repetition of the last report is not charged again; later its mark takes no room any more."""
    spending = configured(quota())
    spending.report("team", "a", (spent(3),), NOON)
    spending.ended("a", NOON)
    spending.sweep(NOON + TOMBSTONE_SECONDS)
    spending.report("team", "a", (spent(3),), NOON + TOMBSTONE_SECONDS)
    assert spending.assess(QUOTA, NOON)[CHAT].spent_today_usd_micros == 3_000_000

    spending.sweep(NOON + TOMBSTONE_SECONDS + 1.0)
    assert spending.states()[QUOTA].marks == ()
    assert spending.assess(QUOTA, NOON)[CHAT].spent_today_usd_micros == 3_000_000


def test_a_quota_that_is_made_again_has_spent_what_it_had() -> None:
    """A resource that is deleted and applied again gives no fresh budget; one gone for a month is forgotten."""
    policy = quota()
    spending = configured(policy)
    spending.report("team", "a", (spent(3),), NOON)
    spending.configure([], [])
    spending.sweep(NOON + DAY)
    spending.configure([policy], [])
    assert spending.assess(QUOTA, NOON)[CHAT].spent_today_usd_micros == 3_000_000

    spending.configure([], [])
    spending.sweep(NOON + (KEPT_DAYS + 2) * DAY)
    assert spending.states() == {}


def a_large_state(pods: int) -> LedgerState:
    draw = random.Random(1)
    days = ("2026-05-03", "2026-05-04", TODAY)
    marks = tuple(
        Mark(instance=f"{draw.getrandbits(64):016x}", budget=QUOTA, day=TODAY, usd_micros=1) for _ in range(pods)
    )
    marks = tuple(
        Mark(instance=each.instance, budget=budget, day=day, usd_micros=draw.randrange(50_000_000))
        for each in marks
        for budget in (QUOTA, CHAT)
        for day in days
    )
    hours = {int(NOON // 3600) - hour: draw.randrange(10**9) for hour in range(170)}
    return LedgerState(
        days={name: dict.fromkeys(days, 10**9) for name in (QUOTA, CHAT)},
        hours=dict.fromkeys((QUOTA, CHAT), hours),
        marks=marks,
        alerts={CHAT: {TODAY: 90}},
    )


def test_ten_thousand_pods_fit_into_one_config_map() -> None:
    """Each with two budgets on three days: whole, and the same when read back."""
    state = a_large_state(10_000)
    stored = encode_states({QUOTA: state})

    assert len(stored) < MAX_STATE_BYTES
    again = decode_states(stored)[QUOTA]
    assert set(again.marks) == set(state.marks)
    assert (again.days, again.hours, again.alerts) == (state.days, state.hours, state.alerts)


def test_a_state_that_is_too_large_keeps_what_was_spent() -> None:
    """The baseline goes first, then the marks of those that spent least; days and alerts stay."""
    state = a_large_state(1000)
    stored = encode_states({QUOTA: state}, limit_bytes=20_000)
    again = decode_states(stored)[QUOTA]

    assert len(stored) <= 20_000
    assert (again.days, again.alerts) == (state.days, state.alerts)
    assert again.hours == {}
    least_kept = min(mark.usd_micros for mark in again.marks)
    assert sum(mark.usd_micros > least_kept for mark in state.marks) < len(again.marks)


@pytest.mark.parametrize("junk", [b"", b"junk", encode_states({})[:-2]])
def test_what_is_no_state_is_told_so(junk: bytes) -> None:
    """A cut or foreign content is an error, never half a state."""
    with pytest.raises(StateError):
        decode_states(junk)


def test_a_budget_belongs_to_its_quota() -> None:
    """The whole's and an allocation's."""
    assert (quota_of(QUOTA), quota_of(CHAT)) == (QUOTA, QUOTA)
