"""What people ask of a rollout by annotation: `sluice.dev/promote: <token>`, each token carried out once."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, assert_never

from sluice_core.api.base import GROUP
from sluice_core.api.canarysplit_status import Phase
from sluice_core.rollout.draft import Draft
from sluice_core.rollout.states import RUNNING, Move


class Verb(StrEnum):
    """What can be asked for; several at once are carried out in this order."""

    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    PROMOTE = "promote"
    PROMOTE_FULL = "promote-full"


MAX_TOKEN: Final = 256


def annotation(verb: Verb) -> str:
    """Return the annotation that asks for a verb."""
    return f"{GROUP}/{verb}"


def pending(draft: Draft) -> dict[Verb, str]:
    """Return the requests whose token has not been carried out."""
    annotations, consumed = draft.split.metadata.annotations, draft.status.consumed_requests
    tokens = {verb: annotations.get(annotation(verb), "")[:MAX_TOKEN] for verb in Verb}
    return {verb: token for verb, token in tokens.items() if token and consumed.get(verb.value) != token}


def consume_all(draft: Draft) -> None:
    """Note all tokens as carried out: those on a new resource are left from an earlier life."""
    _consume(draft, pending(draft))


def obey(draft: Draft) -> None:
    """Carry out what is asked, each token once, whether or not it is possible now."""
    for verb, token in pending(draft).items():
        _consume(draft, {verb: token})
        if not _carry_out(draft, verb):
            phase = draft.status.phase or Phase.IDLE
            draft.tell("RequestIgnored", f"{verb} is not possible while {phase}", warning=True)


def _consume(draft: Draft, tokens: dict[Verb, str]) -> None:
    if tokens:
        consumed = {verb.value: token for verb, token in tokens.items()}
        draft.change(consumed_requests=draft.status.consumed_requests | consumed)


def _carry_out(draft: Draft, verb: Verb) -> bool:
    match verb:
        case Verb.ABORT:
            if draft.status.phase not in RUNNING:
                return False
            draft.take_back(Move.ABORT, "aborted by hand")
        case Verb.PAUSE:
            if not draft.can(Move.PAUSE):
                return False
            draft.pause("Requested", "paused by hand")
        case Verb.RESUME:
            if not draft.can(Move.RESUME):
                return False
            draft.resume()
        case Verb.RETRY:
            if not draft.can(Move.RETRY):
                return False
            draft.retry()
        case Verb.PROMOTE | Verb.PROMOTE_FULL:
            return _promote(draft, full=verb is Verb.PROMOTE_FULL)
        case _:
            assert_never(verb)
    return True


def _promote(draft: Draft, *, full: bool) -> bool:
    if draft.can(Move.CONFIRM):
        draft.confirm("promoted by hand")
    elif not draft.can(Move.FINISH):
        return False
    elif full:
        draft.finish()
    else:
        draft.advance(by_hand=True)
    return True
