"""Admission: all limits together or none, settled exactly, state kept across policies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.base import KeySource
from sluice_core.api.degradation import BudgetStep, Level
from sluice_core.api.quotaallocation import Budget, Mode, OnExhausted, PerUser, UserClass
from sluice_core.api.upstream import Limits, ModelLimits
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask, Refused, Reservation, Wait
from sluice_core.limits.keys import Dimension, Layer, LimitKey, parse
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy
from sluice_core.sync import Exhausted, Lease, SpentShare

UP = "team/openai"


def limits(**figures: int) -> Limits:
    """Limits with 0, no limit, where none is given, as in a compiled policy."""
    none = {"requests_per_minute": 0, "tokens_per_minute": 0, "requests_per_day": 0, "concurrency": 0}
    return Limits(**(none | figures))


def policy(
    whole: Limits,
    *,
    model_limits: tuple[ModelLimits, ...] = (),
    budget: Budget | None = None,
    **allocation: Any,
) -> PodPolicy:
    """The policy of a pod of allocation `chat`."""
    chosen = AllocationPolicy(**({"name": "chat", "share_percent": 60} | allocation))
    quota = QuotaPolicy(key="team/quota", upstream=UP, allocations=(chosen,), budget=budget)
    upstream = UpstreamPolicy(key=UP, base_url="http://x", limits=whole, model_limits=model_limits)
    return PodPolicy(namespace="team", revision="1", upstreams={UP: upstream}, quotas={UP: (quota, chosen)})


def sole(pod_policy: PodPolicy) -> Admission:
    """Admission of the only pod."""
    admission = Admission(sole=True)
    admission.configure(pod_policy)
    return admission


def admit(admission: Admission, now: float = 0.0, **ask: Any) -> Reservation:
    """Reserve what must be admitted."""
    answer = admission.reserve(UP, Ask(**ask), now)
    assert isinstance(answer, Admitted), answer
    return answer.reservation


def used(admission: Admission, dimension: Dimension, now: float, model: str = "") -> int:
    """What is in use in one dimension."""
    return admission.account(UP).meters[model, dimension].used(now)


PER_USER = PerUser(
    key=KeySource(header="x-user-id"),
    requests_per_minute=2,
    tokens_per_minute=1000,
    class_header="x-class",
    classes=(UserClass(value="paid", requests_per_minute=5),),
)


@pytest.mark.parametrize(
    ("whole", "per_user", "ask", "layer", "dimension"),
    [
        (limits(requests_per_minute=3), None, {}, Layer.ALLOCATION, Dimension.REQUESTS),
        (limits(tokens_per_minute=350), None, {}, Layer.ALLOCATION, Dimension.TOKENS),
        (limits(requests_per_day=3), None, {}, Layer.ALLOCATION, Dimension.REQUESTS_DAY),
        (limits(concurrency=3), None, {}, Layer.ALLOCATION, Dimension.CONCURRENCY),
        (limits(), PER_USER, {"user": "u"}, Layer.USER, Dimension.REQUESTS),
        (limits(), PER_USER, {"user": "u", "user_class": "free"}, Layer.USER, Dimension.REQUESTS),
    ],
)
def test_each_dimension_refuses_alone_and_takes_nothing_elsewhere(
    whole: Limits, per_user: PerUser | None, ask: dict[str, Any], layer: Layer, dimension: Dimension
) -> None:
    """A call that one limit stops leaves all others as they were, and the answer names that limit."""
    admission = sole(policy(whole, per_user=per_user))
    admitted = 0
    while isinstance(answer := admission.reserve(UP, Ask(tokens=100, **ask), 0.0), Admitted):
        admitted += 1
        assert admitted < 10
    assert isinstance(answer, Wait)
    assert (answer.obstacle.layer, answer.obstacle.dimension) == (layer, dimension)
    assert used(admission, Dimension.REQUESTS, 0.0) == admitted
    assert used(admission, Dimension.TOKENS, 0.0) == admitted * 100
    assert admitted == (2 if layer is Layer.USER else 3)


def test_classes_of_users_have_their_own_limits() -> None:
    """A paid user gets its class's requests, and a user is not held to another user's use."""
    admission = sole(policy(limits(), per_user=PER_USER))
    for _ in range(5):
        admit(admission, user="rich", user_class="paid")
    assert isinstance(admission.reserve(UP, Ask(user="rich", user_class="paid"), 0.0), Wait)
    admit(admission, user="other")
    admit(admission)  # a call that names no user has no user's limit


def test_a_user_who_is_active_is_never_forgotten() -> None:
    """When the table of users is full, newcomers share one allowance instead of pushing an active user out."""
    admission = Admission(sole=True, max_users=2)
    admission.configure(policy(limits(), per_user=PER_USER))
    for user in ("a", "a", "b", "b", "c", "d"):
        admit(admission, user=user)
    for user in ("a", "b", "c", "d", "e"):
        assert isinstance(admission.reserve(UP, Ask(user=user), 1.0), Wait), user
    for user in ("e", "e"):
        admit(admission, user=user, now=100.0)  # all are idle: there is room again
    assert len(admission.account(UP).users) <= 3


def test_waiting_tells_the_true_time() -> None:
    """At the time that is named the call is admitted, and not before."""
    admission = sole(policy(limits(tokens_per_minute=1000)))
    admit(admission, now=10.0, tokens=600)
    admit(admission, now=20.0, tokens=400)
    answer = admission.reserve(UP, Ask(tokens=500), 30.0)
    assert isinstance(answer, Wait)
    assert 70.0 <= answer.earliest <= 70.25
    assert isinstance(admission.reserve(UP, Ask(tokens=500), answer.earliest - 0.01), Wait)
    admit(admission, now=answer.earliest, tokens=500)


def test_what_never_fits_is_refused() -> None:
    """A call larger than the limit itself is told so, without a time."""
    admission = sole(policy(limits(tokens_per_minute=1000)))
    answer = admission.reserve(UP, Ask(tokens=1001), 0.0)
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.retry_at) == ("too_large", None)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 700), st.booleans()), max_size=20))
def test_settling_and_releasing_are_exact_and_happen_once(calls: list[tuple[int, int, bool]]) -> None:
    """After all calls ended, exactly what they used is counted, whatever was repeated."""
    admission = sole(policy(limits(tokens_per_minute=1_000_000, concurrency=100)))
    expected_tokens = expected_requests = 0
    for reserved, real, never_left in calls:
        reservation = admit(admission, tokens=reserved)
        if never_left:
            admission.release(reservation, 1.0)
        else:
            admission.settle(reservation, tokens=real, usd_micros=None, now=1.0)
            expected_tokens += real
            expected_requests += 1
        admission.release(reservation, 2.0)
        admission.settle(reservation, tokens=9999, usd_micros=None, now=2.0)
    assert used(admission, Dimension.TOKENS, 3.0) == expected_tokens
    assert used(admission, Dimension.REQUESTS, 3.0) == expected_requests
    assert used(admission, Dimension.CONCURRENCY, 3.0) == 0


def test_the_account_pays_the_floor_and_the_user_what_it_used() -> None:
    """What the upstream charges for `max_tokens` is not given back to the account, but the user pays real use only."""
    admission = sole(policy(limits(tokens_per_minute=10_000), per_user=PER_USER))
    reservation = admit(admission, tokens=900, floor_tokens=800, user="u")
    admission.settle(reservation, tokens=100, usd_micros=None, now=1.0)
    assert used(admission, Dimension.TOKENS, 1.0) == 800
    admit(admission, tokens=900, user="u", now=1.0)


def test_what_uses_no_tokens_waits_for_none() -> None:
    """Debts of other calls hold up whoever wants tokens, and neither an upload nor a list of models."""
    admission = sole(policy(limits(tokens_per_minute=100), per_user=PER_USER))
    admission.settle(admit(admission, tokens=50, user="u"), tokens=5000, usd_micros=None, now=0.0)
    assert isinstance(admission.reserve(UP, Ask(tokens=1, user="v"), 1.0), Wait)
    assert admission.check(UP, Ask(), 1.0) is None
    assert admission.forecast(UP, Ask(), Ask(requests=0), 1.0) == 1.0
    admit(admission, 1.0)
    admit(admission, 1.0, user="u")


def test_a_call_that_goes_on_is_charged_as_it_goes_and_keeps_its_slot() -> None:
    """A conversation of an hour holds its slot as long as answers come, and what they use counts when they come."""
    admission = sole(policy(limits(requests_per_minute=2, tokens_per_minute=1000, concurrency=1)))
    talk = admit(admission, 0.0, tokens=1)
    for now in range(300, 3600, 300):
        assert admission.go_on(talk, float(now)) is None
        admission.charge(talk, tokens=now, usd_micros=0, now=float(now))
        assert used(admission, Dimension.TOKENS, float(now)) == (300 if now > 300 else 299)
        assert used(admission, Dimension.CONCURRENCY, float(now)) == 1
    assert admission.go_on(talk, 3301.0) is None
    assert isinstance(admission.go_on(talk, 3302.0), Wait)
    admission.settle(talk, tokens=None, usd_micros=None, now=3303.0)
    assert used(admission, Dimension.CONCURRENCY, 3303.0) == 0
    assert used(admission, Dimension.TOKENS, 3303.0) == 300


def test_models_that_match_a_pattern_share_its_limit_and_others_do_not() -> None:
    """The most specific pattern applies, on top of the whole."""
    rows = (
        ModelLimits(model="gpt-4*", tokens_per_minute=100, requests_per_minute=0, requests_per_day=0, concurrency=0),
        ModelLimits(model="gpt-4.1", tokens_per_minute=300, requests_per_minute=0, requests_per_day=0, concurrency=0),
    )
    admission = sole(policy(limits(tokens_per_minute=1000), model_limits=rows))
    admit(admission, model="gpt-4o", tokens=60)
    answer = admission.reserve(UP, Ask(model="gpt-4-turbo", tokens=60), 0.0)
    assert isinstance(answer, Wait)
    assert answer.obstacle.layer is Layer.MODEL
    admit(admission, model="gpt-4.1", tokens=300)
    admit(admission, model="o3", tokens=640)
    assert isinstance(admission.reserve(UP, Ask(model="o3", tokens=1), 0.0), Wait)


def test_shadow_refuses_nothing_and_says_what_it_would_refuse() -> None:
    """In Shadow mode every call is admitted and counted, and those over a limit are marked."""
    admission = sole(policy(limits(requests_per_minute=1), mode=Mode.SHADOW))
    first, second = admission.reserve(UP, Ask(), 0.0), admission.reserve(UP, Ask(), 0.0)
    assert isinstance(first, Admitted)
    assert first.would_refuse is None
    assert isinstance(second, Admitted)
    assert second.would_refuse is not None
    assert second.would_refuse.dimension is Dimension.REQUESTS
    assert admission.gauges(0.0)[0].refused == 1
    assert used(admission, Dimension.REQUESTS, 0.0) == 2


def test_refusals_are_those_of_the_last_minute() -> None:
    """What is shown as refused is forgotten after a minute."""
    admission = sole(policy(limits(requests_per_minute=1)))
    for now, refused in ((0.0, 1), (30.0, 2)):
        admission.deny(UP, Ask(), now)
        assert admission.gauges(now)[0].refused == refused
    assert [admission.gauges(now)[0].refused for now in (62.0, 92.0)] == [1, 0]


def test_use_survives_a_change_of_policy() -> None:
    """New limits hold at once and know what was used before; so do new allocations."""
    admission = sole(policy(limits(requests_per_minute=10)))
    for _ in range(5):
        admit(admission)
    admission.configure(policy(limits(requests_per_minute=5)))
    assert isinstance(admission.reserve(UP, Ask(), 0.0), Wait)
    admission.configure(policy(limits(requests_per_minute=6), name="other"))
    admit(admission)
    assert isinstance(admission.reserve(UP, Ask(), 0.0), Wait)


def test_a_lease_counts_from_when_the_report_was_sent_and_ends_in_the_safe_share() -> None:
    """Without a lease the safe share holds, with one the lease, and after it the safe share again."""
    admission = Admission()
    admission.configure(policy(limits(requests_per_minute=100), safe=limits(requests_per_minute=2)))
    key = LimitKey(upstream=UP, allocation="chat", dimension=Dimension.REQUESTS).text
    for _ in range(2):
        admit(admission)
    answer = admission.reserve(UP, Ask(), 0.0)
    assert isinstance(answer, Wait)
    assert [(each.limit, each.held, each.used) for each in admission.demands(0.0)] == [(key, 2, 2)]
    admission.apply_leases([Lease(limit=key, amount=4, ttl_seconds=30.0)], sent_at=0.0)
    for _ in range(2):
        admit(admission, now=5.0)
    assert isinstance(admission.reserve(UP, Ask(), 5.0), Wait)
    admission.apply_leases([Lease(limit=key, amount=3, ttl_seconds=30.0)], sent_at=10.0)
    held = admission.demands(20.0)[0]
    assert (held.held, held.used) == (4, 4)  # a smaller lease does not undo what was used
    assert isinstance(admission.reserve(UP, Ask(), 41.0), Wait)
    admit(admission, now=66.0)
    admit(admission, now=66.0)
    assert isinstance(admission.reserve(UP, Ask(), 66.0), Wait)


def test_looking_at_the_limits_is_no_report() -> None:
    """What is shown to people changes nothing of what the next answer is taken to be an answer to."""
    admission = Admission()
    admission.configure(policy(limits(requests_per_minute=100)))
    meter = admission.account(UP).meters["", Dimension.REQUESTS]
    reported = admission.demands(0.0)
    admission.wait(UP, Ask())
    assert [each.limit for each in admission.limits(0.0)] == [each.limit for each in reported]
    assert admission.limits(0.0)[0].wanted > reported[0].wanted
    admission.apply_leases([Lease(limit=meter.name, amount=1, ttl_seconds=30.0)], sent_at=0.0)
    assert meter.allowance.answered == reported[0].wanted


def test_a_lease_of_another_allocation_does_not_count() -> None:
    """A pod whose allocation changes goes back to its safe share until it is leased something there."""
    admission = Admission()
    admission.configure(policy(limits(requests_per_minute=100)))
    key = admission.demands(0.0)[0].limit
    admission.apply_leases([Lease(limit=key, amount=10, ttl_seconds=30.0)], sent_at=0.0)
    admit(admission)
    admission.configure(policy(limits(requests_per_minute=100), name="other"))
    assert isinstance(admission.reserve(UP, Ask(), 0.0), Wait)
    admission.apply_leases([Lease(limit=key, amount=10, ttl_seconds=30.0)], sent_at=0.0)
    assert isinstance(admission.reserve(UP, Ask(), 0.0), Wait)


def test_a_spent_budget_refuses_until_it_begins_anew() -> None:
    """Calls are refused with the time at which the window ends; then they go."""
    admission = sole(policy(limits(), budget=Budget(daily_usd="1")))
    admission.apply_exhausted([Exhausted(budget="team/quota", until=5000.0)], now=100.0, unix_now=4000.0)
    answer = admission.reserve(UP, Ask(), 200.0)
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.retry_at) == ("budget_exhausted", 1100.0)
    admit(admission, now=1100.0)


def test_a_spent_budget_that_degrades_admits() -> None:
    """Under Degrade calls go on, and the sidecar learns that it should make them cheaper."""
    budget = Budget(daily_usd="1", on_exhausted=OnExhausted.DEGRADE)
    admission = sole(policy(limits(), budget=budget))
    admission.apply_exhausted([Exhausted(budget="team/quota", until=5000.0)], now=0.0, unix_now=4000.0)
    admit(admission)
    assert admission.exhausted_budget(UP, 0.0) == (budget, 1000.0)


def test_steps_of_a_budget_hold_until_the_window_ends() -> None:
    """Then the full service is back by itself, whether or not the leader says so."""
    steps = (BudgetStep(at_percent=50, level=Level.ECONOMY), BudgetStep(at_percent=100, level=Level.STATIC))
    admission = sole(policy(limits(), budget=Budget(daily_usd="1", on_exhausted=OnExhausted.DEGRADE, steps=steps)))
    assert not admission.degraded
    share = SpentShare(budget="team/quota", percent=50, until=5000.0)
    admission.apply_exhausted((), (share,), now=0.0, unix_now=4000.0)
    assert admission.degraded
    assert admission.standing(UP, 999.0).level is Level.ECONOMY
    assert set(admission.levels(999.0)) == {UP}
    assert admission.standing(UP, 1000.0).level is Level.FULL
    admission.apply_exhausted((), (), now=0.0, unix_now=4000.0)
    assert not admission.degraded


def test_a_leader_that_tells_no_shares_still_tells_of_the_last_step() -> None:
    """One of an earlier version says that a budget is spent and no more: that is 100 percent."""
    steps = (BudgetStep(at_percent=50, level=Level.ECONOMY), BudgetStep(at_percent=100, level=Level.STATIC))
    admission = sole(policy(limits(), budget=Budget(daily_usd="1", on_exhausted=OnExhausted.DEGRADE, steps=steps)))
    admission.apply_exhausted([Exhausted(budget="team/quota", until=5000.0)], now=0.0, unix_now=4000.0)
    assert admission.standing(UP, 0.0).level is Level.STATIC


def test_a_slower_pace_cuts_the_limit_and_nothing_else() -> None:
    """At half pace half of the limit may be used; at full pace all of it."""
    admission = sole(policy(limits(requests_per_minute=10)))
    admission.pace(UP, "", 0.5)
    for _ in range(5):
        admit(admission, model="gpt")
    assert isinstance(admission.reserve(UP, Ask(model="gpt"), 0.0), Wait)
    admission.pace(UP, "", 1.0)
    admit(admission, model="gpt")


def test_keys_travel_and_stay_short() -> None:
    """A key is read back as it was written; names of any length fit the message."""
    key = LimitKey(upstream="a/b", allocation="chat", dimension=Dimension.TOKENS, model="odd|name*")
    assert parse(key.text) == key
    long = LimitKey(upstream="n" * 400, allocation="c" * 63, dimension=Dimension.TOKENS, model="m" * 400)
    assert len(long.text) <= 512
    assert parse(long.text) is not None
    assert long.text != LimitKey(upstream="n" * 401, allocation="c" * 63, dimension=Dimension.TOKENS).text
    for bad in ("", "a|b", "a|b|nonsense|", "a|b|money-day|"):
        assert parse(bad) is None
