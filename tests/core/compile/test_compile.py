"""The compiler: what is in force for whom, and what is said about what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from sluice_core import snapshot
from sluice_core.api.canarysplit import ArmSpec
from sluice_core.api.manifests import AnyResource, parse
from sluice_core.api.modelroute import Endpoint
from sluice_core.api.upstream import Limits, Tier
from sluice_core.compile import UNALLOCATED, Compiled, Problem, Reason, ResourceId, Severity, compile_namespaces
from sluice_core.compile.tiers import PRESETS, effective_limits
from sluice_core.request import RequestFacts
from sluice_core.rollout.revisions import content_of, revision_of
from sluice_core.routing import NoRoute, route
from sluice_core.selection import select

CHAT = {"matchLabels": {"app": "chat"}}


def resource(kind: str, name: str, spec: dict[str, Any], **metadata: str) -> AnyResource:
    """Return a resource from what a user would write."""
    manifest = {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop", **metadata},
        "spec": spec,
    }
    parsed = parse(manifest)
    assert not isinstance(parsed, Problem), parsed
    return parsed


def upstream(name: str = "openai", *, namespace: str = "shop", **spec: Any) -> AnyResource:
    """Return an upstream without any of the things that would be remarked upon."""
    return resource("Upstream", name, {"baseURL": f"http://{name}/v1", **spec}, namespace=namespace)


def rule(name: str = "default", *upstreams: str, **more: Any) -> dict[str, Any]:
    """Return a rule with one target for each upstream."""
    targets = [{"name": each, "upstreamRef": {"name": each}} for each in upstreams or ("openai",)]
    return {"name": name, "targets": targets, **more}


def model_route(name: str = "chat", *rules: dict[str, Any], workloads: Any = CHAT, **metadata: str) -> AnyResource:
    """Return a route for the pods of the chat."""
    return resource("ModelRoute", name, {"workloads": workloads, "rules": list(rules or (rule(),))}, **metadata)


def quota(name: str = "openai", *allocations: dict[str, Any], upstream: str = "openai", **more: Any) -> AnyResource:
    """Return a quota over an upstream."""
    metadata = {key: more.pop(key) for key in ("namespace", "creationTimestamp") if key in more}
    spec = {"upstreamRef": {"name": upstream}, "allocations": list(allocations or ({"name": "chat"},)), **more}
    return resource("QuotaAllocation", name, spec, **metadata)


def split(name: str = "prompt", *, status: dict[str, Any] | None = None, **more: Any) -> AnyResource:
    """Return a split of the chat's only rule."""
    metadata = {key: more.pop(key) for key in ("creationTimestamp",) if key in more}
    spec = {"routeRef": {"name": "chat"}, "stable": {"version": "v1"}, "candidate": {"version": "v2"}, **more}
    made = resource("CanarySplit", name, spec, **metadata)
    return msgspec.convert({**msgspec.to_builtins(made), "status": status or {}}, type(made))


def compiled(*resources: AnyResource, pods: Mapping[str, Any] | None = None, **namespaces: dict[str, str]) -> Compiled:
    """Compile for the namespace "shop", and others given with their labels."""
    return compile_namespaces(resources, {"shop": {}, **namespaces}, pods)


def reasons(result: Compiled, kind: str, name: str, namespace: str = "shop") -> list[Reason]:
    """Return the reasons of a resource's problems."""
    return [problem.reason for problem in result.problems.get(ResourceId(kind, f"{namespace}/{name}"), ())]


def only_rule(result: Compiled) -> snapshot.RulePolicy:
    """Return the only rule of the namespace "shop"."""
    (only,) = result.snapshots["shop"].routes
    return only.rules[0]


def test_a_namespace_without_resources_has_an_empty_snapshot() -> None:
    """Every namespace that is asked for gets a snapshot, so that a pod in it knows that there is nothing for it."""
    result = compiled()
    assert result.snapshots["shop"] == snapshot.seal(snapshot.Snapshot(namespace="shop"))
    assert result.problems == {}


def test_a_whole_policy_compiles_without_a_remark() -> None:
    """References become keys, and keys of the account become names of files."""
    credentials = [{"name": "primary", "secretKeyRef": {"name": "openai", "key": "k"}}]
    result = compiled(
        upstream(tier="Tier1", credentials=credentials),
        model_route(),
        quota("q", {"name": "chat", "workloads": CHAT, "sharePercent": 60}),
        split(status={"weight": 25, "revision": "", "salt": "pepper"}),
    )
    assert result.problems == {}
    policy = result.snapshots["shop"]
    assert [each.file for each in policy.upstreams[0].credentials] == ["shop.openai.primary"]
    assert only_rule(result).targets[0].upstream == "shop/openai"
    assert [each.name for each in policy.quotas[0].allocations] == ["chat", UNALLOCATED]
    assert result.consumers == {"shop/openai": 2}


@pytest.mark.parametrize(
    ("tier", "requests", "tokens"),
    [
        (Tier.FREE, 3, 40_000),
        (Tier.TIER1, 60, 1_000_000),
        (Tier.TIER2, 5_000, 10_000_000),
        (Tier.TIER3, 10_000, 20_000_000),
        (Tier.TIER4, 30_000, 50_000_000),
        (Tier.TIER5, 60_000, 100_000_000),
    ],
)
def test_a_tier_presets_limits(tier: Tier, requests: int, tokens: int) -> None:
    """The presets are the published figures; what a tier says nothing about has no limit."""
    assert effective_limits(tier, Limits()) == Limits(
        requests_per_minute=requests, tokens_per_minute=tokens, requests_per_day=0, concurrency=0
    )
    assert len(PRESETS) == len(Tier)


def test_an_explicit_limit_overrides_the_tiers_even_by_none() -> None:
    """0 is "no limit", and is not mistaken for "not given"."""
    limits = effective_limits(Tier.TIER1, Limits(requests_per_minute=0, concurrency=5))
    assert limits == Limits(requests_per_minute=0, tokens_per_minute=1_000_000, requests_per_day=0, concurrency=5)


def test_an_upstream_of_another_namespace_needs_its_owners_leave() -> None:
    """Only namespaces that the owner selects get the upstream, and with it the names of its keys."""
    shared = upstream(namespace="platform", allowedNamespaces={"selector": {"matchLabels": {"team": "shop"}}})
    target = {"name": "main", "upstreamRef": {"name": "openai", "namespace": "platform"}}
    route_to_it = resource("ModelRoute", "chat", {"rules": [{"name": "default", "targets": [target]}]})

    allowed = compile_namespaces([shared, route_to_it], {"shop": {"team": "shop"}, "platform": {}})
    assert [each.key for each in allowed.snapshots["shop"].upstreams] == ["platform/openai"]
    assert allowed.problems == {}

    refused = compile_namespaces([shared, route_to_it], {"shop": {"team": "search"}, "platform": {}})
    assert refused.snapshots["shop"].upstreams == ()
    assert Reason.UPSTREAM_NOT_ALLOWED in reasons(refused, "ModelRoute", "chat")


def test_a_namespace_without_a_snapshot_is_judged_by_its_labels_too() -> None:
    """A route may be written before the first pod of its namespace; it is not called forbidden for that."""
    shared = upstream(namespace="platform", allowedNamespaces={"selector": {"matchLabels": {"team": "shop"}}})
    target = {"upstreamRef": {"name": "openai", "namespace": "platform"}}
    early = resource("ModelRoute", "chat", {"rules": [{"name": "default", "targets": [target]}]})
    result = compile_namespaces([shared, early], {}, others={"shop": {"team": "shop"}})
    assert (result.problems, result.snapshots) == ({}, {})


def test_a_namespace_can_be_allowed_by_name() -> None:
    """The label that the API server puts on every namespace can be selected, though no manifest says it."""
    by_name = {"selector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}
    target = {"upstreamRef": {"name": "openai", "namespace": "platform"}}
    result = compiled(
        upstream(namespace="platform", allowedNamespaces=by_name),
        resource("ModelRoute", "chat", {"rules": [{"name": "default", "targets": [target]}]}),
    )
    assert result.problems == {}


def test_an_upstream_that_nobody_references_is_not_handed_out() -> None:
    """Leave to use an upstream is not yet use of it: its keys go only where a route references it."""
    result = compiled(upstream(namespace="platform", allowedNamespaces={"selector": {}}))
    assert result.snapshots["shop"].upstreams == ()


def test_a_bad_target_is_left_out_alone() -> None:
    """The other targets of its rule go on, and so do the other rules."""
    result = compiled(upstream(), model_route("chat", rule("a", "openai", "gone"), rule("b", match=[])))
    assert [each.upstream for each in only_rule(result).targets] == ["shop/openai"]
    assert len(result.snapshots["shop"].routes[0].rules) == 2
    (problem,) = [each for each in result.problems[ResourceId("ModelRoute", "shop/chat")] if each.severity == "Error"]
    assert problem.path == "spec.rules[0].targets[1].upstreamRef"


def test_a_rule_without_targets_is_served_by_its_fallback() -> None:
    """Fallbacks are there for upstreams that cannot serve; one that does not exist is one of them."""
    result = compiled(
        upstream(), model_route("chat", rule("a", "gone", fallbacks=[{"upstreamRef": {"name": "openai"}}]))
    )
    assert [each.upstream for each in only_rule(result).targets] == ["shop/openai"]
    assert only_rule(result).fallbacks == ()
    assert Reason.NO_TARGET_LEFT in reasons(result, "ModelRoute", "chat")


CACHED: list[dict[str, Any]] = [
    {"cached": {"maxAgeSeconds": 7200}},
    {"upstreamRef": {"name": "openai"}, "model": "m"},
    {"cached": {}},
    {"static": {"message": "Sorry."}},
]


def test_an_earlier_answer_has_its_place_among_the_fallbacks() -> None:
    """It stands beside the others, so that they mean the same to a sidecar that does not know it."""
    found = only_rule(compiled(upstream(), model_route("chat", rule("a", cache={"ttlSeconds": 60}, fallbacks=CACHED))))
    assert [(each.model, each.static_message) for each in found.fallbacks] == [("m", None), (None, "Sorry.")]
    assert [(each.place, each.max_age_seconds) for each in found.cached_fallbacks] == [(0, 7200), (2, 86_400)]
    assert found.cache is not None
    assert (found.cache.ttl_seconds, found.cache.coalesce, found.cache.user_key) == (60, True, ())


def test_a_rule_without_targets_keeps_its_earlier_answers() -> None:
    """The first fallback that can be asked takes the place of the targets; the others keep their order."""
    found = only_rule(compiled(upstream(), model_route("chat", rule("a", "gone", cache={}, fallbacks=CACHED))))
    assert [each.model for each in found.targets] == ["m"]
    assert [each.static_message for each in found.fallbacks] == ["Sorry."]
    assert [each.place for each in found.cached_fallbacks] == [0, 1]


def test_calls_of_a_rule_that_nothing_can_serve_are_refused() -> None:
    """They do not slip through to the next rule, whose upstream may be none that they may go to."""
    result = compiled(upstream(), model_route("chat", rule("eu", "gone"), rule("rest")))
    facts = RequestFacts(endpoint=Endpoint.CHAT_COMPLETIONS, model="gpt-4.1")
    found = route(select(result.snapshots["shop"], {"app": "chat"}), facts, {}, 0.5)
    assert isinstance(found, NoRoute)
    assert found.rule == "eu"


def test_the_more_specific_route_goes_first_then_the_name() -> None:
    """Precedence does not depend on the order in which resources arrive."""
    narrow = {"matchLabels": {"app": "chat", "tier": "free"}}
    routes = [
        model_route("b", workloads={}),
        model_route("c"),
        model_route("d", workloads=narrow),
        model_route("a", workloads={"matchLabels": {"team": "x"}}),
    ]
    result = compiled(upstream(), *routes)
    assert [each.key for each in result.snapshots["shop"].routes] == ["shop/d", "shop/a", "shop/c", "shop/b"]
    assert result.problems == {}
    chosen = select(result.snapshots["shop"], {"app": "chat"})
    assert [each.key for each in chosen.routes] == ["shop/c", "shop/b"]


def test_routes_that_meet_in_a_pod_are_told() -> None:
    """Different selectors are only said to overlap if there is a pod that both select."""
    routes = (upstream(), model_route("a", workloads={"matchLabels": {"team": "x"}}), model_route("b"))
    together = compiled(*routes, pods={"shop": [{"app": "chat", "team": "x"}]})
    assert reasons(together, "ModelRoute", "b") == [Reason.ROUTES_OVERLAP]
    apart = compiled(*routes, pods={"shop": [{"app": "chat"}, {"team": "x"}]})
    assert apart.problems == {}


def test_what_selects_nobody_is_told_when_pods_are_known() -> None:
    """Without pods to look at, nothing is claimed about them."""
    resources = (upstream(tier="Tier1"), model_route(), quota("q", {"name": "chat", "workloads": CHAT}))
    assert compiled(*resources).problems == {}
    lonely = compiled(*resources, pods={"shop": [{"app": "other"}]})
    assert reasons(lonely, "ModelRoute", "chat") == [Reason.NOBODY_SELECTED]
    assert reasons(lonely, "QuotaAllocation", "q") == [Reason.NOBODY_SELECTED]


def test_of_two_quotas_the_older_one_counts() -> None:
    """A newcomer cannot take over an account that is shared out already, whatever its name."""
    result = compiled(
        upstream(tier="Tier1"),
        quota("a", {"name": "new"}, creationTimestamp="2026-02-01T00:00:00Z"),
        quota("b", {"name": "old"}, creationTimestamp="2026-01-01T00:00:00Z"),
    )
    assert result.snapshots["shop"].quotas[0].key == "shop/b"
    assert reasons(result, "QuotaAllocation", "a") == [Reason.QUOTA_CONFLICT]


def test_only_the_owner_of_an_account_shares_it_out() -> None:
    """A consumer's quota over another namespace's upstream is not in force."""
    mine = resource(
        "QuotaAllocation",
        "mine",
        {
            "upstreamRef": {"name": "openai", "namespace": "platform"},
            "allocations": [{"name": "all", "sharePercent": 100}],
        },
    )
    result = compiled(upstream(namespace="platform", allowedNamespaces={"selector": {}}), mine)
    assert reasons(result, "QuotaAllocation", "mine") == [Reason.NOT_OWNED]
    assert [each.key for each in result.quotas] == ["platform/openai:whole"]


def test_an_upstream_without_quota_has_one_allocation_for_all() -> None:
    """Its limits hold all the same: they are shared by whoever calls."""
    result = compiled(upstream(tier="Tier1"))
    (only,) = result.snapshots["shop"].quotas[0].allocations
    assert (only.name, only.share_percent) == (UNALLOCATED, 100)


def test_pods_that_no_allocation_selects_have_no_guaranteed_share() -> None:
    """They are still under the upstream's limits."""
    result = compiled(upstream(tier="Tier1"), quota("q", {"name": "chat", "workloads": CHAT, "sharePercent": 60}))
    _, allocation = select(result.snapshots["shop"], {"app": "other"}).quotas["shop/openai"]
    assert (allocation.name, allocation.share_percent) == (UNALLOCATED, 0)


def test_an_allocation_can_be_for_some_namespaces() -> None:
    """A pod gets the first allocation that selects both its namespace and its labels; the whole has all of them."""
    shared = upstream(namespace="shop", tier="Tier1", allowedNamespaces={"selector": {}})
    shares = quota(
        "q",
        {"name": "search", "namespaces": {"matchLabels": {"team": "search"}}, "sharePercent": 40},
        {"name": "rest", "sharePercent": 60},
    )
    target = {"upstreamRef": {"name": "openai", "namespace": "shop"}}
    consumer = resource("ModelRoute", "r", {"rules": [{"name": "a", "targets": [target]}]}, namespace="find")
    result = compile_namespaces([shared, shares, consumer], {"shop": {}, "find": {"team": "search"}})

    def named(namespace: str) -> list[str]:
        return [each.name for each in result.snapshots[namespace].quotas[0].allocations]

    assert named("shop") == ["rest", UNALLOCATED]
    assert named("find") == ["search", "rest", UNALLOCATED]
    assert [each.name for each in result.quotas[0].allocations] == ["search", "rest", UNALLOCATED]


def test_shares_above_the_whole_are_cut_in_proportion() -> None:
    """Nothing promised can exceed what there is, even if a rule of the schema was got round."""
    shares = ({"name": "a", "sharePercent": 90}, {"name": "b", "workloads": CHAT, "sharePercent": 60})
    result = compiled(upstream(tier="Tier1"), quota("q", *shares))
    assert [each.share_percent for each in result.quotas[0].allocations] == [60, 40, 0]
    assert Reason.SHARES_EXCEED_WHOLE in reasons(result, "QuotaAllocation", "q")


def test_an_allocation_cannot_take_a_name_that_is_taken() -> None:
    """Neither twice nor that of the pods that are left over, even if the schema was got round."""
    result = compiled(upstream(tier="Tier1"), quota("q", {"name": "a"}, {"name": "a"}, {"name": UNALLOCATED}))
    assert [each.name for each in result.quotas[0].allocations] == ["a", UNALLOCATED]
    assert reasons(result, "QuotaAllocation", "q") == [Reason.ALLOCATION_NAME_TAKEN] * 2


def test_the_safe_share_is_sized_by_the_pods_of_all_namespaces() -> None:
    """More pods, smaller parts; a pod more or less within a power of two changes nothing."""

    def safe(pods: int) -> int | None:
        result = compiled(
            upstream(tier="Tier5"), quota("q", {"name": "chat", "sharePercent": 100}), pods={"shop": [{}] * pods}
        )
        return result.snapshots["shop"].quotas[0].allocations[0].safe.requests_per_minute

    assert safe(5) == safe(8)
    assert safe(9) == (safe(8) or 0) // 2


def test_a_time_zone_that_does_not_exist_is_utc_and_said() -> None:
    """The budget itself stays in force: a typo must not lift a limit on money."""
    result = compiled(upstream(tier="Tier1"), quota(budget={"dailyUSD": "5", "timeZone": "America"}))
    budget = result.snapshots["shop"].quotas[0].budget
    assert budget is not None
    assert (budget.time_zone, budget.daily_usd) == ("UTC", "5")
    assert reasons(result, "QuotaAllocation", "openai") == [Reason.UNKNOWN_TIME_ZONE]


def test_an_alerts_address_stays_with_the_operator() -> None:
    """It often carries a token; pods do not need it, and their ConfigMap can be read by many."""
    url = "https://hooks.example.com/T0/secret-token"
    budget = {"dailyUSD": "5", "alertURL": url}
    result = compiled(upstream(tier="Tier1"), quota("q", {"name": "chat", "budget": budget}, budget=budget))
    assert b"secret-token" not in snapshot.encode(result.snapshots["shop"])
    assert result.quotas[0].budget is not None
    assert result.quotas[0].budget.alert_url == url


def test_a_split_takes_its_weight_from_the_rollout() -> None:
    """Without a rollout the weight is 0: writing a split moves nobody yet."""
    fresh = only_rule(compiled(upstream(), model_route(), split())).split
    assert fresh is not None
    assert fresh.weight == 0


def test_a_split_under_way_has_the_weight_and_salt_of_its_status() -> None:
    """What the rollout has decided is what pods get, as long as the spec still asks for the same candidate."""
    candidate = {"version": "v2", "model": "gpt-4.1-nano"}
    revision = revision_of(content_of(ArmSpec(version="v2", model="gpt-4.1-nano")), 1)
    status = {"weight": 25, "revision": revision, "salt": "pepper"}
    in_force = only_rule(compiled(upstream(), model_route(), split(candidate=candidate, status=status))).split
    assert in_force is not None
    assert (in_force.weight, in_force.revision, in_force.salt) == (25, revision, "pepper")


def test_of_two_splits_on_a_rule_the_older_one_counts() -> None:
    """A second split cannot disturb a rollout that is under way."""
    result = compiled(
        upstream(),
        model_route(),
        split("a", creationTimestamp="2026-02-01T00:00:00Z"),
        split("b", creationTimestamp="2026-01-01T00:00:00Z"),
    )
    assert reasons(result, "CanarySplit", "a") == [Reason.SPLIT_CONFLICT]
    in_force = only_rule(result).split
    assert in_force is not None
    assert in_force.key == "shop/b"


@pytest.mark.parametrize("name", ["model", "input", "messages", "instructions", "stream"])
def test_an_override_that_is_not_allowed_never_reaches_a_call(name: str) -> None:
    """The stable arm goes on without it, and a candidate that has it gets no calls."""
    arms = {
        "stable": {"version": "v1", "overrides": {name: "x", "temperature": 0}},
        "candidate": {"version": "v2", "overrides": {name: "x"}},
    }
    result = compiled(upstream(), model_route(), split(**arms))
    in_force = only_rule(result).split
    assert in_force is not None
    assert in_force.stable.overrides == {"temperature": 0}
    assert (in_force.candidate.overrides, in_force.weight) == ({}, 0)
    assert reasons(result, "CanarySplit", "prompt") == [Reason.OVERRIDE_FORBIDDEN] * 2


def test_a_split_without_its_rule_is_in_nobodys_way() -> None:
    """The route goes on as if there were no split."""
    result = compiled(upstream(), model_route(), split(routeRef={"name": "chat", "rule": "gone"}))
    assert reasons(result, "CanarySplit", "prompt") == [Reason.RULE_NOT_FOUND]
    assert only_rule(result).split is None


def test_every_problem_names_a_field_and_a_mend() -> None:
    """Problems are ordered, errors first, and their messages are sentences on one line."""
    result = compiled(
        upstream(
            prices=[{"model": "m", "inputPerMillion": "1", "outputPerMillion": "2", "cachedInputPerMillion": "3"}]
        ),
        quota("q", {"name": "a"}, {"name": "b"}),
        model_route("chat", rule("a", "gone"), rule("b")),
    )
    problems = [problem for each in result.problems.values() for problem in each]
    assert {problem.severity for problem in problems} == {Severity.ERROR, Severity.WARNING}
    for problem in problems:
        assert problem.path.startswith("spec.")
        assert "\n" not in problem.message
        assert ";" in problem.message
    assert list(result.problems) == sorted(result.problems)


def test_users_have_an_even_part_of_their_limits_in_each_cluster() -> None:
    """Clusters count users each for itself, so that together they allow no more than was declared."""
    classes = [{"value": "pro", "requestsPerMinute": 60}, {"value": "free", "requestsPerMinute": 2}]
    per_user = {
        "key": {"header": "x-user-id"},
        "requestsPerMinute": 20,
        "tokensPerMinute": 0,
        "dailyUSD": "1.00",
        "classHeader": "x-class",
        "classes": classes,
    }
    chat = {"name": "chat", "sharePercent": 60, "workloads": CHAT, "perUser": per_user}
    store = {"type": "Redis", "url": "redis://redis", "clusters": 3}

    def users(**more: Any) -> Any:
        return compile_namespaces([upstream(), quota("openai", chat, **more)], {"shop": {}}).quotas[0].allocations[0]

    whole, third = users().per_user, users(store=store).per_user
    assert (whole.requests_per_minute, whole.tokens_per_minute, whole.daily_usd) == (20, 0, "1.00")
    assert (third.requests_per_minute, third.tokens_per_minute, third.daily_usd) == (6, 0, "0.333333")
    assert [each.requests_per_minute for each in third.classes] == [20, 1], "no less than one call"
    assert [each.tokens_per_minute for each in third.classes] == [None, None]


def test_a_store_is_named_with_its_password_by_file_and_its_share_of_safety() -> None:
    """Clusters that share an account divide what a pod may use without a slice; the Secret's name stays behind."""
    store = {"type": "Redis", "url": "rediss://redis:6379/1", "secretRef": {"name": "redis", "key": "password"}}
    limits = {"requestsPerMinute": 10_000}
    chat = {"name": "chat", "sharePercent": 60, "workloads": CHAT}
    pods = {"shop": [{"app": "chat"}]}

    def policy(**more: Any) -> snapshot.QuotaPolicy:
        resources = [upstream(limits=limits), quota("openai", chat, store=store | more)]
        return compile_namespaces(resources, {"shop": {}}, pods).snapshots["shop"].quotas[0]

    alone, third = policy(), policy(clusters=3, name="production")
    assert alone.store.name == "shop/openai"
    assert third.store.name == "production"
    assert alone.store.password_file == "shop.openai._store"
    assert (alone.allocations[0].safe.requests_per_minute, third.allocations[0].safe.requests_per_minute) == (300, 100)
    assert alone.safe_reserve == 50 * 60 + 500, "five percent of the share, and half a percent for pods without one"
    assert b"secretRef" not in snapshot.encode(
        compile_namespaces([upstream(), quota(store=store)], {"shop": {}}).snapshots["shop"]
    )
