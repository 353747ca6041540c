"""Upstream: an OpenAI (or compatible) account, its keys, limits, prices and fault handling."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from sluice_core.api.base import (
    ATOMIC,
    DNS_LABEL,
    HEADER_NAME,
    HTTP_URL,
    USD,
    LabelSelector,
    Resource,
    SecretKeyRef,
    Status,
    Value,
    keyed_by,
    rules,
)


class Credential(Value, frozen=True, kw_only=True):
    """One API key of the account."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL,
            description="Name of the key in metrics and records.",
        ),
    ]
    secret_key_ref: Annotated[SecretKeyRef, Meta(description="Where the key is stored.")]


class ExtraHeader(Value, frozen=True, kw_only=True):
    """A header added to every call to this upstream."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=128,
            pattern=HEADER_NAME,
            description="Header name. Credentials belong in credentials, not here.",
            extra_json_schema=rules(
                (
                    "!self.matches('(?i)^(authorization|api-key|host|content-length|transfer-encoding|connection)$')",
                    "authorization, api-key, host, content-length, transfer-encoding and connection are set by "
                    "Sluice; name keys in spec.credentials",
                )
            ),
        ),
    ]
    value: Annotated[
        str, Meta(max_length=1024, pattern=r"^[\x20-\x7e]*$", description="Header value, printable ASCII.")
    ]


class Tier(StrEnum):
    """OpenAI's usage tiers, as presets of the account's limits."""

    FREE = "Free"
    TIER1 = "Tier1"
    TIER2 = "Tier2"
    TIER3 = "Tier3"
    TIER4 = "Tier4"
    TIER5 = "Tier5"


class Limits(Value, frozen=True, kw_only=True):
    """Capacity in each dimension; absent takes the tier's value, 0 means no limit."""

    requests_per_minute: (
        Annotated[int, Meta(ge=0, le=100_000_000, description="Requests per minute; 0 means no limit.")] | None
    ) = None
    tokens_per_minute: (
        Annotated[int, Meta(ge=0, le=1_000_000_000_000, description="Tokens per minute; 0 means no limit.")] | None
    ) = None
    requests_per_day: (
        Annotated[int, Meta(ge=0, le=10_000_000_000, description="Requests in 24 hours; 0 means no limit.")] | None
    ) = None
    concurrency: (
        Annotated[int, Meta(ge=0, le=1_000_000, description="Calls in flight at once; 0 means no limit.")] | None
    ) = None


class ModelLimits(Limits, frozen=True, kw_only=True):
    """Limits of the models whose names match a pattern, on top of the account's."""

    model: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=128,
            pattern=r"^[^*\s]*\*?$",
            description='Model name, or a prefix ending in "*"; models that match one pattern share its limits.',
        ),
    ]


def _usd_per_million(what: str) -> Meta:
    return Meta(
        max_length=16,
        pattern=USD,
        description=f'US dollars per million {what}, as a decimal string such as "0.40".',
    )


class Price(Value, frozen=True, kw_only=True):
    """Price of a model on this account; overrides the built-in price book."""

    model: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=128,
            pattern=r"^[^*\s]*\*?$",
            description='Model name, or a prefix ending in "*".',
        ),
    ]
    input_per_million: Annotated[str, _usd_per_million("input tokens")]
    output_per_million: Annotated[str, _usd_per_million("output tokens")]
    cached_input_per_million: Annotated[str, _usd_per_million("input tokens read from the prompt cache")] | None = None
    cache_write_per_million: Annotated[str, _usd_per_million("input tokens written to the prompt cache")] | None = None


class Timeouts(Value, frozen=True, kw_only=True):
    """How long each part of a call may take."""

    connect_seconds: Annotated[int, Meta(ge=1, le=60, description="To connect, TLS included.")] = 5
    first_byte_seconds: Annotated[int, Meta(ge=1, le=3600, description="From the request to the first byte.")] = 60
    idle_seconds: Annotated[int, Meta(ge=1, le=3600, description="Between two chunks of an answer.")] = 60
    total_seconds: Annotated[int, Meta(ge=1, le=7200, description="For the whole call, all attempts included.")] = 600


class Breaker(Value, frozen=True, kw_only=True):
    """When calls to a failing upstream stop, per model and key, and how they resume."""

    failure_percent: Annotated[int, Meta(ge=1, le=100, description="Share of failed calls that opens it.")] = 50
    minimum_requests: Annotated[
        int, Meta(ge=1, le=10_000, description="Calls in the window below which the share means nothing.")
    ] = 20
    consecutive_failures: Annotated[
        int,
        Meta(ge=0, le=1000, description="Failures in a row that open it whatever the share; 0 switches it off."),
    ] = 5
    window_seconds: Annotated[int, Meta(ge=1, le=3600, description="Length of the sliding window.")] = 30
    open_seconds: Annotated[int, Meta(ge=1, le=3600, description="How long it stays open before probing.")] = 30
    half_open_probes: Annotated[int, Meta(ge=1, le=100, description="Probes in flight at once while half-open.")] = 3
    successes_to_close: Annotated[int, Meta(ge=1, le=100, description="Successful probes that close it.")] = 2


class Retry(Value, frozen=True, kw_only=True):
    """How failed attempts are repeated."""

    attempts: Annotated[int, Meta(ge=1, le=10, description="Attempts per call, the first and fallbacks included.")] = 3
    base_delay_milliseconds: Annotated[
        int, Meta(ge=1, le=60_000, description="Mean delay before the first retry; it doubles with each one.")
    ] = 500
    max_delay_seconds: Annotated[
        int,
        Meta(ge=1, le=60, description="Longest delay between two attempts; a longer Retry-After is not waited for."),
    ] = 30
    budget_percent: Annotated[
        int, Meta(ge=0, le=100, description="Retries as a share of live calls that are allowed at most.")
    ] = 20


RETRY_RULES = rules(
    (
        "self.baseDelayMilliseconds <= self.maxDelaySeconds * 1000",
        "baseDelayMilliseconds is longer than maxDelaySeconds; lower it",
    ),
)


class TLS(Value, frozen=True, kw_only=True):
    """How a server's certificate is checked."""

    ca_bundle: Annotated[
        str,
        Meta(
            max_length=65_536,
            pattern=r"^-----BEGIN CERTIFICATE-----",
            description="PEM certificates of a private authority to trust instead of the public ones.",
        ),
    ]


class AllowedNamespaces(Value, frozen=True, kw_only=True):
    """Which namespaces besides its own may reference an upstream."""

    selector: Annotated[LabelSelector, Meta(description="Labels of the namespaces; an empty selector allows all.")]


class UpstreamSpec(Value, frozen=True, kw_only=True):
    """What the platform team declares about an account."""

    base_url: Annotated[
        str,
        Meta(
            min_length=8,
            max_length=512,
            pattern=HTTP_URL,
            description="Root of the API, normally ending in /v1; calls go here and nowhere else.",
        ),
    ] = "https://api.openai.com/v1"
    credentials: Annotated[
        tuple[Credential, ...],
        Meta(max_length=8, description="API keys, tried in order.", extra_json_schema=keyed_by("name")),
    ] = ()
    organization: (
        Annotated[str, Meta(max_length=128, pattern=r"^[A-Za-z0-9_-]+$", description="OpenAI organization.")] | None
    ) = None
    project: Annotated[str, Meta(max_length=128, pattern=r"^[A-Za-z0-9_-]+$", description="OpenAI project.")] | None = (
        None
    )
    headers: Annotated[
        tuple[ExtraHeader, ...],
        Meta(max_length=16, description="Headers added to every call.", extra_json_schema=keyed_by("name")),
    ] = ()
    tls: Annotated[TLS | None, Meta(description="How the upstream's certificate is checked.")] = None
    tier: Annotated[Tier, Meta(description="Usage tier of the account: a preset for limits.")] | None = None
    limits: Annotated[Limits, Meta(description="Limits of the whole account; each overrides the tier's.")] = Limits()
    model_limits: Annotated[
        tuple[ModelLimits, ...],
        Meta(
            max_length=64,
            description="Limits per model, where they differ.",
            extra_json_schema=keyed_by("model"),
        ),
    ] = ()
    prices: Annotated[
        tuple[Price, ...],
        Meta(
            max_length=64,
            description="Prices that override the built-in book.",
            extra_json_schema=keyed_by("model"),
        ),
    ] = ()
    timeouts: Annotated[Timeouts, Meta(description="How long each part of a call may take.")] = Timeouts()
    breaker: Annotated[Breaker, Meta(description="When calls to a failing upstream stop.")] = Breaker()
    retry: Annotated[Retry, Meta(description="How failed attempts are repeated.", extra_json_schema=RETRY_RULES)] = (
        Retry()
    )
    allowed_namespaces: Annotated[
        AllowedNamespaces | None,
        Meta(description="Which other namespaces may reference this upstream; default none."),
    ] = None


class ReportedLimits(Value, frozen=True, kw_only=True):
    """What the account itself says of its limits for one model, in the headers of its answers."""

    model: Annotated[str, Meta(max_length=512, description="The model; empty for calls that name none.")] = ""
    requests_per_minute: Annotated[int, Meta(ge=0, description="Requests per minute; 0 if it says nothing.")] = 0
    tokens_per_minute: Annotated[int, Meta(ge=0, description="Tokens per minute; 0 if it says nothing.")] = 0
    project_requests_per_minute: Annotated[int, Meta(ge=0, description="The project's requests; 0 if it has none.")] = 0
    project_tokens_per_minute: Annotated[int, Meta(ge=0, description="The project's tokens; 0 if it has none.")] = 0


MAX_REPORTED = 32


class UpstreamStatus(Status, frozen=True, kw_only=True):
    """What is observed about an account."""

    credentials: Annotated[str, Meta(max_length=32, description='Keys found of keys named, such as "2/2".')] = ""
    consumers: Annotated[int, Meta(ge=0, description="Allocations and routes that reference this upstream.")] = 0
    effective_limits: Annotated[
        Limits | None,
        Meta(description="Limits in force: the spec's, the tier's, and what the account has told us."),
    ] = None
    reported_limits: Annotated[
        tuple[ReportedLimits, ...],
        Meta(
            max_length=MAX_REPORTED,
            description="What the account said of its limits within the last hour, by model.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()
    synced_pods: Annotated[
        str,
        Meta(max_length=32, description='Pods that run the current policy of all that use it, such as "12/12".'),
    ] = ""


class Upstream(Resource, frozen=True, kw_only=True):
    """An OpenAI (or compatible) account."""

    spec: UpstreamSpec = UpstreamSpec()
    status: UpstreamStatus = UpstreamStatus()


SPEC_RULES: dict[str, Any] = rules(
    (
        "!has(self.tls) || self.baseURL.startsWith('https://')",
        "tls is set, but baseURL is not https; change baseURL or remove tls",
    ),
)
