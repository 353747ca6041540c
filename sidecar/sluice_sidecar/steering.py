"""The third stage of the pipeline: which rule a call falls under, which arm of its split, and what is tried in turn."""

from __future__ import annotations

import random

import msgspec

from sluice_core.errors import RefusalCode, refuse
from sluice_core.routing import NoRoute, Route, Router
from sluice_core.snapshot import ArmPolicy
from sluice_core.split import Arm, assign
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to try: a model of an upstream, or a fixed answer. `fallback` is its place among the fallbacks.

    `arm` is the version whose instructions and overrides apply; a fallback keeps them, but brings its own model.
    """

    upstream: str = ""
    model: str | None = None
    arm: ArmPolicy | None = None
    static_message: str | None = None
    fallback: int | None = None


def steer(call: Call, router: Router, pinned: Arm | None) -> list[Candidate]:
    """Find the call's rule and arm; return what is tried in turn.

    Raises:
        RefusedError: no rule matches, and there is no default upstream.
    """
    draw = random.random()  # noqa: S311 - weights, not secrets
    found = router.route(call.facts, call.fields.first, draw)
    if isinstance(found, NoRoute):
        raise RefusedError(
            refuse(
                RefusalCode.NO_ROUTE, "No rule of any ModelRoute matches this call, and there is no default upstream."
            )
        )
    call.route_key = found.route
    call.rule = found.rule
    call.target_name = found.target.name
    arm = _arm(call, found, pinned)
    first = Candidate(
        upstream=found.target.upstream, model=(arm.model if arm is not None else None) or found.target.model, arm=arm
    )
    return [first, *_fallbacks(found, arm)]


def _arm(call: Call, found: Route, pinned: Arm | None) -> ArmPolicy | None:
    split = found.split
    if split is None or not call.generating:
        return None
    call.assignment = assign(split, call.facts, call.fields.first, call.id, pinned)
    return split.candidate if call.assignment.arm == "candidate" else split.stable


def _fallbacks(found: Route, arm: ArmPolicy | None) -> list[Candidate]:
    return [
        Candidate(
            upstream=each.upstream or "",
            model=each.model,
            arm=arm,
            static_message=each.static_message,
            fallback=index,
        )
        for index, each in enumerate(found.fallbacks)
    ]
