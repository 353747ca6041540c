"""Scores that an application gives to answers: POST /sluice/v1/feedback, counted for the arm that gave the answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

import msgspec

from sluice_core.rollout.counts import ArmCounter
from sluice_core.split import Arm

PATH = "/sluice/v1/feedback"
MAX_BODY_BYTES = 16 * 1024
MAX_REMEMBERED = 20_000
MAX_NAME_CHARACTERS = 256
Rollout = tuple[str, str]  # split and revision


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """A score between 0 and 1 for one call, named by the API's id of its answer or by `x-sluice-call-id`."""

    score: float
    response_id: str | None = None
    call_id: str | None = None
    name: str = "score"


class FeedbackError(ValueError):
    """The body is no feedback. The message holds nothing of it."""


_decode = msgspec.json.Decoder(Feedback).decode


def parse(body: bytes) -> Feedback:
    """Return the feedback in a body.

    Raises:
        FeedbackError: it is none.
    """
    try:
        feedback = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FeedbackError("feedback is a JSON object with score and response_id or call_id") from None
    if not 0 <= feedback.score <= 1:
        raise FeedbackError("score must lie between 0 and 1")
    if (feedback.response_id is None) == (feedback.call_id is None):
        raise FeedbackError("set exactly one of response_id and call_id")
    return feedback


class _Answer:
    """An answer of late: whose it was, and which scores it has."""

    __slots__ = ("arm", "counter", "rollout", "scored")

    def __init__(self, rollout: Rollout, arm: Arm, counter: ArmCounter) -> None:
        self.rollout = rollout
        self.arm = arm
        self.counter = counter
        self.scored: set[str] = set()


class ArmMemory:
    """Which arm gave the answers of late, by call, response and conversation. The oldest are forgotten."""

    __slots__ = ("_answers", "_conversations")

    def __init__(self) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._conversations: OrderedDict[str, _Answer] = OrderedDict()

    def remember(
        self,
        rollout: Rollout,
        arm: Arm,
        counter: ArmCounter,
        *,
        call_id: str,
        response_id: str | None,
        conversation: str | None,
    ) -> None:
        """Note which arm's counter a call belongs to."""
        answer = _Answer(rollout, arm, counter)
        _put(self._answers, call_id, answer)
        _put(self._answers, response_id, answer)
        if conversation is not None:
            _put(self._conversations, conversation, answer)

    def arm_of(self, response_id: str | None, conversation: str | None) -> Arm | None:
        """Return the arm that gave an answer, or the last one of a conversation, if it is remembered."""
        answer = self._answers.get(response_id or "") or self._conversations.get(conversation or "")
        return answer.arm if answer is not None else None

    def keep(self, rollouts: Container[Rollout]) -> None:
        """Forget the answers of other rollouts: in the next one the same arm is another version."""
        for known in (self._answers, self._conversations):
            for name in [name for name, answer in known.items() if answer.rollout not in rollouts]:
                del known[name]

    def score(self, feedback: Feedback) -> bool:
        """Count a score once per call and name; tell whether the call is known."""
        answer = self._answers.get(feedback.response_id or feedback.call_id or "")
        if answer is None:
            return False
        if feedback.name not in answer.scored and len(answer.scored) < 16:
            answer.scored.add(feedback.name)
            answer.counter.record_score(feedback.score)
        return True


def _put(known: OrderedDict[str, _Answer], name: str | None, answer: _Answer) -> None:
    if name is None or len(name) > MAX_NAME_CHARACTERS:
        return
    known[name] = answer
    known.move_to_end(name)
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
