"""Every reason that a condition can have, provoked in the operator; its message names the place and the mend."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sluice_operator
from sluice_core.compile import Reason
from sluice_operator.kinds import (
    CANARY_SPLITS,
    MODEL_ROUTES,
    NAMESPACES,
    QUOTA_ALLOCATIONS,
    SECRETS,
    UPSTREAMS,
    ResourceType,
)

Json = dict[str, Any]
Prepare = Callable[[Any], None]
OPENAI = {"name": "openai", "namespace": "platform"}
CHAT = {"matchLabels": {"app": "chat"}}


class Case(NamedTuple):
    """What is done to a sound cluster, the resource and condition to look at, and words that its message must hold."""

    reason: str
    type: ResourceType
    name: str
    condition: str
    status: str
    words: str
    prepare: Prepare


def rule(name: str = "default", **fields: Any) -> Json:
    return {"name": name, "targets": [{"upstreamRef": OPENAI, "model": "gpt-4.1"}], **fields}


def put_route(*rules: Json, name: str = "chat", **spec: Any) -> Prepare:
    return lambda api: api.put(MODEL_ROUTES, name, "team", spec={"rules": list(rules), **spec})


def put_upstream(**spec: Any) -> Prepare:
    def put(api: Any) -> None:
        before = api.object(UPSTREAMS, "openai", "platform")["spec"]
        api.put(UPSTREAMS, "openai", "platform", spec={**before, **spec})

    return put


def quota(*allocations: Json, namespace: str = "platform", name: str = "q", **spec: Any) -> Prepare:
    def put(api: Any) -> None:
        put_upstream(limits={"requestsPerMinute": 100})(api)
        content = {"upstreamRef": OPENAI, "allocations": list(allocations), **spec}
        api.put(QUOTA_ALLOCATIONS, name, namespace, spec=content)

    return put


def share(name: str = "chat", percent: int = 10, **fields: Any) -> Json:
    return {"name": name, "workloads": CHAT, "sharePercent": percent, **fields}


def put_split(name: str = "prompt", route: str = "chat", rule_name: str = "default", **candidate: Any) -> Prepare:
    spec = {
        "routeRef": {"name": route, "rule": rule_name},
        "stable": {"version": "v1"},
        "candidate": {"version": "v2", **candidate},
    }
    return lambda api: api.put(CANARY_SPLITS, name, "team", spec=spec)


def both(*steps: Prepare) -> Prepare:
    def do(api: Any) -> None:
        for step in steps:
            step(api)

    return do


def fails(status: int, method: str, path: str) -> Prepare:
    return lambda api: api.fail(status, "Reason", method=method, path=path, times=100)


def missing(name: str = "nowhere") -> Json:
    return {"upstreamRef": {"name": name}, "model": "gpt-4.1"}


R, U, Q, S = MODEL_ROUTES, UPSTREAMS, QUOTA_ALLOCATIONS, CANARY_SPLITS
STATIC = {"static": {"message": "later"}}
CASES = [
    Case(
        "Invalid",
        R,
        "chat",
        "Accepted",
        "False",
        "left out until this is corrected",
        lambda api: api.put(R, "chat", "team", spec={"rules": 1}),
    ),
    Case("UpstreamNotFound", R, "chat", "ResolvedRefs", "False", "create it", put_route(rule(targets=[missing()]))),
    Case(
        "UpstreamNotAllowed",
        R,
        "chat",
        "ResolvedRefs",
        "False",
        "its owner can allow it in spec.allowedNamespaces",
        lambda api: api.put(NAMESPACES, "team", metadata={"labels": {"team": "no"}}),
    ),
    Case(
        "NoTargetLeft",
        R,
        "chat",
        "Accepted",
        "False",
        "mend one of its upstreamRefs",
        put_route(rule(targets=[missing()])),
    ),
    Case(
        "FallbackUnreachable",
        R,
        "chat",
        "Accepted",
        "True",
        "put this one first, or remove it",
        put_route(rule(fallbacks=[STATIC, {"upstreamRef": OPENAI, "model": "gpt-4.1-mini"}])),
    ),
    Case(
        "RuleUnreachable", R, "chat", "Conflicted", "True", "move it to the end", put_route(rule("all"), rule("never"))
    ),
    Case(
        "RoutesOverlap",
        R,
        "other",
        "Conflicted",
        "True",
        "make one selector more specific",
        put_route(rule(), name="other"),
    ),
    Case(
        "ApplicationKeyShared",
        R,
        "chat",
        "Accepted",
        "True",
        "use authorization: Upstream",
        both(
            lambda api: api.put(UPSTREAMS, "other", "team", spec={"baseURL": "https://other.example/v1"}),
            put_route(rule(authorization="Application", fallbacks=[{"upstreamRef": {"name": "other"}, "model": "m"}])),
        ),
    ),
    Case(
        "NobodySelected",
        R,
        "chat",
        "WorkloadsSelected",
        "False",
        "label and restart the pods",
        put_route(rule(), workloads={"matchLabels": {"app": "none"}}),
    ),
    Case(
        "QuotaConflict",
        Q,
        "z",
        "Conflicted",
        "True",
        "move these allocations into it",
        both(quota(share()), quota(share(), name="z")),
    ),
    Case(
        "NotOwned", Q, "q", "ResolvedRefs", "False", "move it to namespace platform", quota(share(), namespace="team")
    ),
    Case("AllocationUnreachable", Q, "q", "Conflicted", "True", "put b first", quota(share("a"), share("b"))),
    Case("AllocationNameTaken", Q, "q", "Conflicted", "True", "choose another one", quota(share("a"), share("a"))),
    Case("SharesExceedWhole", Q, "q", "Accepted", "False", "lower them to 100", quota(share("a", 70), share("b", 70))),
    Case(
        "NothingToShare",
        Q,
        "q",
        "Accepted",
        "True",
        "set its tier or limits",
        both(quota(share()), put_upstream(limits={})),
    ),
    Case(
        "UnknownTimeZone",
        Q,
        "q",
        "Accepted",
        "False",
        "use a name such as",
        quota(share(budget={"dailyUSD": "1", "timeZone": "Mars/Olympus"})),
    ),
    Case(
        "PriceImplausible",
        U,
        "openai",
        "Accepted",
        "True",
        "give dollars, not cents",
        put_upstream(prices=[{"model": "m", "inputPerMillion": "4000", "outputPerMillion": "16000"}]),
    ),
    Case("NoCredentials", U, "openai", "ResolvedRefs", "True", "name a Secret", put_upstream(credentials=[])),
    Case(
        "RouteNotFound",
        S,
        "prompt",
        "ResolvedRefs",
        "False",
        "create it, or correct the name",
        put_split(route="nowhere"),
    ),
    Case(
        "RuleNotFound",
        S,
        "prompt",
        "ResolvedRefs",
        "False",
        "correct it to one of default",
        put_split(rule_name="nowhere"),
    ),
    Case(
        "SplitConflict",
        S,
        "second",
        "Conflicted",
        "True",
        "delete one of the two",
        both(put_split(), put_split("second")),
    ),
    Case(
        "OverrideForbidden",
        S,
        "prompt",
        "Accepted",
        "False",
        "use the arm's field model",
        put_split(overrides={"model": "gpt-4.1"}),
    ),
    Case(
        "SecretNotFound",
        U,
        "openai",
        "ResolvedRefs",
        "False",
        "create it with the key primary",
        lambda api: api.remove(SECRETS, "openai", "platform"),
    ),
    Case(
        "SecretKeyNotFound",
        U,
        "openai",
        "ResolvedRefs",
        "False",
        "add it, or correct the name",
        lambda api: api.put(SECRETS, "openai", "platform", data={"other": "eA=="}),
    ),
    Case(
        "SecretUnreadable",
        U,
        "openai",
        "ResolvedRefs",
        "False",
        "the right to get Secrets",
        fails(403, "get", "/secrets/openai"),
    ),
    Case("PolicyNotWritten", R, "chat", "Ready", "False", "it is tried again", fails(500, "patch", "/configmaps/")),
    Case(
        "PolicyConflict",
        R,
        "chat",
        "Ready",
        "False",
        "it is written again within seconds",
        fails(409, "patch", "/configmaps/"),
    ),
    Case("NamespaceGone", R, "chat", "Ready", "False", "this passes", fails(404, "patch", "/configmaps/")),
    Case(
        "CredentialsNotWritten",
        R,
        "chat",
        "Ready",
        "False",
        "it is tried again",
        fails(500, "patch", "/secrets/sluice"),
    ),
    Case("NoReports", R, "chat", "ConfigSynced", "Unknown", "container sluice", lambda api: None),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
async def test_a_reason_says_what_to_do(operator, api, team, seen, case: Case):
    """The condition has the reason, and a message from which its reader knows what to change."""
    case.prepare(api)
    await operator.round()
    namespace = next(key[1] for key in api.stored if key[0] == case.type.plural and key[2] == case.name)
    found = seen.condition(case.type, case.name, namespace, case.condition)
    assert (found["status"], found["reason"]) == (case.status, case.reason)
    assert case.words in found["message"]


def test_no_reason_is_left_out():
    """A new reason needs a case here, so that its message is looked at once."""
    source = "".join(path.read_text() for path in Path(sluice_operator.__file__).parent.glob("*.py"))
    told = set(re.findall(r'(?:NotPublished|Finding)\(\s*reason="(\w+)"', source)) | {each.value for each in Reason}
    assert told - {case.reason for case in CASES} == {"PolicyTooLarge"}  # needs a large policy: see the faults
