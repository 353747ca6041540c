"""QuotaAllocation: how one upstream's capacity and money are shared among workloads and users."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from sluice_core.api.base import (
    ATOMIC,
    DNS_LABEL,
    HEADER_NAME,
    USD,
    LabelSelector,
    Resource,
    SecretKeyRef,
    UpstreamRef,
    Value,
    key_source,
    keyed_by,
    rules,
)
from sluice_core.api.degradation import DEGRADATION_RULES, STEP_RULES, BudgetStep, Degradation, Degraded
from sluice_core.api.quotaallocation_status import QuotaAllocationStatus
from sluice_core.api.upstream import TLS


class Mode(StrEnum):
    """Whether a limit refuses calls or only reports what it would refuse."""

    ENFORCE = "Enforce"
    SHADOW = "Shadow"


class Priority(StrEnum):
    """Rank in the waiting line, highest first."""

    CRITICAL = "Critical"
    REALTIME = "Realtime"
    STANDARD = "Standard"
    BATCH = "Batch"
    LOW = "Low"


class StoreType(StrEnum):
    """Where capacity is counted."""

    LEASES = "Leases"
    REDIS = "Redis"


class Store(Value, frozen=True, kw_only=True):
    """Where capacity is counted: leases from the operator, or a Redis shared by several clusters."""

    type: Annotated[StoreType, Meta(description="Leases: within this cluster. Redis: exact, across clusters.")] = (
        StoreType.LEASES
    )
    url: (
        Annotated[
            str,
            Meta(
                min_length=8,
                max_length=512,
                pattern=r"^rediss?://[^\s@?#]+$",
                description="Address of the Redis or Valkey server, without a password: redis[s]://host:port/database.",
            ),
        ]
        | None
    ) = None
    secret_ref: Annotated[SecretKeyRef | None, Meta(description="Password of the Redis server.")] = None
    username: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=128,
                pattern=r"^[^\s]+$",
                description="User of the Redis server whose password it is; by default the server's default user.",
            ),
        ]
        | None
    ) = None
    name: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=253,
                pattern=r"^[-._/a-zA-Z0-9]+$",
                description=(
                    "Name of the account in the store, the same in all clusters that share it; "
                    "by default namespace/name of this resource."
                ),
            ),
        ]
        | None
    ) = None
    clusters: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=64,
                description=(
                    "How many clusters share the account, 1 by default. What pods may use while the store is away and "
                    "the limits of single users are divided by it, for each cluster counts its users alone; "
                    "budgets are not: each cluster may spend them."
                ),
            ),
        ]
        | None
    ) = None
    tls: Annotated[TLS | None, Meta(description="How the server's certificate is checked.")] = None


STORE_RULES = rules(
    ("self.type != 'Redis' || has(self.url)", "store.url is required when store.type is Redis"),
    ("self.type == 'Redis' || !has(self.url)", "store.url is only used when store.type is Redis; remove it"),
    (
        "self.type == 'Redis' || !has(self.secretRef)",
        "store.secretRef is only used when store.type is Redis; remove it",
    ),
    (
        "!has(self.username) || has(self.secretRef)",
        "store.username needs store.secretRef, the password of that user",
    ),
    (
        "self.type == 'Redis' || !(has(self.name) || has(self.clusters) || has(self.tls))",
        "store.name, store.clusters and store.tls are only used when store.type is Redis; remove them",
    ),
)


class UserClass(Value, frozen=True, kw_only=True):
    """Limits of the users of one class."""

    value: Annotated[str, Meta(min_length=1, max_length=63, description="Value of the class header.")]
    requests_per_minute: (
        Annotated[int, Meta(ge=0, le=100_000_000, description="Requests per minute and user; 0 means no limit.")] | None
    ) = None
    tokens_per_minute: (
        Annotated[int, Meta(ge=0, le=1_000_000_000_000, description="Tokens per minute and user; 0 means no limit.")]
        | None
    ) = None


class PerUser(Value, frozen=True, kw_only=True):
    """Limits of each single user."""

    key: key_source
    requests_per_minute: (
        Annotated[int, Meta(ge=0, le=100_000_000, description="Requests per minute and user; 0 means no limit.")] | None
    ) = None
    tokens_per_minute: (
        Annotated[int, Meta(ge=0, le=1_000_000_000_000, description="Tokens per minute and user; 0 means no limit.")]
        | None
    ) = None
    daily_usd: (
        Annotated[
            str, Meta(max_length=16, pattern=USD, description="US dollars per calendar day and user, over all pods.")
        ]
        | None
    ) = None
    class_header: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=128,
                pattern=HEADER_NAME,
                description="Header that names the class of user.",
            ),
        ]
        | None
    ) = None
    classes: Annotated[
        tuple[UserClass, ...],
        Meta(
            max_length=16,
            description="Limits of classes of users; others get the limits above.",
            extra_json_schema=keyed_by("value"),
        ),
    ] = ()


PER_USER_RULES = rules(
    (
        "has(self.requestsPerMinute) || has(self.tokensPerMinute) || has(self.dailyUSD) || "
        "(has(self.classes) && size(self.classes) > 0)",
        "set at least one of requestsPerMinute, tokensPerMinute, dailyUSD and classes",
    ),
    (
        "!has(self.classes) || size(self.classes) == 0 || has(self.classHeader)",
        "perUser.classes needs perUser.classHeader, the header that names the class",
    ),
)


class Queue(Value, frozen=True, kw_only=True):
    """How long calls wait for capacity before they are refused."""

    max_wait_seconds: Annotated[int, Meta(ge=0, le=600, description="Longest wait; 0 refuses at once.")] = 10
    max_length: Annotated[int, Meta(ge=0, le=10_000, description="Calls waiting at once, per pod.")] = 1000


class OnExhausted(StrEnum):
    """What happens to calls when a budget is spent."""

    REJECT = "Reject"
    DEGRADE = "Degrade"


class Budget(Value, frozen=True, kw_only=True):
    """Money per calendar day and month."""

    daily_usd: Annotated[str, Meta(max_length=16, pattern=USD, description='US dollars per day, such as "100".')] | (
        None
    ) = None
    monthly_usd: (
        Annotated[str, Meta(max_length=16, pattern=USD, description='US dollars per month, such as "2500".')] | None
    ) = None
    alert_percents: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=1000)], ...],
        Meta(
            max_length=16,
            description="Shares of the budget at which to alert, once each.",
            extra_json_schema=ATOMIC,
        ),
    ] = (50, 75, 90, 100)
    alert_url: (
        Annotated[
            str,
            Meta(
                max_length=512,
                pattern=r"^https?://[^/?#\s@]+([/?][^\s]*)?$",
                description="Address that receives alerts as JSON.",
            ),
        ]
        | None
    ) = None
    on_exhausted: Annotated[OnExhausted, Meta(description="What happens to calls when the budget is spent.")] = (
        OnExhausted.REJECT
    )
    degrade_to: Annotated[
        Degraded | None,
        Meta(description="What calls become at Economy; default the route's first fallback with another model."),
    ] = None
    steps: Annotated[
        tuple[BudgetStep, ...],
        Meta(
            max_length=8,
            description="Levels of the degradation ladder as the budget is spent; Degrade alone is Economy at 100.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()
    time_zone: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$",
            description="IANA time zone whose days and months count.",
        ),
    ] = "UTC"


BUDGET_RULES = rules(
    ("has(self.dailyUSD) || has(self.monthlyUSD)", "set dailyUSD, monthlyUSD or both"),
    (
        "!has(self.degradeTo) || self.onExhausted == 'Degrade' || "
        "(has(self.steps) && self.steps.exists(s, s.level == 'Economy'))",
        "degradeTo is only used when onExhausted is Degrade, or a step says Economy",
    ),
    *STEP_RULES,
)

budget_field = Annotated[
    Budget | None, Meta(description="Money per calendar day and month.", extra_json_schema=BUDGET_RULES)
]


class Allocation(Value, frozen=True, kw_only=True):
    """The share of one workload."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=63,
            pattern=DNS_LABEL,
            description='Name of the allocation in status and metrics; "unallocated" is that of all other pods.',
            extra_json_schema=rules(
                (
                    "self != 'unallocated'",
                    "unallocated is the name of the pods that no allocation selects; choose another",
                )
            ),
        ),
    ]
    workloads: Annotated[LabelSelector, Meta(description="Pods that use this allocation; default all.")] = (
        LabelSelector()
    )
    namespaces: Annotated[
        LabelSelector | None,
        Meta(description="Namespaces whose pods use it; default all that the upstream allows."),
    ] = None
    share_percent: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="Guaranteed share of the upstream's limits; idle share is lent to others.",
        ),
    ] = 0
    priority: Annotated[Priority, Meta(description="Rank in the waiting line.")] = Priority.STANDARD
    mode: Annotated[Mode, Meta(description="Overrides the mode of the whole resource.")] | None = None
    per_user: Annotated[
        PerUser | None,
        Meta(description="Limits of each single user, over all pods.", extra_json_schema=PER_USER_RULES),
    ] = None
    queue: Annotated[Queue, Meta(description="How long calls wait for capacity.")] = Queue()
    budget: budget_field = None
    degradation: Annotated[
        Degradation | None,
        Meta(description="How much of the service there is for these pods.", extra_json_schema=DEGRADATION_RULES),
    ] = None


class WholeDegradation(Degradation, frozen=True, kw_only=True):
    """How much of the service there is for all allocations, but those that are exempt."""

    exempt: Annotated[
        tuple[Priority, ...],
        Meta(
            max_length=5,
            description="Priorities whose allocations follow neither this nor the steps of the whole's budget.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()


class QuotaAllocationSpec(Value, frozen=True, kw_only=True):
    """How one upstream's capacity and money are shared."""

    upstream_ref: Annotated[UpstreamRef, Meta(description="The upstream whose limits are shared.")]
    mode: Annotated[Mode, Meta(description="Enforce, or Shadow: report what would be refused, refuse nothing.")] = (
        Mode.ENFORCE
    )
    store: Annotated[Store, Meta(description="Where capacity is counted.", extra_json_schema=STORE_RULES)] = Store()
    budget: budget_field = None
    degradation: Annotated[
        WholeDegradation | None,
        Meta(description="How much of the service there is for all pods.", extra_json_schema=DEGRADATION_RULES),
    ] = None
    allocations: Annotated[
        tuple[Allocation, ...],
        Meta(
            min_length=1,
            max_length=64,
            description="Shares of workloads; the first one that selects a pod applies to it.",
            extra_json_schema=keyed_by("name"),
        ),
    ]


class QuotaAllocation(Resource, frozen=True, kw_only=True):
    """How one upstream's capacity and money are shared among workloads and users."""

    spec: QuotaAllocationSpec
    status: QuotaAllocationStatus = QuotaAllocationStatus()


SPEC_RULES: dict[str, Any] = rules(
    (
        "self.allocations.map(a, has(a.sharePercent) ? a.sharePercent : 0).sum() <= 100",
        "the sharePercent of all allocations together may be 100 at most",
    ),
)
