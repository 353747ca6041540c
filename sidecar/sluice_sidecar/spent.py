"""What becomes of calls while a budget is spent that says Degrade: a cheaper model, a shorter output, or a refusal.

What a call becomes is written in the budget's `degradeTo`; without it, it is the first fallback of the call's rule that
has another model, then a fixed answer. Only chats and responses can be made cheaper. A call that would cost money and
cannot be made cheaper is refused, for a spent budget that goes on being spent would be none. Calls that generate
nothing go on. In Shadow mode all do, as they came, and are counted as if they were refused.
"""

from __future__ import annotations

from sluice_core.api.degradation import Degraded
from sluice_core.api.modelroute import Endpoint
from sluice_core.api.quotaallocation import Budget, Mode, OnExhausted
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Ask, Obstacle, Refused
from sluice_core.limits.keys import Dimension, Layer
from sluice_sidecar.admit import refusal_of
from sluice_sidecar.call import Call
from sluice_sidecar.steering import Candidates

_CAN_BE_CHEAPER = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES})


def degradation(call: Call, admission: Admission, upstream: str) -> Degraded | None:
    """Return what a call to this upstream becomes, None if it stays as it is."""
    found = _spent(call, admission, upstream)
    if found is None or call.endpoint not in _CAN_BE_CHEAPER or admission.account(upstream).mode is Mode.SHADOW:
        return None
    return found[0].degrade_to


def affordable(call: Call, admission: Admission, candidates: Candidates) -> Candidates:
    """Return what of the candidates may be tried: all of them, unless the budget of the first is spent.

    Raises:
        RefusedError: the call cannot be made cheaper.
    """
    first = candidates[0]
    found = _spent(call, admission, first.upstream)
    if found is None:
        return candidates
    budget, until = found
    account = admission.account(first.upstream)
    obstacle = Obstacle(
        name=f"{account.key}/{account.allocation_name}/budget", layer=Layer.BUDGET, dimension=Dimension.MONEY_DAY
    )
    if account.mode is Mode.SHADOW:
        call.would_refuse = obstacle.name
        account.refusals.take(1, call.clock())
        return candidates
    if call.endpoint in _CAN_BE_CHEAPER:
        if budget.degrade_to is not None:
            return candidates
        cheaper = _cheaper(candidates, first.model or call.facts.model)
        if cheaper:
            call.degraded = True
            return cheaper
    call.upstream, call.model = first.upstream, first.model or call.facts.model
    admission.deny(first.upstream, Ask(model=call.model), call.clock())
    raise refusal_of(Refused(reason="budget_exhausted", obstacle=obstacle, retry_at=until), call, account)


def _spent(call: Call, admission: Admission, upstream: str) -> tuple[Budget, float] | None:
    """Return the spent budget of calls to this upstream if it says Degrade, and until when it is spent."""
    if not call.generating or not admission.knows(upstream):
        return None
    found = admission.exhausted_budget(upstream, call.clock())
    return found if found is not None and found[0].on_exhausted is OnExhausted.DEGRADE else None


def _cheaper(candidates: Candidates, model: str | None) -> Candidates:
    for position, candidate in enumerate(candidates):
        if candidate.model is not None and candidate.model != model:
            return candidates[position:]
    return tuple(candidate for candidate in candidates if candidate.static_message is not None)
