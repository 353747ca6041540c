"""Where a call goes: the first rule that matches, and one of its targets by weight.

The look-ups are prepared once per policy, so that a call costs a few comparisons.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from sluice_core.api.base import Value
from sluice_core.api.modelroute import CallLimits, Endpoint, RuleMatch
from sluice_core.request import RequestFacts
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import FallbackPolicy, RulePolicy, SplitPolicy, TargetPolicy

DEFAULT_TARGET = "default"
MAX_KNOWN_KINDS = 1024
LONGEST_KNOWN_MODEL = 256


class Route(Value, frozen=True, kw_only=True):
    """Where a call goes. `route` and `rule` are None where, for want of a rule, it goes to the default upstream."""

    route: str | None = None
    rule: RulePolicy | None = None
    target: TargetPolicy

    @property
    def fallbacks(self) -> tuple[FallbackPolicy, ...]:
        """Return what is tried when the target fails, in order."""
        return self.rule.fallbacks if self.rule is not None else ()

    @property
    def split(self) -> SplitPolicy | None:
        """Return the split in force on the rule."""
        return self.rule.split if self.rule is not None else None

    @property
    def limits(self) -> CallLimits:
        """Return the caps on a single call."""
        return self.rule.limits if self.rule is not None else _NO_LIMITS


class NoRoute(Value, frozen=True, kw_only=True):
    """No rule matches and there is no default upstream, or `rule` matches, but none of its upstreams can be used."""

    model: str | None = None
    rule: str | None = None


_NO_LIMITS = CallLimits()


_Conditions = tuple[tuple[str, str], ...]
"""Header fields, by name in lower case, that a call must have; none for a call that matches whatever its header."""


class _Match:
    """One alternative of a rule, prepared."""

    __slots__ = ("_endpoints", "_models", "_prefixes", "headers")

    def __init__(self, match: RuleMatch) -> None:
        self._endpoints = frozenset(match.endpoints)
        self._models = frozenset(model for model in match.models if not model.endswith("*"))
        self._prefixes = tuple(model[:-1] for model in match.models if model.endswith("*"))
        self.headers: _Conditions = tuple((header.name.lower(), header.value) for header in match.headers)

    def names(self, endpoint: Endpoint, model: str | None) -> bool:
        if self._endpoints and endpoint not in self._endpoints:
            return False
        if not (self._models or self._prefixes):
            return True
        return model is not None and (model in self._models or model.startswith(self._prefixes))


class _Rule:
    """One rule, prepared: its alternatives, and its targets by cumulative weight."""

    __slots__ = ("_bounds", "_matches", "_name", "_routes")

    def __init__(self, route: str, rule: RulePolicy) -> None:
        self._name = rule.name
        self._matches = tuple(_Match(match) for match in rule.match)
        targets = [target for target in rule.targets if target.weight > 0] or list(rule.targets[:1])
        self._routes = tuple(Route(route=route, rule=rule, target=target) for target in targets)
        self._bounds: list[int] = []
        total = 0
        for target in targets:
            total += max(1, target.weight)
            self._bounds.append(total)

    def conditions(self, endpoint: Endpoint, model: str | None) -> tuple[_Conditions, ...]:
        """Return the alternatives under which calls of this endpoint and model match; none if they never do."""
        if not self._matches:
            return ((),)
        return tuple(match.headers for match in self._matches if match.names(endpoint, model))

    def choose(self, model: str | None, draw: float) -> Route | NoRoute:
        if not self._routes:  # its calls are refused: the next rule's upstream may be none that they may go to
            return NoRoute(model=model, rule=self._name)
        if len(self._routes) == 1:
            return self._routes[0]
        index = bisect_right(self._bounds, draw * self._bounds[-1])
        return self._routes[min(index, len(self._routes) - 1)]


class Router:
    """The routes of one pod's policy, prepared. Its rules never change: a new policy gets a new router.

    Which rules can match calls of an endpoint and model is worked out once and remembered, for as many as
    `MAX_KNOWN_KINDS` of them: models are named by callers.
    """

    __slots__ = ("_default", "_known", "_rules")

    def __init__(self, policy: PodPolicy) -> None:
        self._rules = tuple(_Rule(route.key, rule) for route in policy.routes for rule in route.rules)
        self._known: dict[tuple[Endpoint, str | None], tuple[tuple[_Rule, tuple[_Conditions, ...]], ...]] = {}
        upstream = policy.default_upstream
        self._default = None if upstream is None else Route(target=TargetPolicy(name=DEFAULT_TARGET, upstream=upstream))

    def __len__(self) -> int:
        """Return how many kinds of calls are remembered."""
        return len(self._known)

    def route(self, facts: RequestFacts, headers: Mapping[str, str], draw: float) -> Route | NoRoute:
        """Return where a call goes.

        `headers` has lower-case names or ignores case; `draw`, uniform in [0, 1), picks among several targets.
        """
        kind = facts.endpoint, facts.model
        rules = self._known.get(kind)
        if rules is None:
            rules = self._remember(kind)
        for rule, alternatives in rules:
            for conditions in alternatives:
                if not conditions or all(headers.get(name) == value for name, value in conditions):
                    return rule.choose(facts.model, draw)
        return self._default if self._default is not None else NoRoute(model=facts.model)

    def _remember(self, kind: tuple[Endpoint, str | None]) -> tuple[tuple[_Rule, tuple[_Conditions, ...]], ...]:
        found = ((rule, rule.conditions(*kind)) for rule in self._rules)
        rules = tuple((rule, alternatives) for rule, alternatives in found if alternatives)
        if len(self._known) >= MAX_KNOWN_KINDS:
            self._known.clear()
        if kind[1] is None or len(kind[1]) <= LONGEST_KNOWN_MODEL:
            self._known[kind] = rules
        return rules


def route(policy: PodPolicy, facts: RequestFacts, headers: Mapping[str, str], draw: float) -> Route | NoRoute:
    """Return where a call goes under a policy; a server keeps a `Router` instead of preparing it for each call."""
    return Router(policy).route(facts, headers, draw)
