"""What becomes of calls below the full service: cheaper, answered without an upstream, or refused.

The level in force is that of the account of the call's first target; a fallback to an account that is at a level above
Economy is left out. At Economy chats and responses get the model and the shorter output of `degradeTo`; without it the
first fallback of their rule that has another model. What would cost money under a spent budget and cannot be made
cheaper is answered by the rule's fixed answer or refused, for a spent budget that goes on being spent would be none.
At CacheOnly calls get the answer that is kept for them, however old its rule lets one become, at Static a fixed one.
Calls that generate nothing go on as they came, but for Maintenance, where nothing is sent at all. In Shadow mode all
do, and are counted as if they were refused.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from sluice_core.api.degradation import Cause, Degraded, Level
from sluice_core.api.modelroute import Endpoint
from sluice_core.api.quotaallocation import Mode
from sluice_core.errors import Refusal, RefusalCode
from sluice_core.ladder import FULL, RANK, Standing
from sluice_core.limits.admission import Account
from sluice_core.limits.decisions import Obstacle, Refused
from sluice_core.limits.keys import Dimension, Layer
from sluice_sidecar.admit import limit_name, policy_of, refusal_of
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.refusals import below_service
from sluice_sidecar.replay import Replay
from sluice_sidecar.static_answer import HAVE_TEXT
from sluice_sidecar.steering import Candidate, Candidates

if TYPE_CHECKING:
    from sluice_sidecar.governor import Governor

_CAN_BE_CHEAPER = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES})
_CLOSED = RANK[Level.CACHE_ONLY]
"""From this level on nothing that generates is sent to an account."""


class Levels:
    """What the level of service in force makes of calls."""

    __slots__ = ("_admission", "_answers")

    def __init__(self, governor: Governor) -> None:
        self._admission = governor.admission
        self._answers = governor.answers

    def asks_nobody(self, call: Call, candidates: Candidates) -> bool:
        """Tell whether a call is answered, or refused, without an upstream."""
        return _generates(call) and self._closed(call, candidates[0])

    def descend(self, call: Call, candidates: Candidates) -> Candidates:
        """Return what may be tried at the level in force: all of the candidates at Full.

        Raises:
            RefusedError: the level has nothing for the call.
        """
        first = candidates[0]
        standing = self._standing(call, first.upstream)
        candidates = (first, *(each for each in candidates[1:] if not self._closed(call, each)))
        if standing.level is Level.FULL or not (_generates(call) or standing.level is Level.MAINTENANCE):
            return candidates
        return self._at(standing, call, candidates)

    def where_stopped(self, call: Call, candidates: Candidates, refusal: Refusal) -> Candidates:
        """Return what a call may get whose upstreams are all stopped by breakers, as `refusal` says; mostly nothing.

        Raises:
            RefusedError: the level that is then in force is Maintenance.
        """
        first = candidates[0]
        if not self._admission.knows(first.upstream):
            return ()
        wait = refusal.retry_after_seconds or 0.0
        standing = self._admission.standing(first.upstream, call.clock(), open_until=call.clock() + wait)
        if standing.cause is not Cause.BREAKER or not (_generates(call) or standing.level is Level.MAINTENANCE):
            return ()
        account = self._admission.account(first.upstream)
        if account.mode is Mode.SHADOW:
            _would_refuse(standing, call, account)
            return ()
        if standing.level is not Level.MAINTENANCE and not self._answered(standing, call, candidates):
            return ()  # the breaker says more than that there is no answer
        return self._at(standing, call, candidates)

    def economy(self, call: Call, upstream: str) -> Degraded | None:
        """Return what a call to this upstream becomes, None if it stays as it is."""
        if not _generates(call) or not _can_be_cheaper(call):
            return None
        standing = self._standing(call, upstream)
        if standing.level is not Level.ECONOMY or standing.rejects or standing.degrade_to is None:
            return None
        if self._admission.account(upstream).mode is Mode.SHADOW:
            return None
        call.standing, call.degraded = standing, True
        return standing.degrade_to

    def _standing(self, call: Call, upstream: str) -> Standing:
        return self._admission.standing(upstream, call.clock()) if self._admission.knows(upstream) else FULL

    def _closed(self, call: Call, candidate: Candidate) -> bool:
        """Tell whether the account of a candidate takes no such calls."""
        if not self._admission.knows(candidate.upstream):
            return False
        level = self._standing(call, candidate.upstream).level
        closed = RANK[level] >= _CLOSED if _generates(call) else level is Level.MAINTENANCE
        return closed and self._admission.account(candidate.upstream).mode is Mode.ENFORCE

    def _at(self, standing: Standing, call: Call, candidates: Candidates) -> Candidates:
        """Return what may be tried at a level below Full."""
        account = self._admission.account(candidates[0].upstream)
        economical = standing.level is Level.ECONOMY
        if economical and standing.rejects:
            return candidates  # a budget that rejects refuses them, whatever they would become
        if account.mode is Mode.SHADOW:
            if not economical or standing.saves_until is not None or _can_be_cheaper(call):
                _would_refuse(standing, call, account)
            return candidates
        if economical:
            return self._economical(standing, call, candidates)
        found = self._answered(standing, call, candidates)
        if not found:
            raise self._refused(_refusal(standing, call, account), standing, call, candidates[0])
        call.standing, call.degraded = standing, True
        if standing.level is Level.STATIC and standing.cause is not Cause.BREAKER:
            call.assignment = None  # no version has answered, and none has failed
        return found

    def _economical(self, standing: Standing, call: Call, candidates: Candidates) -> Candidates:
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
        account = self._admission.account(first.upstream)
        spent = Refused(reason="budget_exhausted", obstacle=_budget_of(account), retry_at=standing.saves_until)
        raise self._refused(refusal_of(spent, call, account), standing, call, first)

    def _refused(self, refused: RefusedError, standing: Standing, call: Call, first: Candidate) -> RefusedError:
        """Note and count a call that a level refuses."""
        call.standing, call.upstream, call.model = standing, first.upstream, first.model or call.facts.model
        self._admission.dismiss(first.upstream, call.clock())
        return refused

    def _answered(self, standing: Standing, call: Call, candidates: Candidates) -> Candidates:
        """Return the answers that a level has for a call without asking an upstream."""
        if standing.level is Level.CACHE_ONLY:
            replay = self._answers.cached_answer(call, candidates)
            return (_own(candidates[0], replay=replay),) if replay is not None else ()
        if standing.level is not Level.STATIC or call.endpoint not in HAVE_TEXT:
            return ()
        message = self._admission.account(candidates[0].upstream).ladder.static_message
        return _fixed(candidates) or ((_own(candidates[0], message=message),) if message is not None else ())


def _own(like: Candidate, *, replay: Replay | None = None, message: str | None = None) -> Candidate:
    """Return an answer of the level's own as a candidate."""
    own = copy(like)
    own.upstream, own.fallback, own.replay, own.static_message = "", None, replay, message
    return own


def _generates(call: Call) -> bool:
    return call.generating or call.endpoint is Endpoint.REALTIME  # a conversation begins with a GET


def _can_be_cheaper(call: Call) -> bool:
    return call.endpoint in _CAN_BE_CHEAPER and not call.opaque_body


def _cheaper(candidates: Candidates, model: str | None) -> Candidates:
    for position, candidate in enumerate(candidates):
        if candidate.model is not None and candidate.model != model:
            return candidates[position:]
    return ()


def _fixed(candidates: Candidates) -> Candidates:
    return tuple(candidate for candidate in candidates if candidate.static_message is not None)


def _would_refuse(standing: Standing, call: Call, account: Account) -> None:
    spent = standing.level is Level.ECONOMY and standing.saves_until is not None
    call.would_refuse = limit_name(account, _budget_of(account)) if spent else _level_name(account, standing)
    account.refusals.take(1, call.clock())


def _refusal(standing: Standing, call: Call, account: Account) -> RefusedError:
    call.refused_by = _level_name(account, standing)
    wait = standing.until - call.clock() if standing.until is not None else account.ladder.retry_after_seconds
    return RefusedError(below_service(standing, policy_of(account), max(0.0, wait)))


def decision(call: Call) -> str:
    """Return what the header says of a call that the level of service made cheaper, or answered."""
    standing = call.standing or FULL
    quota, allocation = call.quota, call.allocation
    policy = f"{quota.key}/{allocation.name}" if quota is not None and allocation is not None else ""
    code = RefusalCode.BUDGET_EXCEEDED if standing.saves_until is not None else RefusalCode.DEGRADED
    if standing.cause is Cause.BREAKER:
        code = RefusalCode.CIRCUIT_OPEN
    cause = standing.cause.value if standing.cause is not None else ""
    return f'degraded; code={code}; level={standing.level.value}; cause={cause}; policy="{policy}"'


def _budget_of(account: Account) -> Obstacle:
    return Obstacle(name=f"{policy_of(account)}/budget", layer=Layer.BUDGET, dimension=Dimension.MONEY_DAY)


def _level_name(account: Account, standing: Standing) -> str:
    return f"{policy_of(account)}/level/{standing.level.value}"
