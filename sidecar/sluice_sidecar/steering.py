"""The third stage of the pipeline: which rule a call falls under, which arm of its split, and what is tried in turn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

import msgspec

from sluice_core.api.modelroute import Authorization, Cache, OnClientDisconnect
from sluice_core.errors import RefusalCode, refuse
from sluice_core.routing import NoRoute, Route, Router
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import ArmPolicy, CachedFallbackPolicy
from sluice_core.split import Arm, Assigner, UserKeys
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError

if TYPE_CHECKING:
    from sluice_sidecar.plan import Plan
    from sluice_sidecar.replay import Replay

TOTAL_SECONDS = 60.0
"""How long a call may take whose first target has no upstream."""


class StalePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a rule's candidates an earlier answer is tried: before which of them, as which fallback, of what age."""

    before: int
    fallback: int
    max_age_seconds: float


class CacheRule:
    """How the answers to a rule's calls are given again. `keep_seconds` is for how long they are of any use."""

    __slots__ = ("coalesce", "keep_seconds", "stale", "ttl_seconds", "user_keys")

    def __init__(self, policy: Cache, fallbacks: Sequence[CachedFallbackPolicy]) -> None:
        self.ttl_seconds = float(policy.ttl_seconds)
        self.coalesce = policy.coalesce
        self.user_keys = UserKeys(policy.user_key) if policy.user_key else None
        self.stale = tuple(
            StalePlace(before=1 + each.place - others, fallback=each.place, max_age_seconds=float(each.max_age_seconds))
            for others, each in enumerate(fallbacks)
        )
        self.keep_seconds = max(self.ttl_seconds, *(place.max_age_seconds for place in self.stale), 0.0)


class Candidate:
    """One thing to try: a model of an upstream, or else, with an empty `upstream`, an earlier answer or a fixed one.

    `arm` is the version whose instructions and overrides apply; a fallback keeps them, but brings its own model.
    `fallback` is its place among the fallbacks. `plan` is how it is tried, worked out by the first call that does.
    `cache` is set for a rule's target if its answers are kept, `replay` for an earlier answer.
    """

    __slots__ = (
        "arm",
        "cache",
        "fallback",
        "max_input_tokens",
        "max_output_tokens",
        "model",
        "plan",
        "replay",
        "static_message",
        "upstream",
    )

    def __init__(
        self,
        route: Route,
        arm: ArmPolicy | None,
        *,
        upstream: str | None,
        model: str | None,
        static_message: str | None = None,
        fallback: int | None = None,
    ) -> None:
        self.upstream = upstream or ""
        self.model = model
        self.arm = arm
        self.static_message = static_message
        self.fallback = fallback
        self.max_input_tokens = route.limits.max_input_tokens
        self.max_output_tokens = route.limits.max_output_tokens
        self.plan: Plan | None = None
        self.cache: CacheRule | None = None
        self.replay: Replay | None = None


Candidates = tuple[Candidate, ...]


class _Course:
    """What the calls of one rule and target have in common."""

    __slots__ = (
        "assigner",
        "by_arm",
        "drains",
        "keeps_authorization",
        "outlives_client",
        "route",
        "total_seconds",
        "without_arm",
    )

    def __init__(self, route: Route, policy: PodPolicy) -> None:
        rule, split = route.rule, route.split
        upstream = policy.upstreams.get(route.target.upstream)
        self.route = route
        self.total_seconds = float(upstream.timeouts.total_seconds) if upstream is not None else TOTAL_SECONDS
        self.keeps_authorization = rule is not None and rule.authorization is Authorization.APPLICATION
        self.drains = rule is not None and rule.on_client_disconnect is OnClientDisconnect.DRAIN
        cache = rule.cache if rule is not None else None
        self.outlives_client = self.drains or (cache is not None and cache.coalesce)
        self.without_arm = _candidates(route, None)
        self.assigner: Assigner | None = None
        self.by_arm: dict[Arm, Candidates] = {}
        if split is not None:
            self.assigner = Assigner(split)
            self.by_arm = {"stable": _candidates(route, split.stable), "candidate": _candidates(route, split.candidate)}


class Steering:
    """The routes and splits of one policy. What does not hang on the single call is worked out once."""

    __slots__ = ("_courses", "_policy", "_router")

    def __init__(self, policy: PodPolicy) -> None:
        self._policy = policy
        self._router = Router(policy)
        self._courses: dict[int, _Course] = {}  # by identity of the router's route: there are as many as targets

    def steer(self, call: Call, pinned: Arm | None) -> Candidates:
        """Find the call's rule and arm; return what is tried in turn.

        Raises:
            RefusedError: no rule matches, and there is no default upstream.
        """
        draw = random.random()  # noqa: S311 - weights, not secrets
        found = self._router.route(call.facts, call.fields.first, draw)
        if isinstance(found, NoRoute):
            raise _no_route()
        course = self._courses.get(id(found))
        if course is None:
            course = self._courses[id(found)] = _Course(found, self._policy)
        call.route_key, call.rule, call.target_name = found.route, found.rule, found.target.name
        call.keeps_authorization, call.drains = course.keeps_authorization, course.drains
        call.outlives_client = course.outlives_client
        call.total_seconds = course.total_seconds
        if course.assigner is None or not call.generating:
            return course.without_arm
        assignment = call.assignment = course.assigner.assign(call.facts, call.fields.first, call.id, pinned)
        return course.by_arm[assignment.arm]


def _no_route() -> RefusedError:
    message = "No rule of any ModelRoute matches this call, and there is no default upstream."
    return RefusedError(refuse(RefusalCode.NO_ROUTE, message))


def _candidates(route: Route, arm: ArmPolicy | None) -> Candidates:
    model = (arm.model if arm is not None else None) or route.target.model
    first = Candidate(route, arm, upstream=route.target.upstream, model=model)
    if route.rule is not None and route.rule.cache is not None:
        first.cache = CacheRule(route.rule.cache, route.rule.cached_fallbacks)
    taken = {each.place for each in route.rule.cached_fallbacks} if route.rule is not None else set()
    places = (place for place in count() if place not in taken)
    fallbacks = (
        Candidate(
            route,
            arm,
            upstream=each.upstream,
            model=each.model,
            static_message=each.static_message,
            fallback=position,
        )
        for position, each in zip(places, route.fallbacks, strict=False)
    )
    return (first, *fallbacks)
