"""Statuses as pure values: conditions, patches, transitions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.base import ConditionStatus
from sluice_core.api.conditions import find_condition, remove_condition, rfc3339, set_condition
from sluice_core.api.modelroute import ModelRouteStatus
from sluice_core.compile import Problem, Reason, Severity
from sluice_operator.credentials import Finding, KeyFindings
from sluice_operator.publish import NotPublished
from sluice_operator.status import Facts, conditions, keep_times, merge_patch, status_patch, transitions

NOW = 1_800_000_000.0
ERROR = Problem(severity=Severity.ERROR, reason=Reason.UPSTREAM_NOT_FOUND, path="spec.x", message="there is none")
WARNING = Problem(severity=Severity.WARNING, reason=Reason.ROUTES_OVERLAP, path="", message="two")
MISSING = Finding(reason="SecretNotFound", path="spec.credentials[0]", message="create it")


def states(facts: Facts) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status.value, each.reason) for each in conditions((), facts, NOW)}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(generation=1), {"Ready": ("True", "InForce"), "Stalled": ("False", "InForce")}),
        (
            Facts(generation=1, problems=(WARNING, ERROR)),
            {
                "Ready": ("False", "UpstreamNotFound"),
                "Stalled": ("True", "UpstreamNotFound"),
                "Reconciling": ("False", "UpstreamNotFound"),
                "ResolvedRefs": ("False", "UpstreamNotFound"),
                "Conflicted": ("True", "RoutesOverlap"),
                "Accepted": ("True", "Valid"),
            },
        ),
        (
            Facts(generation=1, problems=(WARNING,)),
            {"Ready": ("True", "InForce"), "Conflicted": ("True", "RoutesOverlap")},
        ),
        (
            Facts(generation=1, behind=NotPublished(reason="PolicyNotWritten", message="later")),
            {"Ready": ("False", "PolicyNotWritten"), "Reconciling": ("True", "PolicyNotWritten")},
        ),
        (
            Facts(generation=1, keys=KeyFindings(found=0, named=1, findings=(MISSING,))),
            {"Ready": ("False", "SecretNotFound"), "ResolvedRefs": ("False", "SecretNotFound")},
        ),
        (
            Facts(generation=1, keys=KeyFindings(found=1, named=2, findings=(MISSING,))),
            {"Ready": ("True", "InForce"), "ResolvedRefs": ("False", "SecretNotFound")},
        ),
        (Facts(generation=1, synced=(1, 2)), {"Ready": ("True", "InForce"), "ConfigSynced": ("False", "PodsBehind")}),
        (Facts(generation=1, synced=(2, 2)), {"ConfigSynced": ("True", "Synced")}),
        (Facts(generation=1, synced=(0, 2), reported=False), {"ConfigSynced": ("Unknown", "NoReports")}),
        (Facts(generation=1, synced=(0, 0), reported=False), {"ConfigSynced": ("True", "Synced")}),
    ],
)
def test_conditions_say_what_is_amiss(facts: Facts, expected: dict[str, tuple[str, str]]):
    """Errors stall, what is under way reconciles, warnings have conditions of their own and leave Ready alone."""
    assert states(facts).items() >= expected.items()


def test_the_three_that_tools_read_never_contradict_each_other():
    """Of Ready, Reconciling and Stalled exactly one is True, whatever the facts."""
    for problems in ((), (WARNING,), (ERROR,)):
        for behind in (None, NotPublished(reason="A", message=""), NotPublished(reason="B", message="", final=True)):
            found = states(Facts(generation=1, problems=problems, behind=behind))
            assert [found[each][0] for each in ("Ready", "Reconciling", "Stalled")].count("True") == 1


def test_a_transition_time_moves_with_the_status_alone():
    """A new reason or message is no transition."""
    first = set_condition((), "Ready", ConditionStatus.FALSE, "A", "a", now_unix=NOW, observed_generation=1)
    second = set_condition(first, "Ready", ConditionStatus.FALSE, "B", "b", now_unix=NOW + 60, observed_generation=2)
    third = set_condition(second, "Ready", ConditionStatus.TRUE, "C", "c", now_unix=NOW + 120, observed_generation=2)
    assert [each[0].last_transition_time for each in (first, second, third)] == [
        rfc3339(NOW),
        rfc3339(NOW),
        rfc3339(NOW + 120),
    ]
    assert second[0].observed_generation == 2


def test_conditions_of_others_are_kept_and_messages_are_bounded():
    """The three of kstatus come first; nothing else is dropped; a long message is cut."""
    foreign = set_condition((), "Audited", ConditionStatus.TRUE, "Yes", "m" * 5000, now_unix=NOW, observed_generation=1)
    both = set_condition(foreign, "Ready", ConditionStatus.TRUE, "Ok", "", now_unix=NOW, observed_generation=1)
    assert [each.type for each in both] == ["Ready", "Audited"]
    assert len(both[1].message) == 1024
    assert find_condition(remove_condition(both, "Ready"), "Ready") is None


def test_a_condition_set_twice_in_a_round_keeps_its_time():
    """Where one sets a condition and another sets it back, the stored time stands."""
    stored = set_condition((), "Ready", ConditionStatus.FALSE, "A", "", now_unix=NOW, observed_generation=1)
    other = set_condition(stored, "Ready", ConditionStatus.TRUE, "B", "", now_unix=NOW + 5, observed_generation=1)
    back = set_condition(other, "Ready", ConditionStatus.FALSE, "A", "", now_unix=NOW + 5, observed_generation=1)
    assert keep_times(back, stored) == stored


def test_defaults_that_the_api_server_fills_in_are_no_difference():
    """Otherwise each patch would be followed by another."""
    assert status_patch({"pods": 0, "syncedPods": "", "conditions": []}, ModelRouteStatus()) is None
    assert status_patch({"pods": 1, "gone": True}, ModelRouteStatus(pods=2)) == {"pods": 2, "gone": None}


JSON = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.text(max_size=2), JSON, max_size=4)


def applied(before: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        else:
            after[name] = applied(after.get(name), value)
    return after


@given(OBJECT, OBJECT)
def test_a_merge_patch_brings_about_the_target(before: dict[str, Any], after: dict[str, Any]):
    """Applied as RFC 7386 says it turns one object into the other; between equal ones it is empty."""
    assert applied(before, merge_patch(before, after)) == after
    assert merge_patch(after, after) == {}


def test_events_tell_of_turns_not_of_states():
    """A resource that is well from the start is no news; what turns bad, changes its reason or mends is."""
    well = conditions((), Facts(generation=1), NOW)
    bad = conditions(well, Facts(generation=1, problems=(ERROR,)), NOW)
    assert transitions((), well) == ()
    assert [(each.reason, each.warning) for each in transitions(well, bad)] == [("UpstreamNotFound", True)]
    assert transitions(bad, bad) == ()
    assert [(each.reason, each.warning) for each in transitions(bad, well)] == [("InForce", False)]


def test_a_rollout_speaks_for_itself_as_long_as_nothing_is_amiss():
    """Its Ready is the rollout's own; only problems of the resource override it."""
    before = set_condition((), "Ready", ConditionStatus.FALSE, "Progressing", "", now_unix=NOW, observed_generation=1)
    kept = find_condition(conditions(before, Facts(generation=1, rollout=True), NOW), "Ready")
    assert kept is not None
    assert kept.reason == "Progressing"
    overridden = conditions(before, Facts(generation=1, rollout=True, problems=(ERROR,)), NOW)
    assert find_condition(overridden, "Ready").reason == "UpstreamNotFound"
    assert [each.reason for each in transitions(before, overridden, rollout=True)] == ["UpstreamNotFound"]
