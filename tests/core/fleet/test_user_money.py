"""Money of single users over pods, changes of leader and days; and that a namespace speaks for its own users only."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.base import KeySource
from sluice_core.api.quotaallocation import PerUser
from sluice_core.compile import Compiled
from sluice_core.fleet import BUSY_REPORT_SECONDS, REPORT_SECONDS, Fleet
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, Snapshot, UpstreamPolicy
from sluice_core.spend_state import decode_states, encode_states
from sluice_core.sync import PodRef, SyncRequest, SyncResponse, UserDemand, UserNeed, UserReport, UserSpend
from sluice_core.user_spend import MAX_EXHAUSTED, MAX_USERS

NOON = datetime(2026, 5, 5, 12, tzinfo=UTC).timestamp()
TODAY, TOMORROW = "2026-05-05", "2026-05-06"
SCOPE = "team/openai/chat"
LIMIT = 2_000_000


def compiled() -> Compiled:
    per_user = PerUser(key=KeySource(header="x-user-id"), requests_per_minute=20, daily_usd="2")
    quota = QuotaPolicy(
        key="team/openai",
        upstream="team/openai",
        allocations=(AllocationPolicy(name="chat", per_user=per_user, pods=2),),
    )
    upstream = UpstreamPolicy(key="team/openai", base_url="http://x")
    snapshots = {
        "team": Snapshot(namespace="team", upstreams=(upstream,), quotas=(quota,)),
        "other": Snapshot(namespace="other"),
    }
    return Compiled(snapshots=snapshots, problems={}, upstreams=(upstream,), quotas=(quota,), consumers={})


def a_fleet(*, fresh: bool = True) -> Fleet:
    fleet = Fleet(now=0.0, fresh=fresh)
    fleet.adopt(compiled(), 0.0)
    return fleet


def tell(
    fleet: Fleet,
    instance: str,
    spends: dict[str, int],
    *,
    day: str = TODAY,
    unix_now: float = NOON,
    namespace: str = "team",
    stopping: bool = False,
    demands: tuple[UserDemand, ...] = (),
    sequence: list[int] = [0],  # noqa: B006 - one for all reports
) -> SyncResponse:
    sequence[0] += 1
    users = (
        UserReport(
            scope=SCOPE,
            pods=2,
            day=day,
            demands=demands,
            spends=tuple(UserSpend(user=user, usd_micros=spent) for user, spent in spends.items()),
        ),
    )
    request = SyncRequest(
        pod=PodRef(namespace=namespace, name=instance),
        instance=instance,
        sequence=sequence[0],
        users=users,
        stopping=stopping,
    )
    return fleet.report(request, float(sequence[0]), unix_now)


def exhausted(answer: SyncResponse) -> set[str] | None:
    (users,) = answer.users
    return None if users.exhausted is None else set(users.exhausted)


def test_a_user_who_has_spent_its_money_in_several_pods_is_told_to_all() -> None:
    """The sum counts, and a pod that has never seen the user hears of it too."""
    fleet = a_fleet()
    tell(fleet, "a", {"u": LIMIT - 1, "v": 5})
    assert exhausted(tell(fleet, "b", {})) == set()
    assert exhausted(tell(fleet, "b", {"u": 1})) == {"u"}
    assert exhausted(tell(fleet, "c", {})) == {"u"}


def test_what_was_reserved_and_not_spent_is_given_back() -> None:
    """Figures are totals: a smaller one replaces a larger one."""
    fleet = a_fleet()
    assert exhausted(tell(fleet, "a", {"u": LIMIT})) == {"u"}
    assert exhausted(tell(fleet, "a", {"u": 10})) == set()


def test_everybody_begins_anew_with_the_day() -> None:
    """What is told of yesterday is not counted today."""
    fleet = a_fleet()
    assert exhausted(tell(fleet, "a", {"u": LIMIT})) == {"u"}
    midnight = NOON + 12 * 3600
    assert exhausted(tell(fleet, "a", {"u": LIMIT}, unix_now=midnight)) == set()
    assert exhausted(tell(fleet, "a", {"u": LIMIT}, day=TOMORROW, unix_now=midnight)) == {"u"}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900_000), st.sampled_from(["", "ends", "fails"]))))
def test_money_of_users_survives_pods_and_leaders(steps: list[tuple[int, int, str]]) -> None:
    """Pods end, leaders change: a user is told as spent exactly if what all pods ever told is its limit or more."""
    fleet, living, ended, pods = a_fleet(), dict.fromkeys(range(4), 0), 0, [f"pod-{pod}" for pod in range(4)]
    for number, (pod, more, then) in enumerate(steps):
        living[pod] += more
        tell(fleet, pods[pod], {"u": living[pod]}, stopping=then == "ends")
        if then == "ends":
            ended += living[pod]
            living[pod], pods[pod] = 0, f"pod-{pod}-{number}"
        if then == "fails":
            stored = decode_states(encode_states(fleet.spending.states()))
            fleet = a_fleet(fresh=False)
            assert exhausted(tell(fleet, "somebody", {})) is None
            fleet.spending.restore(stored, NOON)
            for each, spent in living.items():
                tell(fleet, pods[each], {"u": spent})
    told = exhausted(tell(fleet, "somebody", {}))
    assert told == ({"u"} if sum(living.values()) + ended >= LIMIT else set())


def test_only_what_ended_processes_have_told_is_to_be_stored() -> None:
    """Living ones tell it again."""
    fleet = a_fleet()
    fleet.spending.take_changes()
    tell(fleet, "a", {"u": 5})
    assert fleet.spending.take_changes() == frozenset()
    tell(fleet, "a", {"u": 7}, stopping=True)
    assert fleet.spending.take_changes() == {"team/openai"}
    assert fleet.spending.states()["team/openai"].users == {"chat": {TODAY: {"u": 7}}}


def test_memory_of_money_is_bounded() -> None:
    """Users beyond the bound are left to the pods; the list of the spent has those who spent most; it fits a store."""
    fleet = a_fleet()
    for first in range(0, MAX_USERS + 500, 500):
        tell(fleet, "a", {f"{number:016x}": LIMIT + number for number in range(first, first + 500)})
    told = exhausted(tell(fleet, "a", {}))
    assert told == {f"{number:016x}" for number in range(MAX_USERS - MAX_EXHAUSTED, MAX_USERS)}
    tell(fleet, "a", {}, stopping=True)
    small = decode_states(encode_states(fleet.spending.states(), limit_bytes=4_000))["team/openai"]
    kept = small.users["chat"][TODAY]
    assert 100 < len(kept) < MAX_USERS
    assert min(kept.values()) > LIMIT + 100


def test_a_namespace_speaks_only_of_allocations_that_it_has() -> None:
    """A report of another's users changes nothing, and gets no answer."""
    fleet = a_fleet()
    assert tell(fleet, "x", {"u": LIMIT}, namespace="other").users == ()
    assert exhausted(tell(fleet, "a", {})) == set()


def test_pods_report_often_while_a_list_changes() -> None:
    """All have to hear of a user who is new on the list, and to say so."""
    fleet = a_fleet()
    assert tell(fleet, "a", {}).interval_seconds == REPORT_SECONDS
    tell(fleet, "b", {})
    wants = UserDemand(user="u", requests=UserNeed(limit=20, held=10, used=10, wanted=15))
    answer = tell(fleet, "a", {}, demands=(wants,))
    assert answer.users[0].listed == ("u",)
    assert answer.interval_seconds == BUSY_REPORT_SECONDS
