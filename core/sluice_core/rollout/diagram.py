"""Draws the rollout's transition table."""

from __future__ import annotations

from collections import defaultdict

from sluice_core.api.canarysplit_status import Phase
from sluice_core.rollout.states import RUNNING, TRANSITIONS, Move


def mermaid() -> str:
    """Return the table as a Mermaid state diagram; moves that a change of spec makes anywhere are drawn once."""
    anywhere = TRANSITIONS[None]
    lines = ["stateDiagram-v2"]
    lines += [f"    [*] --> {after}: {move}" for move, after in anywhere.items()]
    for phase in Phase:
        arrows: dict[Phase, list[Move]] = defaultdict(list)
        for move, after in TRANSITIONS[phase].items():
            if move not in anywhere:
                arrows[after].append(move)
        lines += [f"    {phase} --> {after}: {', '.join(moves)}" for after, moves in arrows.items()]
    running = ", ".join(phase for phase in Phase if phase in RUNNING)
    lines += [
        f"    note right of {Phase.ROLLED_BACK}: harm leads here from {running}",
        f"    note right of {Phase.IDLE}: a change of spec leaves any state by the moves of the start",
    ]
    return "\n".join(lines) + "\n"
