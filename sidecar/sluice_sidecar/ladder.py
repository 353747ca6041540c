"""What becomes of calls below the full service: cheaper, answered without an upstream, or refused.

The level in force is that of the account of the call's first target; a fallback to an account that is at a level above
Economy is left out. At Economy chats and responses get the model and the shorter output of `degradeTo`; without it the
first fallback of their rule that has another model. What would cost money under a spent budget and cannot be made
cheaper is answered by the rule's fixed answer or refused, for a spent budget that goes on being spent would be none.
At Static calls get a fixed answer. Calls that generate nothing go on as they came, but for Maintenance, where nothing
is sent at all. In Shadow mode all do, and are counted as if they were refused.
"""

from __future__ import annotations

from copy import copy

from sluice_core.api.degradation import Cause, Degraded, Level
from sluice_core.api.modelroute import Endpoint
from sluice_core.api.quotaallocation import Mode
from sluice_core.errors import Refusal, RefusalCode
from sluice_core.ladder import FULL, RANK, Standing
from sluice_core.limits.admission import Account, Admission
from sluice_core.limits.decisions import Obstacle, Refused
from sluice_core.limits.keys import Dimension, Layer
from sluice_sidecar.admit import refusal_of
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.refusals import below_service
from sluice_sidecar.static_answer import HAVE_TEXT
from sluice_sidecar.steering import Candidate, Candidates

_CAN_BE_CHEAPER = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES})
_CLOSED = RANK[Level.CACHE_ONLY]
"""From this level on nothing that generates is sent to an account."""


def descend(call: Call, admission: Admission, candidates: Candidates) -> Candidates:
    """Return what may be tried at the level in force: all of the candidates at Full.

    Raises:
        RefusedError: the level has nothing for the call.
    """
    first = candidates[0]
    standing = _standing(call, admission, first.upstream)
    candidates = (first, *(each for each in candidates[1:] if not _closed(call, admission, each)))
    if standing.level is Level.FULL or not (call.generating or standing.level is Level.MAINTENANCE):
        return candidates
    return _at(standing, call, admission, candidates)


def where_stopped(call: Call, admission: Admission, candidates: Candidates, refusal: Refusal) -> Candidates:
    """Return what a call may get whose upstreams are all stopped by their breakers, as `refusal` says; mostly nothing.

    Raises:
        RefusedError: the level that is then in force is Maintenance.
    """
    first = candidates[0]
    if not admission.knows(first.upstream):
        return ()
    wait = refusal.retry_after_seconds or 0.0
    standing = admission.standing(first.upstream, call.clock(), open_until=call.clock() + wait)
    if standing.cause is not Cause.BREAKER or not (call.generating or standing.level is Level.MAINTENANCE):
        return ()
    if admission.account(first.upstream).mode is Mode.SHADOW:
        _would_refuse(standing, call, admission.account(first.upstream))
        return ()
    if standing.level is not Level.MAINTENANCE and not _answers(standing, call, admission, candidates):
        return ()  # the breaker says more than that there is no answer
    return _at(standing, call, admission, candidates)


def economy(call: Call, admission: Admission, upstream: str) -> Degraded | None:
    """Return what a call to this upstream becomes, None if it stays as it is."""
    if not call.generating or not _can_be_cheaper(call):
        return None
    standing = _standing(call, admission, upstream)
    if standing.level is not Level.ECONOMY or standing.rejects or standing.degrade_to is None:
        return None
    if admission.account(upstream).mode is Mode.SHADOW:
        return None
    call.standing, call.degraded = standing, True
    return standing.degrade_to


def _standing(call: Call, admission: Admission, upstream: str) -> Standing:
    return admission.standing(upstream, call.clock()) if admission.knows(upstream) else FULL


def _closed(call: Call, admission: Admission, candidate: Candidate) -> bool:
    """Tell whether a fallback's account takes no calls."""
    if not candidate.upstream or not admission.knows(candidate.upstream):
        return False
    level = _standing(call, admission, candidate.upstream).level
    closed = RANK[level] >= _CLOSED if call.generating else level is Level.MAINTENANCE
    return closed and admission.account(candidate.upstream).mode is Mode.ENFORCE


def _at(standing: Standing, call: Call, admission: Admission, candidates: Candidates) -> Candidates:
    """Return what may be tried at a level below Full."""
    account = admission.account(candidates[0].upstream)
    economical = standing.level is Level.ECONOMY
    if economical and standing.rejects:
        return candidates  # a budget that rejects refuses them, whatever they would become
    if account.mode is Mode.SHADOW:
        if not economical or standing.saves_until is not None or _can_be_cheaper(call):
            _would_refuse(standing, call, account)
        return candidates
    if economical:
        return _economical(standing, call, admission, candidates)
    found = _answers(standing, call, admission, candidates)
    call.standing = standing
    if not found:
        _name_upstream(call, candidates[0])
        admission.dismiss(candidates[0].upstream, call.clock())
        raise _refusal(standing, call, account)
    call.degraded = True
    if standing.cause is not Cause.BREAKER:
        call.assignment = None  # no version has answered, and none has failed
    return found


def _can_be_cheaper(call: Call) -> bool:
    return call.endpoint in _CAN_BE_CHEAPER and not call.opaque_body


def _economical(standing: Standing, call: Call, admission: Admission, candidates: Candidates) -> Candidates:
    first = candidates[0]
    if _can_be_cheaper(call):
        if standing.degrade_to is not None:
            return candidates  # `economy` says of each what it becomes
        cheaper = _cheaper(candidates, first.model or call.facts.model)
        if not cheaper and standing.saves_until is not None:
            cheaper = _fixed(candidates)
        if cheaper:
            call.standing, call.degraded = standing, True
            return cheaper
    if standing.saves_until is None:
        return candidates
    _name_upstream(call, first)
    call.standing = standing
    admission.dismiss(first.upstream, call.clock())
    account = admission.account(first.upstream)
    refused = Refused(reason="budget_exhausted", obstacle=_budget_of(account), retry_at=standing.saves_until)
    raise refusal_of(refused, call, account)


def _cheaper(candidates: Candidates, model: str | None) -> Candidates:
    for position, candidate in enumerate(candidates):
        if candidate.model is not None and candidate.model != model:
            return candidates[position:]
    return ()


def _fixed(candidates: Candidates) -> Candidates:
    return tuple(candidate for candidate in candidates if candidate.static_message is not None)


def _answers(standing: Standing, call: Call, admission: Admission, candidates: Candidates) -> Candidates:
    """Return the answers that a level has for a call without asking an upstream."""
    if standing.level is not Level.STATIC or call.endpoint not in HAVE_TEXT:
        return ()
    message = admission.account(candidates[0].upstream).ladder.static_message
    found = _fixed(candidates)
    if found or message is None:
        return found
    own = copy(candidates[0])
    own.upstream, own.static_message = "", message
    return (own,)


def _would_refuse(standing: Standing, call: Call, account: Account) -> None:
    spent = standing.level is Level.ECONOMY and standing.saves_until is not None
    call.would_refuse = _budget_of(account).name if spent else f"{_place(account)}/level/{standing.level.value}"
    account.refusals.take(1, call.clock())


def _refusal(standing: Standing, call: Call, account: Account) -> RefusedError:
    policy = f"{account.quota.key if account.quota is not None else account.key}/{account.allocation_name}"
    call.refused_by = f"{policy}/level/{standing.level.value}"
    wait = standing.until - call.clock() if standing.until is not None else account.ladder.retry_after_seconds
    return RefusedError(below_service(standing, policy, max(0.0, wait)))


def decision(call: Call) -> str:
    """Return what the header says of a call that the level of service made cheaper, or answered."""
    standing, quota = call.standing or FULL, call.quota.key if call.quota is not None else ""
    code = RefusalCode.BUDGET_EXCEEDED if standing.saves_until is not None else RefusalCode.DEGRADED
    if standing.cause is Cause.BREAKER:
        code = RefusalCode.CIRCUIT_OPEN
    cause = standing.cause.value if standing.cause is not None else ""
    return f'degraded; code={code}; level={standing.level.value}; cause={cause}; policy="{quota}"'


def _budget_of(account: Account) -> Obstacle:
    return Obstacle(name=f"{_place(account)}/budget", layer=Layer.BUDGET, dimension=Dimension.MONEY_DAY)


def _place(account: Account) -> str:
    return f"{account.key}/{account.allocation_name}"


def _name_upstream(call: Call, candidate: Candidate) -> None:
    call.upstream, call.model = candidate.upstream, candidate.model or call.facts.model
