"""The decision record: everything that telemetry may know about one call. No content, no key, no user name."""

from __future__ import annotations

from enum import StrEnum

from sluice_core.api.base import Value
from sluice_core.api.degradation import Cause, Level
from sluice_core.api.modelroute import Endpoint
from sluice_core.api.quotaallocation import Mode, Priority
from sluice_core.caching import CacheUse
from sluice_core.usage import Usage


def milliseconds(seconds: float) -> float:
    """Return a time as it stands in records: milliseconds, to the microsecond."""
    return int(seconds * 1_000_000 + 0.5) / 1000


class Outcome(StrEnum):
    """How an attempt or a call ended. One vocabulary for breaker, retry rules, metrics and the canary's judge."""

    SUCCESS = "Success"
    REFUSED = "Refused"  # by Sluice: a limit, a budget, an open breaker, a rule
    THROTTLED = "Throttled"  # 429 by the upstream's rate limiter
    EXHAUSTED = "Exhausted"  # 429 by the upstream's billing: no retry can help
    PROVIDER_ERROR = "ProviderError"  # 5xx, or a failure inside a 200
    TIMEOUT = "Timeout"
    CONNECTION_ERROR = "ConnectionError"
    TRUNCATED = "Truncated"  # the stream ended before its terminal event
    CONFIG_ERROR = "ConfigError"  # 4xx caused by the arm or route: unknown model, unsupported parameter, context length
    CREDENTIAL_ERROR = "CredentialError"  # 401 or 403 about the key that Sluice sent
    CLIENT_ERROR = "ClientError"  # 4xx caused by the caller
    CLIENT_CLOSED = "ClientClosed"


class Attempt(Value, frozen=True, kw_only=True):
    """One try at an upstream."""

    upstream: str
    model: str | None = None
    credential: str | None = None
    status: int | None = None
    code: str | None = None
    outcome: Outcome
    duration_ms: float = 0.0
    fallback: int | None = None


class CallRecord(Value, frozen=True, kw_only=True):
    """One call, settled. Times in milliseconds, money in micro-dollars."""

    call_id: str
    time: float
    namespace: str
    endpoint: Endpoint
    method: str = "POST"
    stream: bool = False
    requested_model: str | None = None
    model: str | None = None
    served_model: str | None = None
    service_tier: str | None = None
    route: str | None = None
    rule: str | None = None
    target: str | None = None
    upstream: str | None = None
    credential: str | None = None
    quota: str | None = None
    allocation: str | None = None
    priority: Priority | None = None
    mode: Mode | None = None
    user_hash: str | None = None
    user_class: str | None = None
    split: str | None = None
    split_revision: str | None = None
    arm: str | None = None
    version: str | None = None
    bucket: int | None = None
    arm_forced: bool = False
    status: int = 0
    outcome: Outcome
    error_code: str | None = None
    refused_by: str | None = None
    would_refuse: str | None = None
    attempts: tuple[Attempt, ...] = ()
    fallback: int | None = None
    degraded: bool = False
    cache: CacheUse | None = None
    saved_usd_micros: int | None = None
    level: Level | None = None
    level_cause: Cause | None = None
    client_retry: int = 0
    queue_ms: float = 0.0
    duration_ms: float = 0.0
    first_token_ms: float | None = None
    upstream_ms: float = 0.0
    reserved_tokens: int = 0
    usage: Usage | None = None
    usage_estimated: bool = False
    cost_usd_micros: int | None = None
    lost_usd_micros: int = 0
    finish_reason: str | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    request_sha256: str | None = None
    client_request_id: str | None = None
    upstream_request_id: str | None = None
    traceparent: str | None = None
