"""One call on its way through the pipeline: what has been learned of it so far, and the record of it at its end."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from sluice_core.api.modelroute import Endpoint
from sluice_core.api.quotaallocation import Budget
from sluice_core.caching import CacheUse, Obstacle, Wishes
from sluice_core.ladder import Standing
from sluice_core.records import Attempt, CallRecord, Outcome, milliseconds
from sluice_core.request import RequestFacts
from sluice_core.retry import client_retry
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, RulePolicy
from sluice_core.split import Assignment
from sluice_core.usage import Usage
from sluice_sidecar.downstream import Downstream
from sluice_sidecar.headers import RequestFields
from sluice_sidecar.target import Target

if TYPE_CHECKING:
    from sluice_sidecar.flight import Flight

LONGEST_NAME = 128
"""Names that callers and upstreams choose are cut to so many characters in records."""

LONGEST_REMEMBERED_KEY = 256
MAX_HASHED_BYTES = 256 * 1024
"""Bodies up to this size get a hash in their record; beyond it hashing would hold up other calls."""

_EMPTY_DIGEST = hashlib.sha256()
_NO_BUDGETS: Mapping[str, Budget] = {}


def user_hash(namespace: str, key: str) -> str:
    """Return what stands for a user in records and limits: enough to tell users apart, too little to name them."""
    if len(key) <= LONGEST_REMEMBERED_KEY:
        return _remembered_hash(namespace, key)
    return _hash(namespace, key)


def _hash(namespace: str, key: str) -> str:
    return hashlib.sha256(f"sluice\0{namespace}\0{key}".encode("utf-8", "surrogateescape")).hexdigest()[:16]


_remembered_hash = lru_cache(maxsize=4096)(_hash)  # users come back


class Sharing:
    """What a call has to do with answers that are given again.

    `key` is that of its answer, or why it has none; `use` what became of it, with a detail for the header; `flight`
    what identical calls wait for if it is the first of them.
    """

    __slots__ = ("detail", "flight", "key", "saved_usd_micros", "use", "wishes")

    def __init__(self, key: bytes | Obstacle, wishes: Wishes) -> None:
        self.key = key
        self.wishes = wishes
        self.use: CacheUse | None = None
        self.detail = ""
        self.saved_usd_micros: int | None = None
        self.flight: Flight | None = None

    @property
    def header(self) -> str:
        """Return what the answer's header says of it."""
        use = self.use.value.lower() if self.use is not None else ""
        return f"{use}; {self.detail}" if self.detail else use


class Call:
    """One call. Each stage of the pipeline fills in its part; `record` says it all at the end.

    `reads` tells that the answer is looked into: where something was generated, or a response is fetched;
    `keeps_authorization` that the application's own key goes upstream; `drains` that the upstream's answer is read to
    its end when the application has gone, `outlives_client` that it may be, for others; `sharing` is set under a rule
    that keeps answers; `client_retry` which retry of its own the application's SDK says this is.
    """

    __slots__ = (
        "abandoned",
        "allocation",
        "answer_deadline",
        "arm_outcome",
        "assignment",
        "attempts",
        "body",
        "body_length",
        "body_stream",
        "budgets",
        "charged_usd_micros",
        "client_retry",
        "clock",
        "cost_usd_micros",
        "deadline",
        "degraded",
        "downstream",
        "drains",
        "ended",
        "endpoint",
        "error_code",
        "estimated_input_tokens",
        "facts",
        "fallback",
        "fields",
        "finish_reason",
        "first_token_at",
        "generating",
        "id",
        "keeps_authorization",
        "lost_usd_micros",
        "method",
        "model",
        "namespace",
        "opaque_body",
        "outcome",
        "outlives_client",
        "queue_seconds",
        "quota",
        "reads",
        "refused_by",
        "request_bytes",
        "reserved_tokens",
        "response_id",
        "response_status",
        "route_key",
        "rule",
        "sent",
        "served_model",
        "service_tier",
        "sharing",
        "shrunk",
        "span_id",
        "standing",
        "started",
        "status",
        "streamed_deltas",
        "target",
        "target_name",
        "task",
        "total_seconds",
        "trace_id",
        "traceparent",
        "unix_time",
        "upstream",
        "upstream_request_id",
        "upstream_seconds",
        "usage",
        "usage_estimated",
        "user",
        "user_class",
        "would_refuse",
    )

    def __init__(
        self,
        *,
        method: str,
        target: Target,
        endpoint: Endpoint,
        generating: bool,
        fields: RequestFields,
        downstream: Downstream,
        clock: Callable[[], float],
    ) -> None:
        digits = random.randbytes(36).hex()  # noqa: S311 - names, not secrets; one draw for all that a call gets
        self.id = f"call-{digits[:24]}"
        self.trace_id, self.span_id = digits[24:56], digits[56:]
        self.clock = clock
        self.method = method
        self.target = target
        self.endpoint = endpoint
        self.fields = fields
        self.downstream = downstream
        self.facts = RequestFacts(endpoint=endpoint)
        self.generating = generating
        self.reads = generating or endpoint is Endpoint.RESPONSES
        self.client_retry = client_retry(fields.first)
        self.body: bytes | None = None
        self.shrunk: bytes | None = None
        self.body_stream: AsyncIterator[bytes] | None = None
        self.body_length: int | None = None
        self.opaque_body = False
        self.request_bytes = 0
        self.started = clock()
        self.ended = 0.0
        self.unix_time = 0.0
        self.deadline = 0.0
        self.answer_deadline = 0.0
        self.traceparent = ""
        self.namespace = ""
        self.user: str | None = None
        self.user_class: str | None = None
        self.route_key: str | None = None
        self.rule: RulePolicy | None = None
        self.target_name: str | None = None
        self.keeps_authorization = False
        self.drains = False
        self.outlives_client = False
        self.sharing: Sharing | None = None
        self.total_seconds = 0.0
        self.assignment: Assignment | None = None
        self.arm_outcome: Outcome | None = None
        self.quota: QuotaPolicy | None = None
        self.allocation: AllocationPolicy | None = None
        self.budgets: Mapping[str, Budget] = _NO_BUDGETS
        self.degraded = False
        self.standing: Standing | None = None
        self.queue_seconds = 0.0
        self.task: asyncio.Task[None] | None = None
        self.sent = False
        self.abandoned = False
        self.reserved_tokens = 0
        self.estimated_input_tokens = 0
        self.would_refuse: str | None = None
        self.refused_by: str | None = None
        self.attempts: list[Attempt] = []
        self.fallback: int | None = None
        self.upstream: str | None = None
        self.model: str | None = None
        self.upstream_seconds = 0.0
        self.upstream_request_id: str | None = None
        self.first_token_at: float | None = None
        self.status = 0
        self.outcome: Outcome | None = None
        self.error_code: str | None = None
        self.streamed_deltas = 0
        self.usage: Usage | None = None
        self.usage_estimated = False
        self.cost_usd_micros: int | None = None
        self.lost_usd_micros = 0
        self.charged_usd_micros = 0
        self.served_model: str | None = None
        self.service_tier: str | None = None
        self.finish_reason: str | None = None
        self.response_id: str | None = None
        self.response_status: str | None = None

    @property
    def replayable(self) -> bool:
        """Tell whether the request can be sent a second time."""
        return self.body_stream is None

    @property
    def awaited(self) -> bool:
        """Tell whether identical calls wait for the answer to this one."""
        sharing = self.sharing
        return sharing is not None and sharing.flight is not None and sharing.flight.followers > 0

    @property
    def policy_name(self) -> str:
        """Return the rule that applies, as refusals name it."""
        return f"{self.route_key}/{self.rule.name}" if self.rule is not None else ""

    def record(self) -> CallRecord:
        """Return the decision record, at the end of the call."""
        facts, assignment, rule, allocation = self.facts, self.assignment, self.rule, self.allocation
        sharing = self.sharing
        split = rule.split if rule is not None else None
        first_token_at, standing = self.first_token_at, self.standing
        client_request_id = self.fields.first.get("x-client-request-id")
        return CallRecord(
            call_id=self.id,
            time=self.unix_time,
            namespace=self.namespace,
            endpoint=self.endpoint,
            method=self.method,
            stream=facts.stream,
            requested_model=facts.model and facts.model[:LONGEST_NAME],
            model=self.model and self.model[:LONGEST_NAME],
            served_model=self.served_model and self.served_model[:LONGEST_NAME],
            service_tier=self.service_tier and self.service_tier[:LONGEST_NAME],
            route=self.route_key,
            rule=rule.name if rule is not None else None,
            target=self.target_name,
            upstream=self.upstream,
            credential=self.attempts[-1].credential if self.attempts else None,
            quota=self.quota.key if self.quota is not None else None,
            allocation=allocation.name if allocation is not None else None,
            priority=allocation.priority if allocation is not None else None,
            mode=allocation.mode if allocation is not None else None,
            user_hash=self.user,
            user_class=self.user_class,
            split=split.key if split is not None else None,
            split_revision=split.revision if split is not None else None,
            arm=assignment.arm if assignment is not None else None,
            version=assignment.version if assignment is not None else None,
            bucket=assignment.bucket if assignment is not None else None,
            arm_forced=assignment.forced if assignment is not None else False,
            status=self.status,
            outcome=self.outcome or Outcome.CLIENT_CLOSED,
            error_code=self.error_code and self.error_code[:LONGEST_NAME],
            refused_by=self.refused_by,
            would_refuse=self.would_refuse,
            attempts=tuple(self.attempts),
            fallback=self.fallback,
            degraded=self.degraded,
            cache=sharing.use if sharing is not None else None,
            saved_usd_micros=sharing.saved_usd_micros if sharing is not None else None,
            level=standing.level if standing is not None else None,
            level_cause=standing.cause if standing is not None else None,
            client_retry=self.client_retry,
            queue_ms=milliseconds(self.queue_seconds) if self.queue_seconds else 0.0,
            duration_ms=milliseconds(self.ended - self.started),
            first_token_ms=milliseconds(first_token_at - self.started) if first_token_at else None,
            upstream_ms=milliseconds(self.upstream_seconds),
            reserved_tokens=self.reserved_tokens,
            usage=self.usage,
            usage_estimated=self.usage_estimated,
            cost_usd_micros=self.cost_usd_micros,
            lost_usd_micros=self.lost_usd_micros,
            finish_reason=self.finish_reason and self.finish_reason[:LONGEST_NAME],
            request_bytes=self.request_bytes,
            response_bytes=self.downstream.bytes_written,
            request_sha256=_digest(self.body),
            client_request_id=client_request_id and client_request_id[:LONGEST_NAME],
            upstream_request_id=self.upstream_request_id and self.upstream_request_id[:LONGEST_NAME],
            traceparent=self.traceparent or None,
        )


def _digest(body: bytes | None) -> str | None:
    if not body or len(body) > MAX_HASHED_BYTES:
        return None
    digest = _EMPTY_DIGEST.copy()  # cheaper than a new one: OpenSSL looks the algorithm up each time
    digest.update(body)
    return digest.hexdigest()
