"""Routes as policy: references resolved, what can serve nothing left out, precedence settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sluice_core.api.modelroute import Authorization, CachedAnswer, Fallback, ModelRoute, RouteRule
from sluice_core.compile.selectors import overlap, selects_any, specificity
from sluice_core.compile.upstreams import UpstreamIndex
from sluice_core.problems import Reason, Report, ResourceId
from sluice_core.snapshot import (
    CachedFallbackPolicy,
    FallbackPolicy,
    RoutePolicy,
    RulePolicy,
    SplitPolicy,
    TargetPolicy,
)

PodLabels = Sequence[Mapping[str, str]]
"""The labels of the pods of one namespace."""

RuleId = tuple[str, str]
"""A route's key and a rule's name."""

_Listed = tuple[FallbackPolicy | CachedAnswer, ...]
"""The fallbacks of a rule, in the order in which they are written."""


def precedence(route: ModelRoute) -> tuple[int, str]:
    """Return the sort key of routes that select the same pod: more requirements go first, then the name decides."""
    return (-specificity(route.spec.workloads), route.key)


def compile_route(
    route: ModelRoute, upstreams: UpstreamIndex, splits: Mapping[RuleId, SplitPolicy], report: Report
) -> RoutePolicy:
    """Return a route's policy.

    A target or fallback whose upstream cannot be used is left out, alone. In a rule that is left without targets the
    first fallback takes their place, if it is an upstream. Otherwise the rule keeps its place with nothing in it: its
    calls are refused, because the next rule's upstream may be none that they may go to.
    """
    resource = ResourceId("ModelRoute", route.key)
    policies: list[RulePolicy] = []
    for index, rule in enumerate(route.spec.rules):
        path = f"spec.rules[{index}]"
        split = splits.get((route.key, rule.name))
        policies.append(_compile_rule(route, rule, path, upstreams, split, report))
    _check_reachable(route, resource, report)
    return RoutePolicy(key=route.key, workloads=route.spec.workloads, rules=tuple(policies))


def _compile_rule(
    route: ModelRoute, rule: RouteRule, path: str, upstreams: UpstreamIndex, split: SplitPolicy | None, report: Report
) -> RulePolicy:
    resource, namespace = ResourceId("ModelRoute", route.key), route.metadata.namespace
    targets: list[TargetPolicy] = []
    for index, target in enumerate(rule.targets):
        where = f"{path}.targets[{index}].upstreamRef"
        key = upstreams.resolve(target.upstream_ref, namespace, resource, where, report)
        if key is not None and target.weight > 0:
            targets.append(TargetPolicy(name=target.name, upstream=key, model=target.model, weight=target.weight))
    listed = _compile_fallbacks(rule.fallbacks, namespace, resource, path, upstreams, report)
    if not targets:
        targets, listed = _promoted(listed)
        remaining = f"its fallback {targets[0].upstream} serves" if targets else "its calls are refused"
        message = f"no target of rule {rule.name} can be used, so {remaining}; mend one of its upstreamRefs"
        report.error(resource, Reason.NO_TARGET_LEFT, f"{path}.targets", message)
    fallbacks = tuple(each for each in listed if isinstance(each, FallbackPolicy))
    if rule.authorization is Authorization.APPLICATION:
        _check_hosts([*targets, *fallbacks], resource, path, upstreams, report)
    return RulePolicy(
        name=rule.name,
        match=rule.match,
        targets=tuple(targets),
        fallbacks=fallbacks,
        cached_fallbacks=tuple(
            CachedFallbackPolicy(place=place, max_age_seconds=each.max_age_seconds)
            for place, each in enumerate(listed)
            if isinstance(each, CachedAnswer)
        ),
        limits=rule.limits,
        cache=rule.cache,
        authorization=rule.authorization,
        on_client_disconnect=rule.on_client_disconnect,
        split=split,
    )


def _check_hosts(
    served: Sequence[TargetPolicy | FallbackPolicy],
    resource: ResourceId,
    path: str,
    upstreams: UpstreamIndex,
    report: Report,
) -> None:
    urls = (upstreams.policies[each.upstream].base_url for each in served if each.upstream is not None)
    hosts = sorted({"/".join(url.split("/", 3)[:3]) for url in urls})
    if len(hosts) > 1:
        message = (
            f"the application's own key is sent to all of {', '.join(hosts)}; "
            "use authorization: Upstream, or upstreams of one provider"
        )
        report.warning(resource, Reason.APPLICATION_KEY_SHARED, f"{path}.authorization", message)


def _promoted(listed: _Listed) -> tuple[list[TargetPolicy], _Listed]:
    """Return the first fallback that can be asked as the only target, and the fallbacks that remain."""
    first = next((each for each in listed if isinstance(each, FallbackPolicy)), None)
    if first is None or first.upstream is None:
        return [], listed
    rest = tuple(each for each in listed if each is not first)
    return [TargetPolicy(name="fallback", upstream=first.upstream, model=first.model)], rest


def _compile_fallbacks(
    fallbacks: Sequence[Fallback],
    namespace: str,
    resource: ResourceId,
    path: str,
    upstreams: UpstreamIndex,
    report: Report,
) -> _Listed:
    kept: list[FallbackPolicy | CachedAnswer] = []
    for index, fallback in enumerate(fallbacks):
        where = f"{path}.fallbacks[{index}]"
        last = kept[-1] if kept else None
        if isinstance(last, FallbackPolicy) and last.static_message is not None:
            message = "the fixed answer before it always succeeds; put this one first, or remove it"
            report.warning(resource, Reason.FALLBACK_UNREACHABLE, where, message)
            break
        if fallback.static is not None:
            kept.append(FallbackPolicy(static_message=fallback.static.message))
        elif fallback.cached is not None:
            kept.append(fallback.cached)
        elif fallback.upstream_ref is not None:
            key = upstreams.resolve(fallback.upstream_ref, namespace, resource, f"{where}.upstreamRef", report)
            if key is not None:
                kept.append(FallbackPolicy(upstream=key, model=fallback.model))
    return tuple(kept)


def _check_reachable(route: ModelRoute, resource: ResourceId, report: Report) -> None:
    for index, rule in enumerate(route.spec.rules[:-1]):
        if not rule.match:
            following = ", ".join(each.name for each in route.spec.rules[index + 1 :])
            message = f"rule {rule.name} matches every call, so these are never tried: {following}; move it to the end"
            report.warning(resource, Reason.RULE_UNREACHABLE, f"spec.rules[{index}].match", message)
            return


def check_selection(routes: Sequence[ModelRoute], pods: PodLabels | None, report: Report) -> None:
    """Note what is odd about which pods the routes of one namespace select. They come in order of precedence."""
    for index, route in enumerate(routes):
        resource = ResourceId("ModelRoute", route.key)
        if pods is not None and not selects_any(route.spec.workloads, pods):
            message = "no injected pod of this namespace has these labels; correct them, or label and restart the pods"
            report.warning(resource, Reason.NOBODY_SELECTED, "spec.workloads", message)
        for earlier in routes[:index]:
            equal = specificity(earlier.spec.workloads) == specificity(route.spec.workloads)
            if equal and overlap(earlier.spec.workloads, route.spec.workloads, pods):
                message = (
                    f"selects the same pods as {earlier.key} with as many requirements, so the rules of {earlier.key} "
                    "go first by name; make one selector more specific, or join the two"
                )
                report.warning(resource, Reason.ROUTES_OVERLAP, "spec.workloads", message)
