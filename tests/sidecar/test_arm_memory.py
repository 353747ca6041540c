"""Which arm gave an answer is known for the answers of late, in bounded memory."""

from __future__ import annotations

import pytest

from sluice_core.rollout.counts import ArmCounter
from sluice_sidecar import feedback
from sluice_sidecar.feedback import ArmMemory, Feedback


def test_at_least_half_of_what_fits_is_remembered_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many answers there are, those of late keep their arm, and memory does not grow with the others."""
    monkeypatch.setattr(feedback, "MAX_REMEMBERED", 40)
    memory = ArmMemory()
    stable, candidate = ArmCounter("team/chat", "r-1", "stable"), ArmCounter("team/chat", "r-1", "candidate")
    for number in range(100):
        memory.remember(candidate if number % 2 else stable, f"call-{number}", f"resp-{number}", None)
        for back in range(min(number + 1, 10)):  # two names each
            late = number - back
            assert memory.arm_of(f"resp-{late}", None) == ("candidate" if late % 2 else "stable")
    known = [number for number in range(100) if memory.arm_of(f"resp-{number}", None) is not None]
    assert len(known) <= 20


def test_a_score_counts_once_per_call_and_name_whichever_of_its_names_is_used() -> None:
    """The id of the answer and that of the call are the same answer."""
    memory = ArmMemory()
    counter = ArmCounter("team/chat", "r-1", "stable")
    memory.remember(counter, "call-1", "resp-1", None)
    assert memory.score(Feedback(score=1.0, response_id="resp-1"))
    assert memory.score(Feedback(score=1.0, call_id="call-1"))
    assert memory.score(Feedback(score=0.0, call_id="call-1", name="other"))
    assert not memory.score(Feedback(score=1.0, call_id="call-2"))
    assert counter.export().score.n == 2


def test_answers_of_rollouts_that_are_over_are_forgotten() -> None:
    """In the next rollout the same arm is another version."""
    memory = ArmMemory()
    memory.remember(ArmCounter("team/chat", "r-1", "stable"), "call-1", "resp-1", "conv-1")
    memory.remember(ArmCounter("team/chat", "r-2", "candidate"), "call-2", "resp-2", "conv-2")
    memory.keep({("team/chat", "r-2")})
    assert memory.arm_of("resp-1", "conv-1") is None
    assert memory.arm_of(None, "conv-2") == "candidate"
