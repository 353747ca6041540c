"""The states of a rollout and what moves it from one to another. The table is all there is: see `next_phase`."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sluice_core.api.canarysplit_status import Phase


class Move(StrEnum):
    """What can happen to a rollout."""

    BEGIN = "Begin"  # a candidate that has not been tried
    SETTLE = "Settle"  # the candidate is the stable version
    RETURN = "Return"  # the candidate is the version that was stable before: taken back at once
    REFUSE = "Refuse"  # the candidate has failed before
    ADVANCE = "Advance"  # the next step begins
    WAIT = "Wait"  # the next step wants a promote request
    FINISH = "Finish"  # the last step is done: everyone has the candidate
    CONFIRM = "Confirm"  # the watch is over
    ROLL_BACK = "RollBack"
    PAUSE = "Pause"
    RESUME = "Resume"
    ABORT = "Abort"
    RETRY = "Retry"


RUNNING: Final = frozenset({Phase.PROGRESSING, Phase.AWAITING_GATE, Phase.PAUSED, Phase.WATCHING})
"""Phases in which the candidate has, or may get, users: harm takes it back in each of them."""

_ANYWHERE: Final = {
    Move.BEGIN: Phase.PROGRESSING,
    Move.SETTLE: Phase.IDLE,
    Move.RETURN: Phase.PROMOTED,
    Move.REFUSE: Phase.ROLLED_BACK,
}

TRANSITIONS: Final[dict[Phase | None, dict[Move, Phase]]] = {
    None: _ANYWHERE,
    Phase.IDLE: _ANYWHERE,
    Phase.PROGRESSING: _ANYWHERE
    | {
        Move.ADVANCE: Phase.PROGRESSING,
        Move.WAIT: Phase.AWAITING_GATE,
        Move.FINISH: Phase.WATCHING,
        Move.ROLL_BACK: Phase.ROLLED_BACK,
        Move.PAUSE: Phase.PAUSED,
        Move.ABORT: Phase.ABORTED,
    },
    Phase.AWAITING_GATE: _ANYWHERE
    | {
        Move.ADVANCE: Phase.PROGRESSING,
        Move.FINISH: Phase.WATCHING,
        Move.ROLL_BACK: Phase.ROLLED_BACK,
        Move.PAUSE: Phase.PAUSED,
        Move.ABORT: Phase.ABORTED,
    },
    Phase.PAUSED: _ANYWHERE
    | {
        Move.ADVANCE: Phase.PROGRESSING,
        Move.FINISH: Phase.WATCHING,
        Move.RESUME: Phase.PROGRESSING,
        Move.ROLL_BACK: Phase.ROLLED_BACK,
        Move.ABORT: Phase.ABORTED,
    },
    Phase.WATCHING: _ANYWHERE
    | {
        Move.CONFIRM: Phase.PROMOTED,
        Move.ROLL_BACK: Phase.ROLLED_BACK,
        Move.ABORT: Phase.ABORTED,
    },
    Phase.PROMOTED: _ANYWHERE,
    Phase.ROLLED_BACK: _ANYWHERE | {Move.RETRY: Phase.PROGRESSING},
    Phase.ABORTED: _ANYWHERE | {Move.RETRY: Phase.PROGRESSING},
}


def allows(phase: Phase | None, move: Move) -> bool:
    """Tell whether a move is possible in a phase."""
    return move in TRANSITIONS[phase]


def next_phase(phase: Phase | None, move: Move) -> Phase:
    """Return the phase after a move.

    Raises:
        ValueError: the move is not possible in this phase.
    """
    try:
        return TRANSITIONS[phase][move]
    except KeyError:
        raise ValueError(f"{move} is not possible while {phase or 'new'}") from None
