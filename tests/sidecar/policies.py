"""Snapshots for tests, and the secrets that must never be seen."""

from __future__ import annotations

from typing import Any

from sluice_core.api.base import KeySource
from sluice_core.api.modelroute import CallLimits, OnClientDisconnect
from sluice_core.api.quotaallocation import PerUser, Queue
from sluice_core.api.upstream import Breaker, Limits, Retry, Timeouts
from sluice_core.snapshot import (
    AllocationPolicy,
    ArmPolicy,
    CredentialFile,
    FallbackPolicy,
    QuotaPolicy,
    RoutePolicy,
    RulePolicy,
    Snapshot,
    SplitPolicy,
    TargetPolicy,
    UpstreamPolicy,
)

KEY = "sk-planted-primary-5f1c9a"
NEXT_KEY = "sk-planted-next-77d0e2"
PLACEHOLDER_KEY = "sk-placeholder-of-the-application"
PROMPT = "planted prompt about the purple submarine"
USER = "user-with-a-name@example.com"
SECRETS = (KEY, NEXT_KEY, PLACEHOLDER_KEY, "purple submarine", USER)

CREDENTIAL_FILES = {"team__openai__primary": KEY, "team__openai__next": NEXT_KEY}
UPSTREAM = "team/openai"
BOTH_KEYS = (
    CredentialFile(name="primary", file="team.openai.primary"),
    CredentialFile(name="next", file="team.openai.next"),
)
QUICK_RETRY = Retry(attempts=3, base_delay_milliseconds=1, budget_percent=100)
NEVER_OPEN = Breaker(consecutive_failures=0, minimum_requests=10_000)


def upstream(base_url: str, **fields: Any) -> UpstreamPolicy:
    """Return the upstream of most tests: two keys, quick retries, a breaker that stays closed."""
    fields = {"key": UPSTREAM, "credentials": BOTH_KEYS, "retry": QUICK_RETRY, "breaker": NEVER_OPEN, **fields}
    return UpstreamPolicy(base_url=base_url, **fields)


def rule(**fields: Any) -> RulePolicy:
    """Return a rule that sends every call to the upstream."""
    return RulePolicy(**{"name": "default", "targets": (TargetPolicy(name="main", upstream=UPSTREAM),), **fields})


def snapshot(*upstreams: UpstreamPolicy, rules: tuple[RulePolicy, ...] | None = None, **fields: Any) -> Snapshot:
    """Return a snapshot with one route."""
    routes = (RoutePolicy(key="team/chat", rules=(rule(),) if rules is None else rules),)
    return Snapshot(namespace="team", upstreams=upstreams, routes=routes, **fields)


def plain(base_url: str) -> Snapshot:
    """Return a snapshot that passes every call on, once, without limits."""
    return snapshot(upstream(base_url, retry=Retry(attempts=1)))


def quota(**fields: Any) -> QuotaPolicy:
    """Return a quota whose one allocation is for every pod."""
    return QuotaPolicy(
        key="team/openai-quota",
        upstream=UPSTREAM,
        allocations=(
            AllocationPolicy(**{"name": "chat", "share_percent": 100, "queue": Queue(max_wait_seconds=0), **fields}),
        ),
    )


__all__ = [
    "ArmPolicy",
    "Breaker",
    "CallLimits",
    "FallbackPolicy",
    "KeySource",
    "Limits",
    "OnClientDisconnect",
    "PerUser",
    "Queue",
    "Retry",
    "SplitPolicy",
    "TargetPolicy",
    "Timeouts",
]
