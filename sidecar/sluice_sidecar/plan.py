"""What is sent to one candidate and under whose limits: what does not hang on the single call, worked out once."""

from __future__ import annotations

from sluice_core.api.quotaallocation import Priority
from sluice_core.edits import OUTPUT_LIMIT_MEMBERS, Editor, Edits
from sluice_core.limits.admission import Account, budgets_of
from sluice_core.split import UserKeys
from sluice_sidecar.steering import Candidate
from sluice_sidecar.upstream import Upstream

UNALLOCATED_WAIT_SECONDS = 10.0


class Plan:
    """How a candidate is tried. `edited` are the members of a request that are set here, without the model and with."""

    __slots__ = (
        "account",
        "budgets",
        "candidate",
        "edited",
        "edited_with_model",
        "editor",
        "key",
        "max_output_tokens",
        "max_wait_seconds",
        "priority",
        "upstream",
        "user_class_header",
        "user_classes",
        "user_keys",
    )

    def __init__(
        self, candidate: Candidate, upstream: Upstream, account: Account, max_output_tokens: int | None = None
    ) -> None:
        """`max_output_tokens` is a cap below the rule's own on what calls may ask for."""
        self.candidate = candidate
        self.upstream = upstream
        self.key = upstream.policy.key
        self.account = account
        self.max_output_tokens = smaller(candidate.max_output_tokens, max_output_tokens)
        self.budgets = budgets_of(account.quota, account.allocation)
        arm, allocation = candidate.arm, account.allocation
        edits = Edits(
            instructions=arm.instructions if arm is not None else None,
            overrides=arm.overrides if arm is not None else {},
            max_output_tokens=self.max_output_tokens,
        )
        self.editor = Editor(edits)
        self.edited = _edited(edits)
        self.edited_with_model = self.edited | {"model"}
        self.priority = Priority.STANDARD
        self.max_wait_seconds = UNALLOCATED_WAIT_SECONDS
        self.user_keys: UserKeys | None = None
        self.user_class_header: str | None = None
        self.user_classes: frozenset[str] = frozenset()
        if allocation is not None:
            self.priority = allocation.priority
            self.max_wait_seconds = float(allocation.queue.max_wait_seconds)
            if (per_user := allocation.per_user) is not None:
                self.user_keys = UserKeys((per_user.key,))
                self.user_class_header = per_user.class_header.lower() if per_user.class_header else None
                self.user_classes = frozenset(each.value for each in per_user.classes)


def degraded_plan(plan: Plan, max_output_tokens: int | None) -> Plan:
    """Return the plan with a lower cap, if it is one."""
    if smaller(plan.max_output_tokens, max_output_tokens) == plan.max_output_tokens:
        return plan
    return Plan(plan.candidate, plan.upstream, plan.account, max_output_tokens)


def smaller(first: int | None, second: int | None) -> int | None:
    """Return the smaller of two limits, of which None is none."""
    return second if first is None else first if second is None else min(first, second)


def _edited(edits: Edits) -> frozenset[str]:
    edited = set(edits.overrides)
    if edits.instructions is not None:
        edited |= {"instructions", "messages"}
    if edits.max_output_tokens is not None:
        edited |= OUTPUT_LIMIT_MEMBERS
    return frozenset(edited)
