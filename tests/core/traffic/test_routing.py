"""Where calls go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.modelroute import CallLimits, Endpoint, HeaderMatch, RuleMatch
from sluice_core.request import RequestFacts
from sluice_core.routing import MAX_KNOWN_KINDS, NoRoute, Route, Router, route
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import RoutePolicy, RulePolicy, TargetPolicy

CHAT = Endpoint.CHAT_COMPLETIONS


def rule(name: str, *matches: RuleMatch, weights: tuple[int, ...] = (1,)) -> RulePolicy:
    targets = tuple(
        TargetPolicy(name=f"t{number}", upstream="ns/up", weight=weight) for number, weight in enumerate(weights)
    )
    return RulePolicy(name=name, match=matches, targets=targets, limits=CallLimits(max_output_tokens=5))


def policy(*rules: RulePolicy, default: str | None = None) -> PodPolicy:
    routes = (RoutePolicy(key="ns/chat", rules=rules),) if rules else ()
    return PodPolicy(namespace="ns", revision="r", routes=routes, default_upstream=default)


@pytest.mark.parametrize(
    ("match", "model", "endpoint", "headers", "matches"),
    [
        (RuleMatch(models=("gpt-4.1",)), "gpt-4.1", CHAT, {}, True),
        (RuleMatch(models=("gpt-4.1",)), "gpt-4.1-mini", CHAT, {}, False),
        (RuleMatch(models=("gpt-4.1*",)), "gpt-4.1-mini", CHAT, {}, True),
        (RuleMatch(models=("o3", "gpt-*")), "gpt-5", CHAT, {}, True),
        (RuleMatch(models=("*",)), "x", CHAT, {}, True),
        (RuleMatch(models=("*",)), None, Endpoint.FILES, {}, False),
        (RuleMatch(), None, Endpoint.FILES, {}, True),
        (RuleMatch(endpoints=(CHAT, Endpoint.RESPONSES)), "m", Endpoint.RESPONSES, {}, True),
        (RuleMatch(endpoints=(CHAT,)), "m", Endpoint.EMBEDDINGS, {}, False),
        (RuleMatch(headers=(HeaderMatch(name="X-Tier", value="free"),)), "m", CHAT, {"x-tier": "free"}, True),
        (RuleMatch(headers=(HeaderMatch(name="X-Tier", value="free"),)), "m", CHAT, {"x-tier": "Free"}, False),
        (RuleMatch(headers=(HeaderMatch(name="X-Tier", value="free"),)), "m", CHAT, {}, False),
        (RuleMatch(models=("m",), endpoints=(CHAT,)), "m", Endpoint.RESPONSES, {}, False),
    ],
)
def test_all_conditions_of_a_match_must_hold(
    match: RuleMatch, model: str | None, endpoint: Endpoint, headers: dict[str, str], matches: bool
) -> None:
    """Models exact or by prefix, endpoints, headers in any case of their names."""
    found = route(policy(rule("r", match)), RequestFacts(endpoint=endpoint, model=model), headers, 0.0)
    assert isinstance(found, Route) is matches


def test_the_first_rule_that_matches_applies() -> None:
    """Order decides; one alternative is enough; a rule without a match takes all."""
    router = Router(
        policy(
            rule("mini", RuleMatch(models=("x",)), RuleMatch(models=("gpt-4.1-mini",))),
            rule("large", RuleMatch(models=("gpt-4.1*",))),
            rule("rest"),
        )
    )
    names = {}
    for model in ("gpt-4.1-mini", "gpt-4.1", "o3"):
        found = router.route(RequestFacts(endpoint=CHAT, model=model), {}, 0.0)
        assert isinstance(found, Route)
        assert found.rule is not None
        names[model] = (found.route, found.rule.name, found.limits.max_output_tokens)
    assert names == {
        "gpt-4.1-mini": ("ns/chat", "mini", 5),
        "gpt-4.1": ("ns/chat", "large", 5),
        "o3": ("ns/chat", "rest", 5),
    }


def test_header_conditions_are_looked_at_in_every_call() -> None:
    """Calls of one endpoint and model part by their header fields, whichever came first."""
    premium = RuleMatch(models=("m",), headers=(HeaderMatch(name="X-Tier", value="premium"),))
    router = Router(policy(rule("premium", premium), rule("rest")))
    names = []
    for tier in ("free", "premium", "free", "premium"):
        found = router.route(RequestFacts(endpoint=CHAT, model="m"), {"x-tier": tier}, 0.0)
        assert isinstance(found, Route)
        assert found.rule is not None
        names.append(found.rule.name)
    assert names == ["rest", "premium", "rest", "premium"]


def test_models_that_callers_make_up_are_remembered_within_bounds() -> None:
    """However many models callers name, each finds its rule, and what is remembered stays bounded."""
    router = Router(policy(rule("even", RuleMatch(models=("even*",))), rule("rest")))
    for number in range(MAX_KNOWN_KINDS + 10):
        name = "even" if number % 2 == 0 else "odd"
        found = router.route(RequestFacts(endpoint=CHAT, model=f"{name}-{number}"), {}, 0.0)
        assert isinstance(found, Route)
        assert found.rule is not None
        assert found.rule.name == ("even" if number % 2 == 0 else "rest")
    before = len(router)
    router.route(RequestFacts(endpoint=CHAT, model="x" * 10_000), {}, 0.0)
    assert before == len(router) <= MAX_KNOWN_KINDS


def test_a_call_without_a_rule_goes_to_the_default_upstream_or_nowhere() -> None:
    """A pod without routes still reaches the only upstream there is."""
    facts = RequestFacts(endpoint=CHAT, model="m")
    found = route(policy(default="ns/only"), facts, {}, 0.0)
    assert isinstance(found, Route)
    assert (found.target.upstream, found.rule, found.split, found.fallbacks) == ("ns/only", None, None, ())
    assert route(policy(rule("r", RuleMatch(models=("x",)))), facts, {}, 0.0) == NoRoute(model="m")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any))
def test_targets_share_calls_by_weight(weights: list[int]) -> None:
    """Even draws give each target exactly its share; weight 0 gets nothing."""
    router = Router(policy(rule("r", weights=tuple(weights))))
    total = sum(weights)
    got = dict.fromkeys((f"t{number}" for number in range(len(weights))), 0)
    for number in range(total):
        found = router.route(RequestFacts(endpoint=CHAT), {}, (number + 0.5) / total)
        assert isinstance(found, Route)
        got[found.target.name] += 1
    assert list(got.values()) == weights
