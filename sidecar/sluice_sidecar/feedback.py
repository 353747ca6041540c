"""Scores that an application gives to answers: POST /sluice/v1/feedback, counted for the arm that gave the answer."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from sluice_core.rollout.counts import ArmCounter
from sluice_core.split import Arm

PATH = "/sluice/v1/feedback"
MAX_BODY_BYTES = 16 * 1024
MAX_REMEMBERED = 20_000


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


class ArmMemory:
    """Which arm gave the answers of late, by response id and call id. The oldest are forgotten."""

    __slots__ = ("_arms",)

    def __init__(self) -> None:
        self._arms: OrderedDict[str, tuple[Arm, ArmCounter, set[str]]] = OrderedDict()

    def remember(self, call_id: str, response_id: str | None, arm: Arm, counter: ArmCounter) -> None:
        """Note which arm's counter a call belongs to."""
        entry = (arm, counter, set[str]())
        for name in (call_id, response_id):
            if name is not None and len(name) <= 256:
                self._arms[name] = entry
        while len(self._arms) > MAX_REMEMBERED:
            self._arms.popitem(last=False)

    def arm_of(self, response_id: str) -> Arm | None:
        """Return the arm that gave an answer, if it is remembered."""
        entry = self._arms.get(response_id)
        return entry[0] if entry is not None else None

    def score(self, feedback: Feedback) -> bool:
        """Count a score once per call and name; tell whether the call is known."""
        entry = self._arms.get(feedback.response_id or feedback.call_id or "")
        if entry is None:
            return False
        _, counter, names = entry
        if feedback.name not in names and len(names) < 16:
            names.add(feedback.name)
            counter.record_score(feedback.score)
        return True
