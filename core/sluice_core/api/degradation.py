"""The degradation ladder as users write it: levels of service, and what calls become on them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from msgspec import Meta

from sluice_core.api.base import Value, rules


class Level(StrEnum):
    """How much of the service there is, from all of it to none. The order is that of the ladder."""

    FULL = "Full"
    ECONOMY = "Economy"
    CACHE_ONLY = "CacheOnly"
    STATIC = "Static"
    MAINTENANCE = "Maintenance"


class Cause(StrEnum):
    """Why a level is in force."""

    HAND = "Hand"
    BUDGET = "Budget"
    BREAKER = "Breaker"


def _without(*levels: Level) -> dict[str, Any]:
    return {"enum": [each.value for each in Level if each not in levels]}


class Degraded(Value, frozen=True, kw_only=True):
    """What calls become at level Economy."""

    model: Annotated[str, Meta(min_length=1, max_length=128, description="Cheaper model to use.")] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=10_000_000, description="Longest output, in tokens.")] | None = None


class BudgetStep(Value, frozen=True, kw_only=True):
    """The level from some share of a budget on."""

    at_percent: Annotated[int, Meta(ge=1, le=1000, description="Share of the budget that is spent, in percent.")]
    level: Annotated[
        Level, Meta(description="Level from there until the window ends.", extra_json_schema=_without(Level.FULL))
    ]


class Degradation(Value, frozen=True, kw_only=True):
    """How much of the service there is, and what calls become when it is not all."""

    level: Annotated[
        Level,
        Meta(
            description=(
                "Level set by hand: Full, Economy (a cheaper model, a shorter output), CacheOnly, Static (a fixed "
                "answer) or Maintenance (refused). Of the levels of whole, allocation and budgets the highest counts."
            )
        ),
    ] = Level.FULL
    on_open_breaker: Annotated[
        Level | None,
        Meta(
            description=(
                "Level of calls for which every upstream is stopped by its breaker, fallbacks included; default they "
                "are refused."
            ),
            extra_json_schema=_without(Level.FULL, Level.ECONOMY, Level.CACHE_ONLY),
        ),
    ] = None
    degrade_to: Annotated[
        Degraded | None,
        Meta(
            description=(
                "What calls become at level Economy where the budget does not say; default the route's first fallback "
                "with another model."
            )
        ),
    ] = None
    static_message: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=4096,
                description="Text of the answer at level Static, for routes without a static fallback of their own.",
            ),
        ]
        | None
    ) = None
    retry_after_seconds: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=86_400,
                description="What refusals give as Retry-After while a level set by hand is in force; default 60.",
            ),
        ]
        | None
    ) = None


_RANKS: Final = "s.level == 'Economy' ? 1 : s.level == 'CacheOnly' ? 2 : s.level == 'Static' ? 3 : 4"

STEP_RULES: Final = (
    (
        "!has(self.steps) || (self.steps.map(s, s.atPercent).isSorted() && "
        "self.steps.all(s, self.steps.exists_one(t, t.atPercent == s.atPercent)))",
        "atPercent must rise from step to step",
    ),
    (
        f"!has(self.steps) || self.steps.map(s, {_RANKS}).isSorted()",
        "a later step must not be a lower level: Economy, CacheOnly, Static, Maintenance",
    ),
    (
        "!has(self.steps) || self.onExhausted == 'Degrade' || self.steps.all(s, s.atPercent < 100)",
        "onExhausted Reject refuses calls at 100 percent; set it to Degrade, or keep steps below 100",
    ),
)
"""Rules of a budget about its steps."""

DEGRADATION_RULES: Final = rules(
    (
        "!has(self.degradeTo) || has(self.degradeTo.model) || has(self.degradeTo.maxOutputTokens)",
        "degradation.degradeTo needs model, maxOutputTokens or both",
    ),
)
