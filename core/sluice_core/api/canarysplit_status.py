"""CanarySplit: what is observed and remembered about a rollout, and the resource as a whole.

Status is the rollout's only memory: whoever reads it can go on where another stopped. Times are RFC 3339.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from sluice_core.api.base import ATOMIC, Resource, Status, Value, keyed_by
from sluice_core.api.canarysplit import ArmSpec, CanarySplitSpec, MetricMode

_time = Annotated[str, Meta(max_length=40)]
_figure = Annotated[str, Meta(max_length=64)]


class Phase(StrEnum):
    """Where a rollout stands. For people; programs read the conditions."""

    IDLE = "Idle"  # the candidate is what everyone has already
    PROGRESSING = "Progressing"
    AWAITING_GATE = "AwaitingGate"  # the next step wants a promote request
    PAUSED = "Paused"
    WATCHING = "Watching"  # everyone has the candidate; harm still takes it back
    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"
    ABORTED = "Aborted"


class Verdict(StrEnum):
    """What the figures say. Only Pass lets a step end, only Harm takes a candidate back."""

    PASS = "Pass"  # noqa: S105  a verdict, not a password
    HARM = "Harm"
    INCONCLUSIVE = "Inconclusive"
    INSUFFICIENT_DATA = "InsufficientData"
    ERROR = "Error"


class ArmFigures(Value, frozen=True, kw_only=True):
    """One arm in figures, since the rollout began."""

    version: Annotated[str, Meta(max_length=63, description="Version of this arm.")] = ""
    requests: Annotated[int, Meta(ge=0, description="Requests that count for the analysis.")] = 0
    errors: Annotated[int, Meta(ge=0, description="Of these, failed.")] = 0
    excluded: Annotated[
        int,
        Meta(ge=0, description="Requests left out: forced, without a user key, ended by the caller or refused."),
    ] = 0
    error_percent: Annotated[_figure, Meta(description="Share of failed requests, in percent.")] = ""
    p95_milliseconds: Annotated[int, Meta(ge=0, description="95th percentile of the time to the answer.")] | None = None
    first_token_p95_milliseconds: (
        Annotated[int, Meta(ge=0, description="95th percentile of the time to the first content.")] | None
    ) = None
    cost_per_request_usd: Annotated[_figure, Meta(description="Mean cost of a request, in US dollars.")] = ""


class MetricStatus(Value, frozen=True, kw_only=True):
    """One metric of the analysis: both arms, the limit, and how sure one can be."""

    name: Annotated[str, Meta(max_length=63, description="Metric.")]
    mode: Annotated[MetricMode, Meta(description="Required decides; Advisory only informs.")] = MetricMode.REQUIRED
    stable: Annotated[_figure, Meta(description="Figure of the stable arm.")] = ""
    candidate: Annotated[_figure, Meta(description="Figure of the candidate.")] = ""
    limit: Annotated[_figure, Meta(description="What the candidate may reach.")] = ""
    evidence: Annotated[_figure, Meta(description="How strongly the figures speak of harm; acted on at its limit.")] = (
        ""
    )
    p: Annotated[
        _figure, Meta(description="Chance of such figures from a harmless candidate, valid at every look.")
    ] = ""
    n: Annotated[int, Meta(ge=0, description="Candidate requests behind it.")] = 0
    verdict: Annotated[Verdict, Meta(description="What the figures say.")] = Verdict.INSUFFICIENT_DATA
    needed_requests: Annotated[int, Meta(ge=0, description="About how many more candidate requests it needs.")] = 0


class WebhookStatus(Value, frozen=True, kw_only=True):
    """The last answer of an outside judge."""

    name: Annotated[str, Meta(max_length=63, description="Name of the webhook.")]
    answer: Annotated[str, Meta(max_length=16, description="Pass, Fail, Wait or Error; empty before the first.")] = ""
    message: Annotated[str, Meta(max_length=256, description="What it said.")] = ""
    step: Annotated[int, Meta(ge=0, description="Step that it was asked about.")] = 0
    asked_at: Annotated[_time, Meta(description="When it was last asked.")] = ""


class RolloutRecord(Value, frozen=True, kw_only=True):
    """One past rollout."""

    revision: Annotated[str, Meta(max_length=64, description="Revision.")]
    version: Annotated[str, Meta(max_length=63, description="Version of the candidate.")] = ""
    result: Annotated[str, Meta(max_length=32, description="Promoted, RolledBack, Aborted or Superseded.")]
    reason: Annotated[str, Meta(max_length=512, description="Why, with figures.")] = ""
    started_at: Annotated[_time, Meta(description="When it began.")] = ""
    finished_at: Annotated[_time, Meta(description="When it ended.")] = ""


class CanarySplitStatus(Status, frozen=True, kw_only=True):
    """Where the rollout stands, why, and what happens when next."""

    phase: Annotated[Phase, Meta(description="Where the rollout stands, in one word for people.")] | None = None
    step: Annotated[str, Meta(max_length=16, description='Step of steps, such as "2/3".')] = ""
    weight: Annotated[int, Meta(ge=0, le=100, description="Share of users sent to the candidate, in percent.")] = 0
    applied_weight: Annotated[
        int, Meta(ge=0, le=100, description="The weight that every pod is known to run; lags while pods catch up.")
    ] = 0
    observed_share: Annotated[_figure, Meta(description="Candidate's share of this step's requests, in percent.")] = ""
    synced_pods: Annotated[str, Meta(max_length=32, description='Pods that run this policy, such as "12/12".')] = ""
    stable: Annotated[ArmFigures | None, Meta(description="The stable arm in figures.")] = None
    candidate: Annotated[ArmFigures | None, Meta(description="The candidate in figures.")] = None
    verdict: Annotated[Verdict, Meta(description="What the figures say.")] | None = None
    reason: Annotated[str, Meta(max_length=1024, description="Why, in one sentence with figures.")] = ""
    metrics: Annotated[
        tuple[MetricStatus, ...],
        Meta(max_length=16, description="The analysis, metric by metric.", extra_json_schema=keyed_by("name")),
    ] = ()
    webhooks: Annotated[
        tuple[WebhookStatus, ...],
        Meta(max_length=8, description="Outside judges.", extra_json_schema=keyed_by("name")),
    ] = ()
    evidence_discount: Annotated[
        _figure,
        Meta(description="By how much evidence is discounted because requests of one user are alike."),
    ] = ""
    next_transition_time: Annotated[_time, Meta(description="When the rollout can move on at the earliest.")] = ""
    started_at: Annotated[_time, Meta(description="When this rollout began.")] = ""
    step_started_at: Annotated[_time, Meta(description="When this step began.")] = ""
    baking_since: Annotated[
        _time, Meta(description="When every pod had this step's weight; bake time counts from it.")
    ] = ""
    revision: Annotated[
        str, Meta(max_length=64, description="The candidate's content and the attempt: counts and salt belong to it.")
    ] = ""
    attempt: Annotated[int, Meta(ge=0, description="Rollouts begun so far.")] = 0
    step_number: Annotated[int, Meta(ge=0, description="Number of the present step, 0 before the first.")] = 0
    salt: Annotated[str, Meta(max_length=512, description="Salt of the assignment of users to arms.")] = ""
    paused_reason: Annotated[str, Meta(max_length=64, description="Why it is paused, in one word.")] = ""
    deadline_passed: Annotated[bool, Meta(description="Whether this step's deadline has passed without data.")] = False
    stable_arm: Annotated[
        ArmSpec | None, Meta(description="The version that is stable now: the one promoted last.")
    ] = None
    previous_arm: Annotated[ArmSpec | None, Meta(description="The version that was stable before.")] = None
    stable_content: Annotated[
        str, Meta(max_length=64, description="Digest of spec.stable as last seen; a change of it takes effect at once.")
    ] = ""
    last_failed_revision: Annotated[
        str, Meta(max_length=64, description="The revision that was last taken back; it is not tried again by itself.")
    ] = ""
    consumed_requests: Annotated[
        dict[str, Annotated[str, Meta(max_length=256)]],
        Meta(max_length=8, description="The last token of each manual request that was carried out."),
    ] = {}
    evidence: Annotated[
        str,
        Meta(max_length=32_768, description="The judge's memory, so that a restart decides the same; not for people."),
    ] = ""
    history: Annotated[
        tuple[RolloutRecord, ...],
        Meta(max_length=10, description="The last ten rollouts, latest first.", extra_json_schema=ATOMIC),
    ] = ()


class CanarySplit(Resource, frozen=True, kw_only=True):
    """Progressive delivery of a model, a prompt or its parameters."""

    spec: CanarySplitSpec
    status: CanarySplitStatus = CanarySplitStatus()
