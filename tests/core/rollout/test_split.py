"""Which arm a call gets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.base import BodyField, KeySource
from sluice_core.api.canarysplit import OnMissingKey
from sluice_core.snapshot import ArmPolicy, SplitPolicy
from sluice_core.split import MAX_KNOWN_USERS, Arm, Assigner, assign, bucket_of


class Fields(msgspec.Struct, frozen=True):
    """The body fields that can name a user."""

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


def policy(weight: int = 50, **changes: Any) -> SplitPolicy:
    return SplitPolicy(
        key="team/chat",
        revision="r-1",
        weight=weight,
        **{
            "salt": "team-a/chat/7",
            "stable": ArmPolicy(version="v1"),
            "candidate": ArmPolicy(version="v2"),
            "keys": (KeySource(header="X-User-Id"), KeySource(body=BodyField.USER)),
        }
        | changes,
    )


@pytest.mark.parametrize(
    ("key", "bucket"),
    [("user-1", 4798), ("user-2", 6828), ("user-3", 9430), ("alice@example.com", 8459), ("用户", 2393)],
)
def test_buckets_are_those_of_the_published_formula(key: str, bucket: int) -> None:
    """The bucket is the first eight bytes of SHA-256(salt NUL key), big-endian, modulo 10 000."""
    assert bucket_of("team-a/chat/7", key) == bucket


@given(st.text(), st.integers(0, 100), st.integers(0, 100))
def test_a27_a_ramp_moves_users_to_the_candidate_only(user: str, low: int, high: int) -> None:
    """Who has the candidate at some weight has it at every larger weight."""
    small, large = sorted((low, high))
    headers = {"x-user-id": user or "someone"}

    before = assign(policy(small), Fields(), headers, "call")
    after = assign(policy(large), Fields(), headers, "call")

    assert (before.arm, after.arm) != ("candidate", "stable")
    assert before.bucket == after.bucket


@pytest.mark.parametrize(("weight", "share"), [(0, 0.0), (5, 0.05), (50, 0.5), (100, 1.0)])
def test_the_candidate_gets_its_share_of_users(weight: int, share: float) -> None:
    """Of many users the weight's share is on the candidate."""
    users = 4000

    chosen = sum(
        assign(policy(weight), Fields(), {"x-user-id": f"u{user}"}, "call").arm == "candidate" for user in range(users)
    )

    assert chosen / users == pytest.approx(share, abs=0.02)


def test_the_first_key_that_is_present_counts() -> None:
    """Sources are read in order; an absent or empty one is passed over."""
    by_header = assign(policy(), Fields(user="b"), {"x-user-id": "a"}, "call")
    by_body = assign(policy(), Fields(user="b"), {"x-user-id": ""}, "call")

    assert by_header.bucket == bucket_of("team-a/chat/7", "a")
    assert by_body.bucket == bucket_of("team-a/chat/7", "b")


def test_a_call_without_a_key_stays_on_stable_and_does_not_count() -> None:
    """Under onMissingKey Stable such calls were not chosen by chance, so they would bias the comparison."""
    assignment = assign(policy(100), Fields(), {}, "call")

    assert (assignment.arm, assignment.missing_key, assignment.counted) == ("stable", True, False)


def test_a_call_without_a_key_can_be_assigned_by_chance() -> None:
    """Under onMissingKey Random the call's own id decides, and the call counts."""
    random = policy(50, on_missing_key=OnMissingKey.RANDOM)

    arms = [assign(random, Fields(), {}, f"call-{number}") for number in range(400)]

    assert {assignment.arm for assignment in arms} == {"stable", "candidate"}
    assert all(assignment.missing_key and assignment.counted for assignment in arms)


@pytest.mark.parametrize("arm", ["stable", "candidate"])
@pytest.mark.parametrize("weight", [0, 100])
def test_the_override_header_forces_an_arm_outside_the_analysis(arm: Arm, weight: int) -> None:
    """A forced call gets the arm at any weight, even where the hash agrees, and never counts."""
    assignment = assign(policy(weight), Fields(), {"x-user-id": "u", "x-sluice-arm": f" {arm.title()} "}, "call")

    assert (assignment.arm, assignment.forced, assignment.counted) == (arm, True, False)
    assert assignment.version == {"stable": "v1", "candidate": "v2"}[arm]


def test_an_unknown_override_is_ignored() -> None:
    """Only "stable" and "candidate" force an arm."""
    assert not assign(policy(), Fields(), {"x-user-id": "u", "x-sluice-arm": "v2"}, "call").forced


@pytest.mark.parametrize(("pinned", "counted"), [("stable", False), ("candidate", True), (None, True)])
def test_a_conversation_stays_on_its_arm(pinned: Arm | None, counted: bool) -> None:
    """A call that continues a conversation gets its arm; it counts only where the hash says the same."""
    assignment = assign(policy(100), Fields(), {"x-user-id": "u"}, "call", pinned=pinned)

    assert (assignment.arm, assignment.counted) == (pinned or "candidate", counted)


def test_another_salt_chooses_other_users() -> None:
    """Two revisions do not try their luck on the same users."""
    users = [f"u{number}" for number in range(1000)]
    first = {user for user in users if bucket_of("one", user) < 1000}
    second = {user for user in users if bucket_of("two", user) < 1000}

    assert len(first & second) < 40  # 10 expected by chance


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", ""]),
            st.sampled_from([None, "stable", "candidate", "other"]),
            st.sampled_from([None, "stable", "candidate"]),
        ),
        max_size=30,
    )
)
def test_what_was_assigned_before_changes_nothing(calls: list[tuple[str, str | None, Arm | None]]) -> None:
    """Whoever called before, forced or pinned or not, a call gets the arm that it would get alone."""
    assigner = Assigner(policy(50))
    for number, (user, wanted, pinned) in enumerate(calls):
        headers = {"x-user-id": user} | ({"x-sluice-arm": wanted} if wanted is not None else {})
        call_id = f"call-{number}"
        alone = assign(policy(50), Fields(), headers, call_id, pinned)
        assert assigner.assign(Fields(), headers, call_id, pinned) == alone


def test_users_are_remembered_within_bounds() -> None:
    """However many users come, and however long their keys are, what is kept of them is bounded."""
    assigner = Assigner(policy(50))
    for number in range(MAX_KNOWN_USERS + 10):
        assigner.assign(Fields(user=f"user-{number}"), {}, "call")
    before = len(assigner)
    assigner.assign(Fields(user="x" * 10_000), {}, "call")
    assert before == len(assigner) <= MAX_KNOWN_USERS
