"""Splits as policy: which rule they are on, and what their arms may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from sluice_core.api.canarysplit_status import CanarySplit
from sluice_core.api.modelroute import ModelRoute
from sluice_core.compile.routes import RuleId
from sluice_core.problems import Reason, Report, ResourceId
from sluice_core.rollout.traffic import traffic
from sluice_core.snapshot import ArmPolicy, SplitPolicy

FORBIDDEN_OVERRIDES = frozenset({"model", "input", "messages", "instructions", "stream"})
"""Request parameters that an arm's overrides may not set: they are the caller's, or have a field of their own."""


def compile_splits(
    resources: Sequence[CanarySplit], routes: Mapping[str, ModelRoute], report: Report
) -> dict[RuleId, SplitPolicy]:
    """Return the splits in force, by route and rule. Of two splits on one rule, the older one counts."""
    chosen: dict[RuleId, CanarySplit] = {}
    for split in resources:  # oldest first
        rule = _rule(split, routes, report)
        if rule is None:
            continue
        if rule in chosen:
            message = (
                f"CanarySplit {chosen[rule].key} already splits rule {rule[1]} of {rule[0]}; delete one of the two"
            )
            report.error(_id(split), Reason.SPLIT_CONFLICT, "spec.routeRef", message)
            continue
        chosen[rule] = split
    return {rule: _compile_split(split, report) for rule, split in chosen.items()}


def _rule(split: CanarySplit, routes: Mapping[str, ModelRoute], report: Report) -> RuleId | None:
    reference = split.spec.route_ref
    key = f"{split.metadata.namespace}/{reference.name}"
    route = routes.get(key)
    if route is None:
        message = f"there is no ModelRoute {key}; create it, or correct the name"
        report.error(_id(split), Reason.ROUTE_NOT_FOUND, "spec.routeRef.name", message)
        return None
    names = [rule.name for rule in route.spec.rules]
    if reference.rule not in names:
        message = f"ModelRoute {key} has no rule {reference.rule}; correct it to one of {', '.join(names)}"
        report.error(_id(split), Reason.RULE_NOT_FOUND, "spec.routeRef.rule", message)
        return None
    return key, reference.rule


def _compile_split(split: CanarySplit, report: Report) -> SplitPolicy:
    """Return the split as its status has it in force.

    A parameter that may not be set is left out. A candidate that has one gets no calls, because it would be judged
    for something else than what was written; the stable arm goes on without the parameter.
    """
    policy = traffic(split)
    _check_overrides(split, "stable", split.spec.stable.overrides, report)
    candidate_is_sound = _check_overrides(split, "candidate", split.spec.candidate.overrides, report)
    return msgspec.structs.replace(
        policy,
        stable=_allowed(policy.stable),
        candidate=_allowed(policy.candidate),
        weight=policy.weight if candidate_is_sound else 0,
    )


def _check_overrides(split: CanarySplit, arm: str, overrides: Mapping[str, object], report: Report) -> bool:
    found = sorted(FORBIDDEN_OVERRIDES & overrides.keys())
    for name in found:
        effect = "the candidate gets no calls" if arm == "candidate" else "it is left out"
        message = f"{name} cannot be overridden, so {effect}; {_MEND[name]}"
        report.error(_id(split), Reason.OVERRIDE_FORBIDDEN, f"spec.{arm}.overrides.{name}", message)
    return not found


_CALLERS_OWN = "remove it: it belongs to the caller"
_MEND = {
    "model": "use the arm's field model",
    "instructions": "use the arm's field instructions",
    "input": _CALLERS_OWN,
    "messages": _CALLERS_OWN,
    "stream": _CALLERS_OWN,
}


def _allowed(arm: ArmPolicy) -> ArmPolicy:
    kept = {name: value for name, value in arm.overrides.items() if name not in FORBIDDEN_OVERRIDES}
    return msgspec.structs.replace(arm, overrides=kept)


def _id(split: CanarySplit) -> ResourceId:
    return ResourceId("CanarySplit", split.key)
