"""OpenAI's usage tiers as presets, and the limits that hold once a preset and explicit figures are put together."""

from __future__ import annotations

from sluice_core.api.upstream import Limits, ModelLimits, Tier

# Published presets, not promises: OpenAI's real figures differ by model and account, which is why explicit limits win.
PRESETS: dict[Tier, Limits] = {
    Tier.FREE: Limits(requests_per_minute=3, tokens_per_minute=40_000),
    Tier.TIER1: Limits(requests_per_minute=60, tokens_per_minute=1_000_000),
    Tier.TIER2: Limits(requests_per_minute=5_000, tokens_per_minute=10_000_000),
    Tier.TIER3: Limits(requests_per_minute=10_000, tokens_per_minute=20_000_000),
    Tier.TIER4: Limits(requests_per_minute=30_000, tokens_per_minute=50_000_000),
    Tier.TIER5: Limits(requests_per_minute=60_000, tokens_per_minute=100_000_000),
}

_NO_PRESET = Limits()


def effective_limits(tier: Tier | None, explicit: Limits) -> Limits:
    """Return the limits in force: each explicit one, else the tier's, else 0, which means no limit."""
    preset = PRESETS[tier] if tier else _NO_PRESET
    return Limits(
        requests_per_minute=_first(explicit.requests_per_minute, preset.requests_per_minute),
        tokens_per_minute=_first(explicit.tokens_per_minute, preset.tokens_per_minute),
        requests_per_day=_first(explicit.requests_per_day, preset.requests_per_day),
        concurrency=_first(explicit.concurrency, preset.concurrency),
    )


def effective_model_limits(limits: ModelLimits) -> ModelLimits:
    """Return a model's limits with 0, no limit, where none is given; tiers speak of whole accounts only."""
    return ModelLimits(
        model=limits.model,
        requests_per_minute=limits.requests_per_minute or 0,
        tokens_per_minute=limits.tokens_per_minute or 0,
        requests_per_day=limits.requests_per_day or 0,
        concurrency=limits.concurrency or 0,
    )


def has_any_limit(limits: Limits) -> bool:
    """Tell whether there is anything to share out."""
    return any((limits.requests_per_minute, limits.tokens_per_minute, limits.requests_per_day, limits.concurrency))


def _first(*candidates: int | None) -> int:
    return next((each for each in candidates if each is not None), 0)
