"""What a split's strategy and analysis come to once the preset has filled in what they leave open."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sluice_core.api.base import Value
from sluice_core.api.canarysplit import (
    Analysis,
    BlueGreen,
    CanarySplitSpec,
    ErrorRateAnalysis,
    Gate,
    IncreaseAnalysis,
    LatencyAnalysis,
    MetricMode,
    OnInconclusive,
    Preset,
    Step,
    StrategyType,
    WebhookAnalysis,
)

DEFAULT_WEIGHTS: Final = (5, 25, 50, 100)


class Metric(StrEnum):
    """What is judged."""

    ERROR_RATE = "errorRate"
    ERROR_CEILING = "errorCeiling"
    LATENCY = "latency"
    FIRST_TOKEN = "firstToken"  # noqa: S105  a metric, not a secret
    COST = "cost"
    OUTPUT_TOKENS = "outputTokens"
    FINISH_REASONS = "finishReasons"
    SCORE = "score"


class MetricRule(Value, frozen=True, kw_only=True):
    """One metric and its limit: the increase over stable in percent (the decrease for a score), or the ceiling."""

    metric: Metric
    limit_percent: int
    mode: MetricMode = MetricMode.REQUIRED
    quantile: int = 95


class StepRule(Value, frozen=True, kw_only=True):
    """One step with nothing left open."""

    weight: int
    bake_seconds: int
    min_requests: int
    gate: Gate = Gate.AUTO


class RolloutRules(Value, frozen=True, kw_only=True):
    """Everything that a rollout is steered by."""

    steps: tuple[StepRule, ...]
    watch_seconds: int
    watch_requests: int
    step_deadline_seconds: int
    on_inconclusive: OnInconclusive
    metrics: tuple[MetricRule, ...]
    webhooks: tuple[WebhookAnalysis, ...]
    alpha: float

    @property
    def alpha_each(self) -> float:
        """Return the chance of a false alarm that each metric may use up (Bonferroni over those that decide)."""
        return self.alpha / max(1, sum(rule.mode is MetricMode.REQUIRED for rule in self.metrics))


class _Defaults(Value, frozen=True, kw_only=True):
    bake_seconds: int
    min_requests: int
    watch_seconds: int
    error_increase_percent: int
    ceiling_percent: int
    latency_increase_percent: int
    increase_percent: int


_DEFAULTS: Final = {
    Preset.STANDARD: _Defaults(
        bake_seconds=300,
        min_requests=100,
        watch_seconds=600,
        error_increase_percent=50,
        ceiling_percent=20,
        latency_increase_percent=25,
        increase_percent=25,
    ),
    Preset.STRICT: _Defaults(
        bake_seconds=86_400,
        min_requests=1000,
        watch_seconds=86_400,
        error_increase_percent=50,
        ceiling_percent=20,
        latency_increase_percent=20,
        increase_percent=10,
    ),
}


def resolve(spec: CanarySplitSpec) -> RolloutRules:
    """Return the rules of a split. Strict judges errors, latency and cost even where the analysis names none."""
    defaults = _DEFAULTS[spec.preset]
    analysis = spec.analysis
    strategy = spec.strategy
    blue_green = (strategy.blue_green or BlueGreen()) if strategy.type is StrategyType.BLUE_GREEN else None
    watch_seconds = defaults.watch_seconds if strategy.watch_seconds is None else strategy.watch_seconds
    steps = _blue_green_steps(blue_green) if blue_green else _canary_steps(strategy.steps, defaults)
    return RolloutRules(
        steps=steps,
        watch_seconds=blue_green.watch_seconds if blue_green else watch_seconds,
        watch_requests=defaults.min_requests if blue_green else steps[-1].min_requests,
        step_deadline_seconds=strategy.step_deadline_seconds,
        on_inconclusive=strategy.on_inconclusive,
        metrics=_metrics(analysis, defaults, strict=spec.preset is Preset.STRICT),
        webhooks=analysis.webhooks,
        alpha=analysis.false_rollback_percent / 100,
    )


def _canary_steps(steps: tuple[Step, ...], defaults: _Defaults) -> tuple[StepRule, ...]:
    return tuple(
        StepRule(
            weight=step.weight,
            bake_seconds=defaults.bake_seconds if step.bake_seconds is None else step.bake_seconds,
            min_requests=defaults.min_requests if step.min_requests is None else step.min_requests,
            gate=step.gate,
        )
        for step in steps or tuple(Step(weight=weight) for weight in DEFAULT_WEIGHTS)
    )


def _blue_green_steps(settings: BlueGreen) -> tuple[StepRule, ...]:
    """A preview that only the override header reaches, then everyone at once."""
    return (
        StepRule(weight=0, bake_seconds=settings.preview_seconds, min_requests=0),
        StepRule(weight=100, bake_seconds=0, min_requests=0, gate=settings.gate),
    )


def _metrics(analysis: Analysis, defaults: _Defaults, *, strict: bool) -> tuple[MetricRule, ...]:
    errors = analysis.error_rate or (ErrorRateAnalysis() if strict else None)
    latency = analysis.latency or (LatencyAnalysis() if strict else None)
    cost = analysis.cost or (IncreaseAnalysis() if strict else None)
    rules: list[MetricRule] = []
    if errors is not None:
        increase, ceiling = errors.max_increase_percent, errors.ceiling_percent
        rules += [
            MetricRule(
                metric=Metric.ERROR_CEILING,
                limit_percent=defaults.ceiling_percent if ceiling is None else ceiling,
                mode=errors.mode,
            ),
            MetricRule(
                metric=Metric.ERROR_RATE,
                limit_percent=defaults.error_increase_percent if increase is None else increase,
                mode=errors.mode,
            ),
        ]
    for metric, timing in ((Metric.LATENCY, latency), (Metric.FIRST_TOKEN, analysis.first_token)):
        if timing is not None:
            rules.append(_timing(metric, timing, defaults))
    for metric, mean in (
        (Metric.COST, cost),
        (Metric.OUTPUT_TOKENS, analysis.output_tokens),
        (Metric.FINISH_REASONS, analysis.finish_reasons),
    ):
        if mean is not None:
            limit = mean.max_increase_percent
            rules.append(
                MetricRule(
                    metric=metric,
                    limit_percent=defaults.increase_percent if limit is None else limit,
                    mode=mean.mode,
                )
            )
    if analysis.score is not None:
        rules.append(
            MetricRule(metric=Metric.SCORE, limit_percent=analysis.score.max_decrease_percent, mode=analysis.score.mode)
        )
    return tuple(rules)


def _timing(metric: Metric, timing: LatencyAnalysis, defaults: _Defaults) -> MetricRule:
    limit = timing.max_increase_percent
    return MetricRule(
        metric=metric,
        limit_percent=defaults.latency_increase_percent if limit is None else limit,
        mode=timing.mode,
        quantile=timing.quantile,
    )
