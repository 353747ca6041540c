"""CanarySplit: progressive delivery of a model, a prompt or its parameters. What a user writes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from sluice_core.api.base import ATOMIC, HEADER_NAME, SecretKeyRef, Value, key_source, keyed_by, rules


class RouteRef(Value, frozen=True, kw_only=True):
    """One rule of a ModelRoute in the same namespace."""

    name: Annotated[str, Meta(min_length=1, max_length=253, description="Name of the ModelRoute.")]
    rule: Annotated[str, Meta(min_length=1, max_length=63, description="Name of the rule.")] = "default"


def _not_here(mend: str, **schema: Any) -> dict[str, Any]:
    return {"description": f"Not allowed here; {mend}.", **schema}


# The parameters that may not be overridden are declared all the same, because CEL rules see declared fields alone.
_CALLERS_OWN = "it belongs to the caller"
_OVERRIDES: dict[str, Any] = {
    "x-kubernetes-preserve-unknown-fields": True,
    "properties": {
        "model": _not_here("use the arm's own field model", type="string", maxLength=128),
        "instructions": _not_here("use the arm's own field instructions", type="string", maxLength=32_768),
        "input": _not_here(_CALLERS_OWN, type="string", maxLength=32_768),
        "messages": _not_here(
            _CALLERS_OWN,
            type="array",
            maxItems=256,
            items={"type": "object", "x-kubernetes-preserve-unknown-fields": True, "maxProperties": 16},
        ),
        "stream": _not_here(_CALLERS_OWN, type="boolean"),
    },
    **rules(
        ("!has(self.model)", "model cannot be overridden; use the arm's own field model"),
        ("!has(self.instructions)", "instructions cannot be overridden; use the arm's own field instructions"),
        ("!has(self.input)", "input cannot be overridden; it belongs to the caller"),
        ("!has(self.messages)", "messages cannot be overridden; they belong to the caller"),
        ("!has(self.stream)", "stream cannot be overridden; it belongs to the caller"),
    ),
}


class ArmSpec(Value, frozen=True, kw_only=True):
    """One version of a model, its instructions and its parameters."""

    version: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=63,
            pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
            description="Name of this version in headers, records and metrics.",
        ),
    ]
    model: (
        Annotated[str, Meta(min_length=1, max_length=128, description="Model; default that of the route's target.")]
        | None
    ) = None
    instructions: (
        Annotated[
            str,
            Meta(
                max_length=32_768,
                description="System prompt; replaces the call's own system, developer or instructions text.",
            ),
        ]
        | None
    ) = None
    overrides: Annotated[
        dict[str, Any],
        Meta(
            max_length=32,
            description="Request parameters to set, such as temperature; any OpenAI parameter but model, input, "
            "messages, instructions and stream.",
            extra_json_schema=_OVERRIDES,
        ),
    ] = {}


class OnMissingKey(StrEnum):
    """Which arm a call without a user key gets."""

    STABLE = "Stable"
    RANDOM = "Random"


class Assignment(Value, frozen=True, kw_only=True):
    """How users are assigned to arms."""

    key: Annotated[
        tuple[key_source, ...],
        Meta(
            max_length=8,
            description="Where the user's key is read from; the first source that is present counts.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()
    on_missing_key: Annotated[OnMissingKey, Meta(description="The arm of a call without a key.")] = OnMissingKey.STABLE
    override_header: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=128,
            pattern=HEADER_NAME,
            description='Header that forces an arm, "stable" or "candidate"; such calls are left out of the analysis.',
        ),
    ] = "x-sluice-arm"


class StrategyType(StrEnum):
    """How the candidate takes over."""

    CANARY = "Canary"
    BLUE_GREEN = "BlueGreen"


class Gate(StrEnum):
    """Whether a step is left by itself or by hand."""

    AUTO = "Auto"
    MANUAL = "Manual"


class Step(Value, frozen=True, kw_only=True):
    """One step of the ramp."""

    weight: Annotated[int, Meta(ge=0, le=100, description="Share of users on the candidate, in percent.")]
    bake_seconds: Annotated[int, Meta(ge=0, le=2_592_000, description="Shortest stay on this step.")] | None = None
    min_requests: (
        Annotated[int, Meta(ge=0, le=100_000_000, description="Requests each arm needs before the step can pass.")]
        | None
    ) = None
    gate: Annotated[Gate, Meta(description="Auto, or Manual: wait for a promote request before this step begins.")] = (
        Gate.AUTO
    )


class OnInconclusive(StrEnum):
    """What happens when a step's deadline passes without a verdict."""

    PAUSE = "Pause"
    PROMOTE = "Promote"
    ROLLBACK = "Rollback"


class BlueGreen(Value, frozen=True, kw_only=True):
    """One switch, with a preview before it and a watch after it."""

    preview_seconds: Annotated[
        int,
        Meta(ge=0, le=2_592_000, description="Shortest preview, in which only the override header reaches it."),
    ] = 0
    gate: Annotated[Gate, Meta(description="Whether the switch is made by itself or by hand.")] = Gate.MANUAL
    watch_seconds: Annotated[
        int, Meta(ge=0, le=2_592_000, description="Time after the switch in which harm switches back.")
    ] = 600


class Strategy(Value, frozen=True, kw_only=True):
    """How the candidate takes over."""

    type: Annotated[StrategyType, Meta(description="Canary: by steps. BlueGreen: by one switch.")] = StrategyType.CANARY
    steps: Annotated[
        tuple[Step, ...],
        Meta(
            max_length=20,
            description="Steps of a Canary; default 5, 25, 50 and 100 percent.",
            extra_json_schema=ATOMIC,
        ),
    ] = ()
    blue_green: Annotated[BlueGreen | None, Meta(description="Settings of BlueGreen.")] = None
    watch_seconds: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=2_592_000,
                description="Watch after a Canary's last step: harm still takes the candidate back. Default by preset.",
            ),
        ]
        | None
    ) = None
    step_deadline_seconds: Annotated[
        int, Meta(ge=1, le=2_592_000, description="Longest stay on a step without a verdict.")
    ] = 3600
    on_inconclusive: Annotated[OnInconclusive, Meta(description="What happens at that deadline.")] = (
        OnInconclusive.PAUSE
    )


STRATEGY_RULES = rules(
    (
        "!has(self.steps) || size(self.steps) == 0 || self.steps[size(self.steps) - 1].weight == 100",
        "the last step needs weight 100",
    ),
    (
        "!has(self.steps) || (self.steps.map(s, s.weight).isSorted() && "
        "self.steps.all(s, self.steps.exists_one(t, t.weight == s.weight)))",
        "each step needs a higher weight than the one before it",
    ),
    (
        "self.type == 'Canary' || !has(self.steps) || size(self.steps) == 0",
        "steps are only used by type Canary",
    ),
    ("self.type == 'BlueGreen' || !has(self.blueGreen)", "blueGreen is only used by type BlueGreen"),
    (
        "self.type == 'Canary' || !has(self.watchSeconds)",
        "watchSeconds is only used by type Canary; BlueGreen has blueGreen.watchSeconds",
    ),
)


class MetricMode(StrEnum):
    """Whether a metric decides or only informs."""

    REQUIRED = "Required"
    ADVISORY = "Advisory"


_mode_field = Annotated[MetricMode, Meta(description="Required decides; Advisory only informs.")]


class ErrorRateAnalysis(Value, frozen=True, kw_only=True):
    """Limit on the candidate's errors."""

    max_increase_percent: (
        Annotated[int, Meta(ge=0, le=10_000, description="Errors may be this much more frequent than stable's.")] | None
    ) = None
    ceiling_percent: (
        Annotated[int, Meta(ge=1, le=100, description="Share of errors that is too much whatever stable does.")] | None
    ) = None
    mode: _mode_field = MetricMode.REQUIRED


class LatencyAnalysis(Value, frozen=True, kw_only=True):
    """Limit on a quantile of the candidate's latency."""

    quantile: Annotated[int, Meta(ge=50, le=99, description="Which quantile, in percent.")] = 95
    max_increase_percent: (
        Annotated[int, Meta(ge=0, le=10_000, description="It may be this much above stable's.")] | None
    ) = None
    mode: _mode_field = MetricMode.REQUIRED


class IncreaseAnalysis(Value, frozen=True, kw_only=True):
    """Limit on the increase of a mean per request."""

    max_increase_percent: (
        Annotated[int, Meta(ge=0, le=10_000, description="It may be this much above stable's.")] | None
    ) = None
    mode: _mode_field = MetricMode.REQUIRED


class ScoreAnalysis(Value, frozen=True, kw_only=True):
    """Limit on the decrease of the mean score that applications report."""

    max_decrease_percent: Annotated[int, Meta(ge=0, le=100, description="It may be this much below stable's.")] = 10
    mode: _mode_field = MetricMode.REQUIRED


class WebhookAnalysis(Value, frozen=True, kw_only=True):
    """An outside judge: a quality scorer, a red-team suite, an approval system."""

    name: Annotated[str, Meta(min_length=1, max_length=63, description="Name in status and events.")]
    url: Annotated[
        str,
        Meta(
            min_length=8,
            max_length=512,
            pattern=r"^https?://[^/?#\s@]+([/?][^\s]*)?$",
            description="Address that is asked, by POST, with the figures of both arms.",
        ),
    ]
    mode: _mode_field = MetricMode.REQUIRED
    timeout_seconds: Annotated[int, Meta(ge=1, le=60, description="Longest wait for an answer.")] = 10
    interval_seconds: Annotated[int, Meta(ge=1, le=86_400, description="Time between two questions.")] = 30
    secret_ref: Annotated[SecretKeyRef | None, Meta(description="Value of the Authorization header sent.")] = None


class Analysis(Value, frozen=True, kw_only=True):
    """How the candidate is judged, relative to the stable arm at the same time."""

    error_rate: Annotated[ErrorRateAnalysis | None, Meta(description="Errors.")] = None
    latency: Annotated[LatencyAnalysis | None, Meta(description="Time to the whole answer.")] = None
    first_token: Annotated[LatencyAnalysis | None, Meta(description="Time to the first content of a stream.")] = None
    cost: Annotated[IncreaseAnalysis | None, Meta(description="Money per request.")] = None
    output_tokens: Annotated[IncreaseAnalysis | None, Meta(description="Output tokens per request.")] = None
    finish_reasons: Annotated[
        IncreaseAnalysis | None, Meta(description="Answers cut short or filtered, as a share of requests.")
    ] = None
    score: Annotated[ScoreAnalysis | None, Meta(description="Scores that applications report.")] = None
    webhooks: Annotated[
        tuple[WebhookAnalysis, ...],
        Meta(max_length=8, description="Outside judges.", extra_json_schema=keyed_by("name")),
    ] = ()
    false_rollback_percent: Annotated[
        int,
        Meta(ge=1, le=20, description="Chance that a healthy candidate is rolled back, over all metrics."),
    ] = 5


class Preset(StrEnum):
    """Defaults for what strategy and analysis leave open."""

    STANDARD = "Standard"
    STRICT = "Strict"


class CanarySplitSpec(Value, frozen=True, kw_only=True):
    """What is delivered, to whom, how fast, and how it is judged."""

    route_ref: Annotated[RouteRef, Meta(description="The rule whose calls are split.")]
    stable: Annotated[ArmSpec, Meta(description="The version in use.")]
    candidate: Annotated[ArmSpec, Meta(description="The version to deliver.")]
    assignment: Annotated[Assignment, Meta(description="How users are assigned to arms.")] = Assignment()
    preset: Annotated[
        Preset,
        Meta(
            description="Defaults for bake times, request counts and limits. Strict: errors 1.5 times, p95 +20 %, cost "
            "+10 %, 1000 requests, 24 hours a step."
        ),
    ] = Preset.STANDARD
    strategy: Annotated[
        Strategy, Meta(description="How the candidate takes over.", extra_json_schema=STRATEGY_RULES)
    ] = Strategy()
    analysis: Annotated[Analysis, Meta(description="How the candidate is judged.")] = Analysis(
        error_rate=ErrorRateAnalysis()
    )


SPEC_RULES: dict[str, Any] = rules(
    (
        "self.stable.version != self.candidate.version",
        "stable and candidate need different versions; give the candidate a new one",
    ),
)
