"""What each resource's status says: pure. Facts in, status and the patch that brings it about out.

The three conditions that tools read follow kstatus: Ready, Reconciling (on its way), Stalled (will not get there by
itself). The others are named as in the Gateway API: Accepted, ResolvedRefs, and Conflicted, which is bad when True.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from sluice_core.api.base import Condition, ConditionStatus, Status, Value
from sluice_core.api.conditions import find_condition, set_condition
from sluice_core.compile import Problem, Reason, Severity
from sluice_core.enforcement import Finding, with_findings
from sluice_core.service import FULL_SERVICE
from sluice_operator.credentials import KeyFindings
from sluice_operator.publish import NotPublished

Json = dict[str, Any]
S = TypeVar("S", bound=Status)
MAX_TOLD: Final = 5
_TOLD: Final = frozenset({"Ready", "Accepted", "ResolvedRefs", "Conflicted", "WorkloadsSelected", FULL_SERVICE})
_TOLD_WHEN_GOOD: Final = frozenset({"Ready", FULL_SERVICE})

_COUNTING: Final = frozenset({"ConfigSynced"})
"""Their messages hold numbers that move."""

_REFERENCES: Final = frozenset(
    {
        Reason.UPSTREAM_NOT_FOUND,
        Reason.UPSTREAM_NOT_ALLOWED,
        Reason.ROUTE_NOT_FOUND,
        Reason.RULE_NOT_FOUND,
        Reason.NOT_OWNED,
        Reason.NO_CREDENTIALS,
    }
)
_CONFLICTS: Final = frozenset(
    {
        Reason.QUOTA_CONFLICT,
        Reason.SPLIT_CONFLICT,
        Reason.ROUTES_OVERLAP,
        Reason.RULE_UNREACHABLE,
        Reason.ALLOCATION_UNREACHABLE,
        Reason.ALLOCATION_NAME_TAKEN,
    }
)


class Told(Value, frozen=True, kw_only=True):
    """One thing to tell the owner of a resource."""

    reason: str
    text: str
    serious: bool


class Facts(Value, frozen=True, kw_only=True):
    """What is known about a resource besides its spec.

    `behind` says why the policy with this resource is not published where it is used, if so. `synced` is the number of
    pods that run the policy, of those that should, and `reported` says whether any pod told. `rollout` says that the
    resource is one: as long as nothing is amiss its own conditions say how it stands.
    """

    generation: int
    problems: tuple[Problem, ...] = ()
    keys: KeyFindings | None = None
    behind: NotPublished | None = None
    synced: tuple[int, int] | None = None
    reported: bool = True
    selects: bool = False
    rollout: bool = False
    findings: tuple[Finding, ...] = ()


def synced_text(synced: tuple[int, int] | None) -> str:
    """Return the `12/12` of the status."""
    return "" if synced is None else f"{synced[0]}/{synced[1]}"


_STATUS: Final = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}


class _Setter:
    """Sets conditions one after the other for one generation at one time."""

    __slots__ = ("_generation", "_now", "conditions")

    def __init__(self, conditions: tuple[Condition, ...], generation: int, now_unix: float) -> None:
        self.conditions = conditions
        self._generation = generation
        self._now = now_unix

    def set(self, type_: str, holds: bool | None, reason: str, message: str) -> None:
        status = _STATUS[holds]
        self.conditions = set_condition(
            self.conditions, type_, status, reason, message, now_unix=self._now, observed_generation=self._generation
        )


def conditions(before: tuple[Condition, ...], facts: Facts, now_unix: float) -> tuple[Condition, ...]:
    """Return the conditions of a resource. What others have set besides these stays."""
    setter = _Setter(before, facts.generation, now_unix)
    told = _told(facts)
    _set_details(setter, facts, told)
    serious = [each for each in told if each.serious]
    if serious:
        reason, message = serious[0].reason, _sentence(serious)
        setter.set("Ready", False, reason, message)
        setter.set("Reconciling", False, reason, "nothing is under way; the resource needs a change")
        setter.set("Stalled", True, reason, message)
    elif facts.behind is not None:
        reason, message = facts.behind.reason, facts.behind.message
        setter.set("Ready", False, reason, message)
        setter.set("Reconciling", not facts.behind.final, reason, message)
        setter.set("Stalled", facts.behind.final, reason, message)
    elif not facts.rollout:
        setter.set("Ready", True, "InForce", "all that it asks for is in the published policy")
        setter.set("Reconciling", False, "InForce", "nothing is under way")
        setter.set("Stalled", False, "InForce", "nothing is in the way")
    return with_findings(setter.conditions, facts.findings, now_unix=now_unix, observed_generation=facts.generation)


def _set_details(setter: _Setter, facts: Facts, told: tuple[Told, ...]) -> None:
    by_type: dict[str, list[Told]] = {}
    for each in told:
        by_type.setdefault(_condition_of(each.reason), []).append(each)
    for type_, good in (("Accepted", "Valid"), ("ResolvedRefs", "ResolvedRefs")):
        found = by_type.get(type_, [])
        # A reference that leads nowhere is unresolved even where the resource can do without it.
        bad = any(each.serious or each.reason.startswith("Secret") for each in found)
        setter.set(type_, not bad, found[0].reason if found else good, _sentence(found) or "nothing is amiss")
    conflicts = by_type.get("Conflicted", [])
    setter.set(
        "Conflicted",
        bool(conflicts),
        conflicts[0].reason if conflicts else "NoConflicts",
        _sentence(conflicts) or "no other resource claims the same",
    )
    if facts.selects:
        nobody = by_type.get("WorkloadsSelected", [])
        reason = nobody[0].reason if nobody else "Selected"
        setter.set("WorkloadsSelected", not nobody, reason, _sentence(nobody) or "pods use it")
    if facts.synced is not None and not facts.rollout:
        _set_synced(setter, facts.synced, facts.reported)


def _set_synced(setter: _Setter, synced: tuple[int, int], reported: bool) -> None:
    running, wanted = synced
    if wanted and not reported:
        message = (
            f"none of {wanted} pods reports which policy it runs; they follow their mounted files; if that is not "
            "meant, look into the log of a pod's container sluice for why the sync channel is away"
        )
        setter.set("ConfigSynced", None, "NoReports", message)
    elif running >= wanted:
        setter.set("ConfigSynced", True, "Synced", f"{running} of {wanted} pods run the present policy")
    else:
        message = (
            f"{running} of {wanted} pods run the present policy; the others follow within seconds, or with their "
            "mounts within a minute or two; the log of the container sluice says why one stays behind"
        )
        setter.set("ConfigSynced", False, "PodsBehind", message)


def _condition_of(reason: str) -> str:
    if reason in _REFERENCES or reason.startswith("Secret"):
        return "ResolvedRefs"
    if reason in _CONFLICTS:
        return "Conflicted"
    return "WorkloadsSelected" if reason == Reason.NOBODY_SELECTED else "Accepted"


def _told(facts: Facts) -> tuple[Told, ...]:
    """Return all there is to tell, what is serious first."""
    told = [
        Told(
            reason=problem.reason.value,
            text=f"{problem.path}: {problem.message}" if problem.path else problem.message,
            serious=problem.severity is Severity.ERROR,
        )
        for problem in facts.problems
    ]
    keys = facts.keys
    for finding in keys.findings if keys is not None else ():
        # With one key of several the upstream still works; with none it does not.
        serious = keys is not None and keys.found == 0
        told.append(Told(reason=finding.reason, text=f"{finding.path}: {finding.message}", serious=serious))
    # The cause is told before what follows from it.
    return tuple(sorted(told, key=lambda each: (not each.serious, each.reason == Reason.NO_TARGET_LEFT)))


def _sentence(told: Iterable[Told]) -> str:
    texts = [each.text for each in told]
    more = f"; and {len(texts) - MAX_TOLD} more" if len(texts) > MAX_TOLD else ""
    return "; ".join(texts[:MAX_TOLD]) + more


def keep_times(conditions_: tuple[Condition, ...], stored: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Return the conditions with the transition times of those stored ones whose status is the same."""
    times = {(each.type, each.status): each.last_transition_time for each in stored}
    return tuple(
        msgspec.structs.replace(
            each, last_transition_time=times.get((each.type, each.status), each.last_transition_time)
        )
        for each in conditions_
    )


def only_figures(stored: Status, status: Status) -> bool:
    """Tell whether a status says nothing new but figures: its conditions stand, whatever numbers they tell."""
    return stored.observed_generation == status.observed_generation and _standing(stored) == _standing(status)


def _standing(status: Status) -> list[tuple[str, str, str, str]]:
    return [
        (each.type, each.status.value, each.reason, "" if each.type in _COUNTING else each.message)
        for each in status.conditions
    ]


def status_patch(stored: Mapping[str, Any], status: Status) -> Json | None:
    """Return the merge patch from the stored status to this one; None if they say the same.

    Compared as typed values: defaults that the API server fills in are no difference, or the patches would never end.
    """
    try:
        if msgspec.convert(dict(stored), type(status)) == status:
            return None
    except msgspec.ValidationError:
        pass
    fresh: Json = msgspec.to_builtins(status)
    return merge_patch(stored, fresh)


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Json:
    """Return the JSON merge patch (RFC 7386) from one object to another: null for what goes away."""
    patch: Json = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = merge_patch(old, value)
            if inner:
                patch[name] = inner
        elif name not in before or old != value:
            patch[name] = value
    return patch


class Transition(Value, frozen=True, kw_only=True):
    """A condition that changed in a way worth an event."""

    reason: str
    message: str
    warning: bool


def transitions(
    before: tuple[Condition, ...], after: tuple[Condition, ...], *, rollout: bool = False
) -> tuple[Transition, ...]:
    """Return what to tell as events: conditions that turned bad, turned good again, or are bad for another reason.

    A rollout tells its own events; of it only what is amiss with the resource is told here.
    """
    found: dict[str, Transition] = {}
    for condition in after:
        if condition.type not in _TOLD or (rollout and condition.type == "Ready"):
            continue
        old = find_condition(before, condition.type)
        bad = _is_bad(condition)
        if old is None and not bad:
            continue
        if old is not None and _says(old) == _says(condition):
            continue
        if bad or condition.type in _TOLD_WHEN_GOOD:
            # Policy comes before its pods in the order of things, so that nobody is selected yet is no fault.
            warning = bad and condition.reason != Reason.NOBODY_SELECTED
            found.setdefault(
                condition.reason, Transition(reason=condition.reason, message=condition.message, warning=warning)
            )
    return tuple(found.values())


def _says(condition: Condition) -> tuple[str, str, str]:
    # Which allocations have come to which level is news in itself; elsewhere a new message is the same news.
    message = condition.message if condition.type == FULL_SERVICE else ""
    return condition.status.value, condition.reason, message


def _is_bad(condition: Condition) -> bool:
    abnormal_when = ConditionStatus.TRUE if condition.type == "Conflicted" else ConditionStatus.FALSE
    return condition.status is abnormal_when
