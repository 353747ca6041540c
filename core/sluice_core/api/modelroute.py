"""ModelRoute: where a call goes, by model, endpoint and headers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from msgspec import Meta

from sluice_core.api.base import (
    ATOMIC,
    DNS_LABEL,
    HEADER_NAME,
    LabelSelector,
    Resource,
    Status,
    UpstreamRef,
    Value,
    key_source,
    keyed_by,
    rules,
)

_NAMED_TARGETS: Final = 3
_TARGETS_CHARACTERS: Final = 256


class Endpoint(StrEnum):
    """The OpenAI operations that policy distinguishes; everything else under /v1 is Other."""

    CHAT_COMPLETIONS = "ChatCompletions"
    RESPONSES = "Responses"
    COMPLETIONS = "Completions"
    EMBEDDINGS = "Embeddings"
    IMAGES = "Images"
    AUDIO = "Audio"
    MODERATIONS = "Moderations"
    FILES = "Files"
    BATCHES = "Batches"
    MODELS = "Models"
    REALTIME = "Realtime"
    OTHER = "Other"


class HeaderMatch(Value, frozen=True, kw_only=True):
    """A request header with an exact value."""

    name: Annotated[
        str, Meta(min_length=1, max_length=128, pattern=HEADER_NAME, description="Header name, in any case.")
    ]
    value: Annotated[str, Meta(max_length=1024, description="Exact value.")]


class RuleMatch(Value, frozen=True, kw_only=True):
    """Conditions on a call, all of which must hold; one that is absent always holds."""

    models: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^*\s]*\*?$")], ...],
        Meta(
            max_length=32,
            description='Requested models, exact or as a prefix ending in "*".',
            extra_json_schema=ATOMIC,
        ),
    ] = ()
    endpoints: Annotated[
        tuple[Endpoint, ...], Meta(max_length=12, description="Operations.", extra_json_schema=ATOMIC)
    ] = ()
    headers: Annotated[
        tuple[HeaderMatch, ...],
        Meta(max_length=8, description="Request headers.", extra_json_schema=keyed_by("name")),
    ] = ()


class Target(Value, frozen=True, kw_only=True):
    """An upstream and model that serve a rule, by weight."""

    name: Annotated[
        str, Meta(min_length=1, max_length=63, pattern=DNS_LABEL, description="Name in records and metrics.")
    ] = "main"
    upstream_ref: Annotated[UpstreamRef, Meta(description="Where calls go.")]
    model: (
        Annotated[str, Meta(min_length=1, max_length=128, description="Model to use; default the requested one.")]
        | None
    ) = None
    weight: Annotated[int, Meta(ge=0, le=1_000_000, description="Share of calls, relative to the other targets.")] = 1


class StaticAnswer(Value, frozen=True, kw_only=True):
    """A fixed answer in the shape of the endpoint."""

    message: Annotated[str, Meta(min_length=1, max_length=4096, description="Text of the answer.")]


_LONGEST_KEPT_SECONDS: Final = 604_800


class CachedAnswer(Value, frozen=True, kw_only=True):
    """An answer that an identical call got before, even past the time for which it is given again otherwise."""

    max_age_seconds: Annotated[
        int, Meta(ge=1, le=_LONGEST_KEPT_SECONDS, description="Age up to which an answer is given.")
    ] = 86_400


class Fallback(Value, frozen=True, kw_only=True):
    """What is tried when all before it have failed: another upstream or model, an earlier answer, or a fixed one."""

    upstream_ref: Annotated[UpstreamRef | None, Meta(description="Where calls go.")] = None
    model: (
        Annotated[str, Meta(min_length=1, max_length=128, description="Model to use; default the requested one.")]
        | None
    ) = None
    cached: Annotated[CachedAnswer | None, Meta(description="An earlier answer to an identical call.")] = None
    static: Annotated[StaticAnswer | None, Meta(description="A fixed answer.")] = None


FALLBACK_RULES = rules(
    (
        "[has(self.upstreamRef), has(self.cached), has(self.static)].exists_one(kind, kind)",
        "set exactly one of upstreamRef, cached and static",
    ),
    ("!has(self.model) || has(self.upstreamRef)", "model needs upstreamRef"),
)


class CallLimits(Value, frozen=True, kw_only=True):
    """Caps on a single call."""

    max_input_tokens: (
        Annotated[int, Meta(ge=1, le=100_000_000, description="Larger inputs are refused, by estimate.")] | None
    ) = None
    max_output_tokens: (
        Annotated[int, Meta(ge=1, le=10_000_000, description="The requested output is cut down to this.")] | None
    ) = None


class Cache(Value, frozen=True, kw_only=True):
    """How answers are given again to calls that would get the same one."""

    ttl_seconds: Annotated[
        int,
        Meta(
            ge=0,
            le=_LONGEST_KEPT_SECONDS,
            description="How long an answer is given again; 0 only joins identical calls at the same time.",
        ),
    ] = 3600
    coalesce: Annotated[bool, Meta(description="Whether identical calls at the same time cost one upstream call.")] = (
        True
    )
    user_key: Annotated[
        tuple[key_source, ...],
        Meta(
            max_length=4,
            description="Keeps answers apart by the user that the first of these names; default all users share them.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()


CACHE_RULES = rules(
    (
        "!has(self.ttlSeconds) || self.ttlSeconds > 0 || !has(self.coalesce) || self.coalesce",
        "ttlSeconds 0 with coalesce false does nothing; set one of them, or remove cache",
    ),
)


class Authorization(StrEnum):
    """Whose key a call carries to the upstream."""

    UPSTREAM = "Upstream"
    APPLICATION = "Application"


class OnClientDisconnect(StrEnum):
    """What becomes of an upstream call whose client has gone."""

    CANCEL = "Cancel"
    DRAIN = "Drain"


class RouteRule(Value, frozen=True, kw_only=True):
    """Where the calls that match go."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL,
            description="Name of the rule; splits refer to it.",
        ),
    ]
    match: Annotated[
        tuple[RuleMatch, ...],
        Meta(
            max_length=16,
            description="Alternatives, one of which must hold; none means all calls.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()
    targets: Annotated[
        tuple[Target, ...],
        Meta(
            min_length=1,
            max_length=16,
            description="Where calls go, by weight.",
            extra_json_schema=keyed_by("name"),
        ),
    ]
    fallbacks: Annotated[
        tuple[Annotated[Fallback, Meta(extra_json_schema=FALLBACK_RULES)], ...],
        Meta(max_length=8, description="What is tried in order when a target fails.", extra_json_schema=ATOMIC),
    ] = ()
    limits: Annotated[CallLimits, Meta(description="Caps on a single call.")] = CallLimits()
    cache: Annotated[
        Cache | None,
        Meta(description="Gives answers again; default none.", extra_json_schema=CACHE_RULES),
    ] = None
    authorization: Annotated[
        Authorization, Meta(description="Whose key is sent: the upstream's own, or the application's.")
    ] = Authorization.UPSTREAM
    on_client_disconnect: Annotated[
        OnClientDisconnect,
        Meta(description="Cancel closes the upstream call; Drain reads on to the usage report, for a bounded time."),
    ] = OnClientDisconnect.CANCEL


RULE_RULES = rules(
    ("self.targets.exists(t, !has(t.weight) || t.weight > 0)", "at least one target needs a weight above 0"),
    (
        "has(self.cache) || !has(self.fallbacks) || !self.fallbacks.exists(f, has(f.cached))",
        "a cached fallback needs cache, or there is no answer that was kept",
    ),
    (
        "!has(self.cache) || !has(self.fallbacks) || self.fallbacks.all(f, !has(f.cached) || "
        "!has(f.cached.maxAgeSeconds) || !has(self.cache.ttlSeconds) || "
        "f.cached.maxAgeSeconds > self.cache.ttlSeconds)",
        "a cached fallback's maxAgeSeconds must be above cache.ttlSeconds; younger answers need no fallback",
    ),
)


class ModelRouteSpec(Value, frozen=True, kw_only=True):
    """Where the calls of some workloads go."""

    workloads: Annotated[LabelSelector, Meta(description="Pods that use this route; default all.")] = LabelSelector()
    rules: Annotated[
        tuple[Annotated[RouteRule, Meta(extra_json_schema=RULE_RULES)], ...],
        Meta(
            min_length=1,
            max_length=32,
            description="Tried in order; the first that matches applies.",
            extra_json_schema=keyed_by("name"),
        ),
    ]


class ModelRouteStatus(Status, frozen=True, kw_only=True):
    """What is observed about a route."""

    targets: Annotated[
        str, Meta(max_length=_TARGETS_CHARACTERS, description="Where calls go in the first place, as upstream/model.")
    ] = ""
    pods: Annotated[int, Meta(ge=0, description="Pods that use this route.")] = 0
    synced_pods: Annotated[
        str, Meta(max_length=32, description='Pods that run the current policy, such as "12/12".')
    ] = ""


class ModelRoute(Resource, frozen=True, kw_only=True):
    """Where a call goes, by model, endpoint and headers."""

    spec: ModelRouteSpec
    status: ModelRouteStatus = ModelRouteStatus()


SPEC_RULES: dict[str, Any] = {}


def targets_text(spec: ModelRouteSpec) -> str:
    """Return where the calls of a route go in the first place, for a column: `openai/gpt-4.1-mini, azure`."""
    targets = [target for rule in spec.rules for target in rule.targets]
    names = list(dict.fromkeys("/".join(filter(None, (each.upstream_ref.name, each.model))) for each in targets))
    more = f" and {len(names) - _NAMED_TARGETS} more" if len(names) > _NAMED_TARGETS else ""
    text = ", ".join(names[:_NAMED_TARGETS]) + more
    return text if len(text) <= _TARGETS_CHARACTERS else text[: _TARGETS_CHARACTERS - 1] + "…"
