"""What goes into a rollout's tick and what comes out: plain values."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sluice_core.api.base import SecretKeyRef, Value
from sluice_core.api.canarysplit_status import CanarySplitStatus
from sluice_core.rollout.counts import ArmCounts


class Answer(StrEnum):
    """What an outside judge says."""

    PASS = "Pass"  # noqa: S105  an answer, not a password
    FAIL = "Fail"
    WAIT = "Wait"
    ERROR = "Error"  # no answer, or none that can be read: never a pass


class WebhookAnswer(Value, frozen=True, kw_only=True):
    """The last answer of one webhook, about one step of one revision."""

    name: str
    revision: str
    step: int
    answer: Answer
    message: str = ""


class Observation(Value, frozen=True, kw_only=True):
    """What is seen at one moment.

    `stable` and `candidate` are the totals of the revision in status (`CountLedger.arms`). Of `total_pods`,
    `synced_pods` run a policy with `applied_revision` and `applied_weight`.
    """

    stable: ArmCounts | None = None
    candidate: ArmCounts | None = None
    synced_pods: int = 0
    total_pods: int = 0
    applied_revision: str = ""
    applied_weight: int = 0
    answers: tuple[WebhookAnswer, ...] = ()


class Question(Value, frozen=True, kw_only=True):
    """A question to an outside judge, to be sent by POST with `payload` as JSON."""

    name: str
    url: str
    timeout_seconds: int
    secret_ref: SecretKeyRef | None = None
    revision: str
    step: int
    payload: dict[str, Any] = {}


class RolloutEvent(Value, frozen=True, kw_only=True):
    """Something to tell people: a Kubernetes event in the making."""

    reason: str
    message: str
    warning: bool = False


class Plan(Value, frozen=True, kw_only=True):
    """What one tick decides. `urgent`: a decision was made, so the status has to be written before it is acted on.

    Figures alone may be written later, but not much later: what they say is lost with the leader until then.
    """

    status: CanarySplitStatus
    events: tuple[RolloutEvent, ...] = ()
    questions: tuple[Question, ...] = ()
    urgent: bool = False
