"""What holds for the compiler whatever the resources are."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_core import snapshot
from sluice_core.api.manifests import AnyResource, parse
from sluice_core.compile import Compiled, Problem, Severity, compile_namespaces
from sluice_core.selection import select

NAMESPACES = {"a": {"team": "x"}, "b": {"team": "y"}}
NAMES = st.sampled_from(["one", "two", "three"])
SELECTORS = st.sampled_from(
    [{}, {"matchLabels": {"app": "chat"}}, {"matchExpressions": [{"key": "app", "operator": "Exists"}]}]
)
REFERENCES = st.builds(
    lambda name, namespace: {"name": name} | ({"namespace": namespace} if namespace else {}),
    NAMES,
    st.sampled_from(["", "a", "b"]),
)
PODS = [{}, {"app": "chat"}, {"app": "batch"}]


def _made(kind: str, spec: dict[str, Any], name: str, namespace: str, age: int) -> AnyResource:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": f"2026-01-0{age}T00:00:00Z"}
    parsed = parse({"apiVersion": "sluice.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
    assert not isinstance(parsed, Problem), parsed
    return parsed


def _resources(kind: str, specs: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[AnyResource]:
    return st.builds(_made, st.just(kind), specs, NAMES, st.sampled_from(["a", "b"]), st.integers(1, 3))


upstreams = _resources(
    "Upstream",
    st.fixed_dictionaries(
        {"credentials": st.just([{"name": "k", "secretKeyRef": {"name": "s", "key": "k"}}])},
        optional={
            "tier": st.sampled_from(["Free", "Tier3"]),
            "allowedNamespaces": st.sampled_from([{"selector": {}}, {"selector": {"matchLabels": {"team": "x"}}}]),
        },
    ),
)
quotas = _resources(
    "QuotaAllocation",
    st.builds(
        lambda reference, shares, zone, selector: {
            "upstreamRef": reference,
            "budget": {"dailyUSD": "1", "timeZone": zone},
            "allocations": [
                {"name": f"n{index}", "sharePercent": share, "workloads": selector if index else {}}
                for index, share in enumerate(shares)
            ],
        },
        REFERENCES,
        st.lists(st.integers(0, 100), min_size=1, max_size=3),
        st.sampled_from(["UTC", "Mars"]),
        SELECTORS,
    ),
)
rules = st.builds(
    lambda targets, fallbacks: {
        "targets": [{"name": f"t{index}", "upstreamRef": each} for index, each in enumerate(targets)],
        "fallbacks": [{"upstreamRef": each} for each in fallbacks],
    },
    st.lists(REFERENCES, min_size=1, max_size=2),
    st.lists(REFERENCES, max_size=2),
)
routes = _resources(
    "ModelRoute",
    st.builds(
        lambda selector, bodies: {
            "workloads": selector,
            "rules": [{"name": f"r{index}", **body} for index, body in enumerate(bodies)],
        },
        SELECTORS,
        st.lists(rules, min_size=1, max_size=2),
    ),
)
splits = _resources(
    "CanarySplit",
    st.builds(
        lambda name, rule, overrides: {
            "routeRef": {"name": name, "rule": rule},
            "stable": {"version": "v1"},
            "candidate": {"version": "v2", "overrides": overrides},
        },
        NAMES,
        st.sampled_from(["r0", "r1", "gone"]),
        st.sampled_from([{}, {"temperature": 0.5}, {"model": "x"}]),
    ),
)


def _key(resource: AnyResource) -> tuple[str, str]:
    return type(resource).__name__, resource.key


clusters = st.lists(st.one_of(upstreams, quotas, routes, splits), max_size=12, unique_by=_key)


def compiled(resources: list[AnyResource]) -> Compiled:
    """Compile for both namespaces, with pods in each."""
    return compile_namespaces(resources, NAMESPACES, dict.fromkeys(NAMESPACES, PODS))


@settings(max_examples=60, deadline=None)
@given(clusters, st.randoms(use_true_random=False))
def test_the_order_of_resources_does_not_matter(resources: list[AnyResource], shuffler: random.Random) -> None:
    """Snapshots, their revisions, the problems and their order are the same for every order of the input."""
    shuffled = list(resources)
    shuffler.shuffle(shuffled)
    one, other = compiled(resources), compiled(shuffled)
    assert one == other
    assert list(one.problems) == list(other.problems)
    assert {name: snapshot.encode(each) for name, each in one.snapshots.items()} == {
        name: snapshot.encode(each) for name, each in other.snapshots.items()
    }


@settings(max_examples=60, deadline=None)
@given(clusters)
def test_a_snapshot_survives_the_file_and_refers_only_to_itself(resources: list[AnyResource]) -> None:
    """What is written is read back equal, and every upstream that it names is in it, allowed for the namespace."""
    for namespace, policy in compiled(resources).snapshots.items():
        assert snapshot.decode(snapshot.encode(policy)) == policy
        known = {each.key for each in policy.upstreams}
        named = {quota.upstream for quota in policy.quotas}
        for route in policy.routes:
            for rule in route.rules:
                named |= {target.upstream for target in rule.targets}
                named |= {fallback.upstream for fallback in rule.fallbacks if fallback.upstream}
        assert named <= known
        assert {quota.upstream for quota in policy.quotas} == known
        by_key = {each.key: each for each in resources if type(each).__name__ == "Upstream"}
        for key in known:
            owner = by_key[key]
            allowed = getattr(owner.spec, "allowed_namespaces", None)
            assert owner.metadata.namespace == namespace or allowed.selector.matches(NAMESPACES[namespace])


@settings(max_examples=60, deadline=None)
@given(clusters)
def test_a_pods_policy_depends_on_its_labels_and_the_snapshot_alone(resources: list[AnyResource]) -> None:
    """Two pods with equal labels are treated alike, and each has exactly one allocation of every upstream."""
    for policy in compiled(resources).snapshots.values():
        reread = snapshot.decode(snapshot.encode(policy))
        for labels in PODS:
            chosen = select(policy, labels)
            assert chosen == select(reread, dict(labels))
            assert chosen.quotas.keys() == chosen.upstreams.keys()
            for quota, allocation in chosen.quotas.values():
                assert allocation.workloads.matches(labels)
                assert sum(each.share_percent for each in quota.allocations) <= 100


@settings(max_examples=80, deadline=None)
@given(clusters, st.data())
def test_a_resource_that_is_not_in_force_changes_nothing_for_the_others(
    resources: list[AnyResource], data: st.DataObject
) -> None:
    """Taking out a split or quota that was refused whole leaves every snapshot as it was, to the byte."""
    before = compiled(resources)
    whole = {"QuotaConflict", "NotOwned", "RouteNotFound", "RuleNotFound", "SplitConflict"}
    refused = [
        each
        for each in before.problems
        if each.kind in {"QuotaAllocation", "CanarySplit"}
        and any(problem.reason in whole | {"UpstreamNotFound"} for problem in before.problems[each])
    ]
    if not refused:
        return
    victim = data.draw(st.sampled_from(refused))
    after = compiled([each for each in resources if _key(each) != tuple(victim)])
    assert after.snapshots == before.snapshots
    assert {each: found for each, found in before.problems.items() if each != victim} == after.problems


@settings(max_examples=80, deadline=None)
@given(clusters, st.one_of(quotas, routes, splits))
def test_a_newcomer_spoils_nothing(resources: list[AnyResource], newcomer: AnyResource) -> None:
    """Whatever is added to a cluster, a resource that was in force without an error stays so."""
    others = [each for each in resources if _key(each) != _key(newcomer)]
    latest = msgspec.structs.replace(newcomer.metadata, creation_timestamp="2026-12-31T00:00:00Z")
    before, after = compiled(others), compiled([*others, msgspec.structs.replace(newcomer, metadata=latest)])

    def unsound(result: Compiled) -> set[Any]:
        has_error = {
            each
            for each, problems in result.problems.items()
            if any(problem.severity is Severity.ERROR for problem in problems)
        }
        return {each for each in has_error if tuple(each) != _key(newcomer)}

    assert unsound(after) <= unsound(before)


def test_the_selection_names_the_default_upstream() -> None:
    """The one called "default", the pod's own namespace first; else the only one; else none."""

    def default(*keys: str) -> str | None:
        policies = tuple(snapshot.UpstreamPolicy(key=key, base_url="http://mock") for key in keys)
        return select(snapshot.Snapshot(namespace="a", upstreams=policies), {}).default_upstream

    assert default("a/x", "a/default", "b/default") == "a/default"
    assert default("a/x", "b/default") == "b/default"
    assert default("a/x") == "a/x"
    assert default("a/x", "a/y") is None
    assert default("b/default", "c/default") is None
    assert default() is None


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", b'{"namespace": "a", "format": 99}'])
def test_what_is_no_snapshot_is_refused(text: bytes) -> None:
    """A sidecar keeps what it has rather than run half a policy."""
    with pytest.raises(snapshot.SnapshotError):
        snapshot.decode(text)


def test_an_edited_snapshot_is_refused() -> None:
    """The revision is that of the content, so a file cut short or changed by hand does not pass for it."""
    sealed = snapshot.seal(snapshot.Snapshot(namespace="shop"))
    text = snapshot.encode(sealed).replace(b"shop", b"shed")
    with pytest.raises(snapshot.SnapshotError, match="does not match its revision"):
        snapshot.decode(text)


class _NewerUpstream(snapshot.UpstreamPolicy, frozen=True, kw_only=True):
    novelty: dict[str, float] = {}


class _NewerSnapshot(snapshot.Snapshot, frozen=True, kw_only=True):
    invention: str = ""


def test_a_snapshot_of_a_newer_version_is_read_without_what_is_new() -> None:
    """Pods keep their sidecar while the operator is upgraded: fields that are new must not stop their policy."""
    upstream = _NewerUpstream(key="shop/openai", base_url="http://mock", novelty={"b": 0.1, "a": 1.0})
    newer = snapshot.seal(_NewerSnapshot(namespace="shop", upstreams=(upstream,), invention="wheel"))

    read = snapshot.decode(snapshot.encode(newer))

    assert (read.revision, read.upstreams[0].base_url) == (newer.revision, "http://mock")
    with pytest.raises(snapshot.SnapshotError, match="does not match its revision"):
        snapshot.decode(snapshot.encode(newer).replace(b"wheel", b"lever"))
