"""The fourth stage of the pipeline: what one attempt asks of the limits, whose it is, and how long it may wait."""

from __future__ import annotations

from typing import assert_never

from sluice_core.errors import Refusal, RefusalCode, refuse
from sluice_core.limits.admission import Account
from sluice_core.limits.decisions import Ask, Obstacle, Refused, Reservation
from sluice_core.limits.estimate import Estimate
from sluice_core.limits.keys import Layer
from sluice_sidecar.call import Call, user_hash
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.gate import Gate
from sluice_sidecar.plan import Plan
from sluice_sidecar.refusals import limited
from sluice_sidecar.upstream import Upstream


def name_account(call: Call, plan: Plan) -> None:
    """Note whose limits apply: quota, allocation, and the user within it."""
    account = plan.account
    call.quota, call.allocation, call.budgets = account.quota, account.allocation, plan.budgets
    if plan.user_keys is None:
        return
    fields = call.fields.first
    key = plan.user_keys.of(call.facts, fields)
    call.user = user_hash(call.namespace, key) if key is not None else None
    if plan.user_class_header is not None:
        value = fields.get(plan.user_class_header)
        call.user_class = value if value in plan.user_classes else None


def check_input(call: Call, limit: int, estimate: Estimate) -> None:
    """Refuse an input of more tokens than its rule allows.

    Raises:
        RefusedError: it is.
    """
    if estimate.input_tokens > limit:
        message = f"The input is about {estimate.input_tokens} tokens long; the rule allows {limit}."
        raise RefusedError(refuse(RefusalCode.INPUT_TOO_LONG, message, policy=call.policy_name))


def ask_for(call: Call, upstream: Upstream, estimate: Estimate) -> Ask:
    """Return what an attempt at the call's model asks of the limits."""
    model = call.model
    cost = upstream.prices.cost_usd_micros(estimate.usage, model, None, call.unix_time) if model else None
    return Ask(
        model=model,
        tokens=estimate.tokens,
        floor_tokens=estimate.floor_tokens,
        usd_micros=cost or 0,
        user=call.user,
        user_class=call.user_class,
    )


def policy_of(account: Account) -> str:
    """Return whose refusal it is, as headers, records and metrics name it: quota and allocation."""
    return f"{account.quota.key if account.quota is not None else account.key}/{account.allocation_name}"


def limit_name(account: Account, obstacle: Obstacle) -> str:
    """Return how records and metrics name a limit, whether it refuses or, in Shadow mode, would refuse."""
    match obstacle.layer:
        case Layer.USER | Layer.MODEL:
            limit = f"{obstacle.layer.value.lower()}/{obstacle.dimension.value}"
        case Layer.ALLOCATION:
            limit = obstacle.dimension.value
        case Layer.BUDGET:
            limit = "budget"
        case _:
            assert_never(obstacle.layer)
    return f"{policy_of(account)}/{limit}"


def refusal_of(refused: Refused, call: Call, account: Account) -> RefusedError:
    """Return the end of a call that a limit refuses."""
    call.refused_by = limit_name(account, refused.obstacle)
    return RefusedError(limited(refused, policy_of(account), call.clock()))


def refusal_of_more(call: Call, reservation: Reservation, gate: Gate) -> Refusal | None:
    """Count one more answer within a call that goes on, or return what is said if there is to be none now."""
    if not gate.admission.knows(reservation.upstream):
        return None
    refused = gate.go_on(reservation)
    return None if refused is None else refusal_of(refused, call, gate.admission.account(reservation.upstream)).refusal
