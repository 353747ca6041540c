"""Scores that an application gives to answers: POST /sluice/v1/feedback, counted for the arm that gave the answer."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Generic, TypeVar

import msgspec

from sluice_core.rollout.counts import ArmCounter
from sluice_core.split import Arm

PATH = "/sluice/v1/feedback"
MAX_BODY_BYTES = 16 * 1024
MAX_REMEMBERED = 40_000
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


_Value = TypeVar("_Value")


class _Lately(Generic[_Value]):
    """What is known by name: the latest `MAX_REMEMBERED` at most, half as many at least.

    Two generations instead of one queue, since nearly every name is new and never asked for: it costs one step.
    """

    __slots__ = ("_older", "_young")

    def __init__(self) -> None:
        self._young: dict[str, _Value] = {}
        self._older: dict[str, _Value] = {}

    def put(self, name: str, value: _Value) -> None:
        if len(self._young) >= MAX_REMEMBERED // 2:
            self._older, self._young = self._young, {}
        self._young[name] = value

    def get(self, name: str) -> _Value | None:
        found = self._young.get(name)
        return self._older.get(name) if found is None else found

    def keep(self, wanted: Callable[[_Value], bool]) -> None:
        self._young = {name: value for name, value in self._young.items() if wanted(value)}
        self._older = {name: value for name, value in self._older.items() if wanted(value)}


_Answer = tuple[ArmCounter, str]
"""The counter of the arm that gave an answer, and the call."""


class ArmMemory:
    """Which arm gave the answers of late, by call, response and conversation. The oldest are forgotten."""

    __slots__ = ("_answers", "_conversations", "_scored")

    def __init__(self) -> None:
        self._answers: _Lately[_Answer] = _Lately()
        self._conversations: _Lately[_Answer] = _Lately()
        self._scored: _Lately[set[str]] = _Lately()  # the names of its scores, by call

    def remember(self, counter: ArmCounter, call_id: str, response_id: str | None, conversation: str | None) -> None:
        """Note which arm's counter a call belongs to."""
        answer = counter, call_id
        self._answers.put(call_id, answer)
        if response_id is not None and len(response_id) <= MAX_NAME_CHARACTERS:
            self._answers.put(response_id, answer)
        if conversation is not None and len(conversation) <= MAX_NAME_CHARACTERS:
            self._conversations.put(conversation, answer)

    def arm_of(self, response_id: str | None, conversation: str | None) -> Arm | None:
        """Return the arm that gave an answer, or the last one of a conversation, if it is remembered."""
        answer = self._answers.get(response_id or "") or self._conversations.get(conversation or "")
        return answer[0].arm if answer is not None else None

    def keep(self, rollouts: Container[Rollout]) -> None:
        """Forget the answers of other rollouts: in the next one the same arm is another version."""
        for known in (self._answers, self._conversations):
            known.keep(lambda answer: answer[0].rollout in rollouts)

    def score(self, feedback: Feedback) -> bool:
        """Count a score once per call and name; tell whether the call is known."""
        answer = self._answers.get(feedback.response_id or feedback.call_id or "")
        if answer is None:
            return False
        counter, call_id = answer
        scored = self._scored.get(call_id)
        if scored is None:
            scored = set()
            self._scored.put(call_id, scored)
        if feedback.name not in scored and len(scored) < 16:
            scored.add(feedback.name)
            counter.record_score(feedback.score)
        return True
