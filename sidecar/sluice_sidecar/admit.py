"""The fourth stage of the pipeline: what one attempt asks of the limits, whose it is, and how long it may wait."""

from __future__ import annotations

from sluice_core.api.quotaallocation import Priority
from sluice_core.errors import RefusalCode, refuse
from sluice_core.limits.admission import Account
from sluice_core.limits.decisions import Ask, Refused
from sluice_core.limits.estimate import Estimate
from sluice_core.split import UserKeys
from sluice_sidecar.call import Call, user_hash
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.refusals import limited
from sluice_sidecar.upstream import Upstream

UNALLOCATED_WAIT_SECONDS = 10.0


def name_account(call: Call, account: Account) -> None:
    """Note whose limits apply: quota, allocation, and the user within it."""
    call.quota, call.allocation = account.quota, account.allocation
    per_user = account.allocation.per_user if account.allocation is not None else None
    if per_user is None:
        return
    key = UserKeys((per_user.key,)).of(call.facts, call.fields.first)
    call.user = user_hash(call.namespace, key) if key is not None else None
    if per_user.class_header is not None:
        value = call.fields.first.get(per_user.class_header.lower())
        call.user_class = value if any(each.value == value for each in per_user.classes) else None


def check_input(call: Call, estimate: Estimate) -> None:
    """Refuse an input that is longer than its rule allows.

    Raises:
        RefusedError: it is.
    """
    limit = call.rule.limits.max_input_tokens if call.rule is not None else None
    if limit is not None and estimate.input_tokens > limit:
        message = f"The input is about {estimate.input_tokens} tokens long; the rule allows {limit}."
        raise RefusedError(refuse(RefusalCode.INPUT_TOO_LONG, message, policy=call.policy_name))


def ask_for(call: Call, upstream: Upstream, model: str | None, estimate: Estimate) -> Ask:
    """Return what an attempt at this model asks of the limits."""
    cost = upstream.prices.cost_usd_micros(estimate.usage, model, None, call.unix_time) if model else None
    return Ask(
        model=model,
        tokens=estimate.tokens,
        floor_tokens=estimate.floor_tokens,
        usd_micros=cost or 0,
        user=call.user,
        user_class=call.user_class,
    )


def wait_deadline(call: Call, account: Account) -> float:
    """Return until when the attempt may wait in line."""
    queue = account.allocation.queue.max_wait_seconds if account.allocation is not None else UNALLOCATED_WAIT_SECONDS
    return min(call.clock() + queue, call.answer_deadline)


def priority_of(account: Account) -> Priority:
    """Return the attempt's rank in the line."""
    return account.allocation.priority if account.allocation is not None else Priority.STANDARD


def refusal_of(refused: Refused, call: Call, account: Account) -> RefusedError:
    """Return the end of a call that a limit refuses."""
    quota = account.quota.key if account.quota is not None else account.key
    policy = f"{quota}/{account.allocation_name}"
    call.refused_by = f"{policy}/{refused.obstacle.dimension.value}"
    return RefusedError(limited(refused, policy, call.clock()))
