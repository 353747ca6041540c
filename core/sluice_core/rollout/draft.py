"""The status in the making during one tick: every change of phase goes through the transition table here."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sluice_core.api.canarysplit import ArmSpec
from sluice_core.api.canarysplit_status import CanarySplit, CanarySplitStatus, Phase, RolloutRecord
from sluice_core.rollout.observation import RolloutEvent
from sluice_core.rollout.presets import RolloutRules, StepRule
from sluice_core.rollout.revisions import content_of, revision_of
from sluice_core.rollout.states import RUNNING, Move, allows, next_phase
from sluice_core.rollout.times import rfc3339

HISTORY: Final = 10


class Draft:
    """One split's status while a tick works on it."""

    __slots__ = ("events", "now", "rules", "split", "status")

    def __init__(self, split: CanarySplit, rules: RolloutRules, now: float) -> None:
        self.split = split
        self.rules = rules
        self.now = now
        self.status: CanarySplitStatus = split.status
        self.events: list[RolloutEvent] = []

    def change(self, **fields: Any) -> None:
        """Replace fields of the status."""
        self.status = msgspec.structs.replace(self.status, **fields)

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Add an event."""
        self.events.append(RolloutEvent(reason=reason, message=message, warning=warning))

    def can(self, move: Move) -> bool:
        """Tell whether a move is possible now."""
        return allows(self.status.phase, move)

    def _move(self, move: Move, **fields: Any) -> None:
        self.change(phase=next_phase(self.status.phase, move), **fields)

    @property
    def candidate(self) -> ArmSpec:
        """Return the version that the spec asks for."""
        return self.split.spec.candidate

    @property
    def step(self) -> StepRule:
        """Return the rule of the present step; the watch is one more step, before the first there is an empty one."""
        if self.status.phase is Phase.WATCHING:
            return StepRule(weight=100, bake_seconds=self.rules.watch_seconds, min_requests=self.rules.watch_requests)
        number = min(self.status.step_number, len(self.rules.steps))
        if number == 0:
            return StepRule(weight=0, bake_seconds=0, min_requests=0)
        return self.rules.steps[number - 1]

    def begin(self, reason: str) -> None:
        """Start a new rollout of the spec's candidate, at its first step or before that step's gate."""
        self._supersede()
        self._start(Move.BEGIN)
        self.tell("RolloutStarted", f"{self.candidate.version} (revision {self.status.revision}): {reason}")
        self.advance()

    def retry(self) -> None:
        """Start another attempt at a candidate that was taken back."""
        self._start(Move.RETRY, last_failed_revision="")
        self.tell("RolloutStarted", f"{self.candidate.version} (revision {self.status.revision}): tried again by hand")
        self.advance()

    def _start(self, move: Move, **fields: Any) -> None:
        attempt = self.status.attempt + 1
        revision = revision_of(content_of(self.candidate), attempt)
        owner = self.split.metadata.uid or self.split.key
        self._move(
            move,
            attempt=attempt,
            revision=revision,
            salt=f"{owner}/{revision}",
            started_at=rfc3339(self.now),
            evidence="",
            verdict=None,
            stable=None,
            candidate=None,
            metrics=(),
            observed_share="",
            evidence_discount="",
            **self._fresh_step(0, 0),
            **fields,
        )

    def _fresh_step(self, number: int, weight: int) -> dict[str, Any]:
        return {
            "step_number": number,
            "weight": weight,
            "step_started_at": rfc3339(self.now),
            "baking_since": "",
            "deadline_passed": False,
            "paused_reason": "",
            "webhooks": (),
        }

    def advance(self, *, by_hand: bool = False) -> None:
        """Go to the next step, to its gate, or, after the last step, to everyone."""
        number = self.status.step_number + 1
        if number > len(self.rules.steps):
            self.finish()
            return
        step = self.rules.steps[number - 1]
        if step.gate.value == "Manual" and not by_hand:
            self._move(Move.WAIT, paused_reason="ManualGate")
            self.tell("AwaitingGate", f"step {number} with weight {step.weight}% wants a promote request")
            return
        self._move(Move.ADVANCE, **self._fresh_step(number, step.weight))
        self.tell("WeightChanged", f"step {number} of {len(self.rules.steps)}: weight {step.weight}%")

    def finish(self) -> None:
        """Give everyone the candidate and watch it."""
        self._move(
            Move.FINISH,
            previous_arm=self.status.stable_arm,
            stable_arm=self.candidate,
            **self._fresh_step(len(self.rules.steps), 100),
        )
        self.tell("WeightChanged", f"everyone has {self.candidate.version}; it is watched")

    def confirm(self, reason: str) -> None:
        """End the watch: the candidate is the stable version."""
        self._move(Move.CONFIRM, weight=100, reason=reason)
        self._record("Promoted", reason)
        self.tell("Promoted", f"{self.candidate.version}: {reason}")

    def take_back(self, move: Move, reason: str) -> None:
        """Send everyone back to the stable version; the revision counts as failed."""
        restored: dict[str, Any] = {}
        if self.status.phase is Phase.WATCHING:
            restored = {"stable_arm": self.status.previous_arm, "previous_arm": None}
        self._move(
            move, weight=0, reason=reason, last_failed_revision=self.status.revision, paused_reason="", **restored
        )
        result = "RolledBack" if move is Move.ROLL_BACK else "Aborted"
        self._record(result, reason)
        self.tell(result, f"{self.candidate.version}: {reason}", warning=True)

    def pause(self, why: str, reason: str) -> None:
        """Hold the weight until someone says otherwise."""
        self._move(Move.PAUSE, paused_reason=why, reason=reason)
        self.tell("Paused", reason, warning=why != "Requested")

    def resume(self) -> None:
        """Go on with the present step; its deadline starts anew."""
        self._move(Move.RESUME, paused_reason="", step_started_at=rfc3339(self.now), deadline_passed=False)
        self.tell("Resumed", f"step {self.status.step_number} with weight {self.status.weight}%")

    def settle(self) -> None:
        """Note that the candidate is what everyone has already."""
        self._supersede()
        self._rest(Move.SETTLE, 0, "the candidate is the stable version")

    def give_back(self) -> None:
        """Return to the version that was stable before, at once: it has proved itself."""
        self._supersede()
        reason = "this version was stable before; everyone has it back at once"
        self._rest(Move.RETURN, 100, reason, stable_arm=self.candidate, previous_arm=None)
        self._record("Promoted", reason)
        self.tell("Promoted", f"{self.candidate.version}: {reason}")

    def refuse(self) -> None:
        """Keep a candidate out that has failed before."""
        self._supersede()
        reason = (
            f"this content failed before (revision {self.status.last_failed_revision}); change it or ask for a retry"
        )
        self._rest(Move.REFUSE, 0, reason)
        self.tell("RolledBack", f"{self.candidate.version}: {reason}", warning=True)

    def _rest(self, move: Move, weight: int, reason: str, **fields: Any) -> None:
        self._move(
            move,
            revision=revision_of(content_of(self.candidate), self.status.attempt),
            started_at=rfc3339(self.now),
            reason=reason,
            evidence="",
            verdict=None,
            stable=None,
            candidate=None,
            metrics=(),
            **self._fresh_step(0, weight),
            **fields,
        )

    def _supersede(self) -> None:
        """Close the record of a rollout that a change of spec ends."""
        if self.status.phase is Phase.WATCHING:  # it passed every step, so it stays the stable version
            self._record("Promoted", "the spec moved on during the watch")
        elif self.status.phase in RUNNING:
            self._record("Superseded", "the spec has changed")

    def _record(self, result: str, reason: str) -> None:
        arm = self.status.candidate
        record = RolloutRecord(
            revision=self.status.revision,
            version=arm.version if arm is not None else self.candidate.version,
            result=result,
            reason=reason[:512],
            started_at=self.status.started_at,
            finished_at=rfc3339(self.now),
        )
        self.change(history=(record, *self.status.history)[:HISTORY])
