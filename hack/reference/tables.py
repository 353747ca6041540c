"""The pages that are tables of the code: refusals, failures, reasons, states, prices and presets."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from reference.markdown import code, comments, table
from reference.markdown import page as whole_page
from sluice_cli.mock.errors import ERRORS, error_body
from sluice_core import breaker, errors, retry
from sluice_core.api.canarysplit import CanarySplitSpec, Preset, StrategyType
from sluice_core.api.canarysplit_status import Phase, Verdict
from sluice_core.api.upstream import Retry
from sluice_core.classify import Failure, classify_response
from sluice_core.compile.tiers import PRESETS
from sluice_core.errors import ERROR_TYPE, RefusalCode, refuse
from sluice_core.prices import PRICES, TIERS, VERSION, ModelPrice
from sluice_core.problems import Reason
from sluice_core.rollout.diagram import mermaid
from sluice_core.rollout.presets import RolloutRules, resolve
from sluice_core.rollout.states import Move

# --- errors


def errors_page() -> str:
    """Return the page of what Sluice refuses itself and of what it does about an upstream's errors."""
    when = dict(re.findall(r"^\| (\w+) \| \d+ \| \w+ \| (.+) \|$", errors.__doc__ or "", re.MULTILINE))
    refusals = [(each, refuse(each, "")) for each in RefusalCode]
    return whole_page(
        "Errors",
        "## What Sluice answers itself",
        f"The closed set of its refusals. The body has OpenAI's shape with `type: {ERROR_TYPE}`; the header "
        f"`{errors.DECISION_HEADER}` names code and policy. Where waiting cannot help, `x-should-retry: false` keeps "
        "the SDKs from repeating the call.",
        table(
            ("Code", "Status", "Waiting helps", "When"),
            (
                (code(each), str(refusal.status), "yes" if refusal.should_retry else "no", when[each])
                for each, refusal in refusals
            ),
        ),
        "## What it does about an upstream's errors",
        "By the error's code first, then its type, then its status. *Next* is the step after a first failed attempt, "
        "if attempts, time, keys, fallbacks and the retry budget allow it; *Breaker* is what the failure does to the "
        "breaker of that upstream, model and key.",
        table(("Error", "Status", "Outcome", "Concerns", "Next", "Breaker"), _failures()),
    )


def _failures() -> Iterator[tuple[str, ...]]:
    for name, shape in ERRORS.items():
        failure = classify_response(shape.status, {}, msgspec.json.encode(error_body(shape)))
        if failure is None:
            yield (
                code(name),
                str(shape.status),
                "Success",
                "Call",
                "passed on: a refusal by content policy is an answer",
                "success",
            )
        else:
            yield (
                code(name),
                str(shape.status),
                failure.outcome.value,
                failure.scope.value,
                _next(failure),
                _breaker(failure),
            )


def _next(failure: Failure) -> str:
    situation = retry.Situation(
        attempt=1, elapsed_seconds=0, deadline_seconds=60, keys_left=1, can_shrink=True,
        next_fallback=retry.NextFallback.UPSTREAM,
    )  # fmt: skip
    match retry.next_step(failure, situation, Retry(), retry.RetryBudget(), 0.5, 0.0):
        case retry.Retry():
            return "retry after a delay, the last attempt at a fallback"
        case retry.RotateKey():
            return "another key, else a fallback"
        case retry.ShrinkAndRetry():
            return "once with a shorter input, else a fallback"
        case retry.Fallback():
            return "fallback"
        case retry.GiveUp():
            return "passed on"


def _breaker(failure: Failure) -> str:
    if (scope := breaker.stops(failure)) is not None:
        return f"stops the {scope.value.lower()}"
    return {True: "success", False: "failure", None: "not counted"}[breaker.counts(failure.outcome)]


# --- reasons


def reasons_page() -> str:
    """Return the page of what can be wrong with a resource."""
    rows = []
    for value, comment in comments(Reason).items():
        severity, _, effect = comment.partition(": " if comment.startswith(("error:", "warning:")) else ", ")
        rows.append((code(value), severity, effect))
    return whole_page(
        "Reasons",
        "What can be wrong with a resource that the API server has accepted. The reason stands in the resource's "
        "conditions and events, and `sluice validate` prints its message. An error says what is left out of the "
        "policy: the smallest part that can stand alone. A warning leaves nothing out.",
        table(("Reason", "Severity", "What is left out, or what is the matter"), rows),
    )


# --- states


def states_page() -> str:
    """Return the page of the state machines, drawn from their tables."""
    phases = table(("Phase", "Meaning"), ((code(v), c or _PHASES[v]) for v, c in comments(Phase).items()))
    moves = table(("Move", "Meaning"), ((code(v), c or _MOVES[v]) for v, c in comments(Move).items()))
    events = table(("Event", "Meaning"), ((code(v), c) for v, c in comments(breaker.Event).items()))
    verdicts = table(("Verdict", "Meaning"), ((code(each.value), _VERDICTS[each]) for each in Verdict))
    return whole_page(
        "State machines",
        "Drawn from the transition tables that the code runs on.",
        "## Rollout",
        f"```mermaid\n{mermaid()}```",
        phases,
        moves,
        "## Verdicts",
        verdicts,
        "## Circuit breaker",
        f"```mermaid\n{breaker.diagram()}```",
        events,
    )


_PHASES = {
    "Progressing": "a step is under way",
    "Paused": "the weight is held until someone resumes, promotes or aborts",
    "Promoted": "the candidate is the stable version",
    "RolledBack": "harm was found, or a judge failed it; everyone has the stable version",
    "Aborted": "taken back by hand",
}
_MOVES = {
    "RollBack": "harm: everyone back to stable",
    "Pause": "by hand, or for want of a verdict at a step's deadline",
    "Resume": "by hand; the step's deadline starts anew",
    "Abort": "by hand: everyone back to stable",
    "Retry": "by hand: another attempt at a version that was taken back",
}
_VERDICTS = {
    Verdict.PASS: "enough data, and nothing that leans towards harm",
    Verdict.HARM: "a limit is exceeded beyond reasonable doubt; acted on at once, in every phase",
    Verdict.INCONCLUSIVE: "enough data, but a figure leans towards harm without proof, or the stable arm fails too",
    Verdict.INSUFFICIENT_DATA: "too few requests on this step; decides nothing",
    Verdict.ERROR: "a metric that is asked for is not reported by any call; decides nothing",
}


# --- prices


def prices_page() -> str:
    """Return the page of the built-in price book."""
    columns = ("input", "cached", "cache_write", "output", "audio_input", "audio_output", "image_input", "image_output")
    names = tuple(name.replace("_", " ").capitalize() for name in columns)
    rows = (
        (code(price.model), price.since, *(getattr(price, name) or "" for name in columns), _special(price))
        for price in PRICES
    )
    return whole_page(
        "Prices",
        f"The built-in price book, version {VERSION}: US dollars per million tokens. `Upstream.spec.prices` overrides "
        "it. A price that is absent is not guessed: cached tokens without a price of their own cost as much as other "
        "input, and an unknown model has no cost, which records and metrics say.",
        table(("Model", "Since", *names, "Also"), rows),
        "## Service tiers",
        "Factors on these prices by the tier that the answer names, unless the model has its own. A tier that is not "
        "listed has no known price.",
        table(("Tier", "Factor"), ((code(tier), factor) for tier, factor in TIERS.items())),
    )


def _special(price: ModelPrice) -> str:
    parts = [f"{tier} x {factor}" for tier, factor in price.tiers.items()]
    if price.minute is not None:
        parts.append(f"{price.minute} per minute of audio")
    if (band := price.long_context) is not None:
        parts.append(
            f"above {band.input_tokens:,} input tokens: input x {band.input_factor}, output x {band.output_factor}"
        )
    return "; ".join(parts)


# --- presets


def presets_page() -> str:
    """Return the page of presets: usage tiers and rollout defaults."""
    return whole_page(
        "Presets",
        "## Usage tiers",
        "`Upstream.spec.tier` fills in limits that `spec.limits` leaves open. They are published presets, not "
        "promises: real accounts differ by model, which is why explicit limits win.",
        table(
            ("Tier", "Requests per minute", "Tokens per minute"),
            (
                (code(tier), f"{limits.requests_per_minute:,}", f"{limits.tokens_per_minute:,}")
                for tier, limits in PRESETS.items()
            ),
        ),
        "## Rollouts",
        "`CanarySplit.spec.preset` fills in what strategy and analysis leave open. Limits are for metrics that are "
        "judged; `Strict` judges errors, latency and cost even where the analysis names none, `Standard` errors.",
        table(("What", *(code(each) for each in Preset)), _rollout_rows()),
    )


def _rollout_rows() -> Iterator[tuple[str, ...]]:
    rules = [_resolved(preset) for preset in Preset]
    yield "steps", *(", ".join(f"{step.weight}%" for step in each.steps) for each in rules)
    yield "bake seconds, each step", *(str(each.steps[0].bake_seconds) for each in rules)
    yield "requests, each arm and step", *(str(each.steps[0].min_requests) for each in rules)
    yield "watch seconds after the last step", *(str(each.watch_seconds) for each in rules)
    for metric in rules[0].metrics:
        limits = (next(rule for rule in each.metrics if rule.metric is metric.metric).limit_percent for each in rules)
        yield f"{metric.metric.value}, limit in percent", *map(str, limits)


def _resolved(preset: Preset) -> RolloutRules:
    every = {
        name: {} for name in ("errorRate", "latency", "firstToken", "cost", "outputTokens", "finishReasons", "score")
    }
    spec = {
        "routeRef": {"name": "r"},
        "stable": {"version": "a"},
        "candidate": {"version": "b"},
        "preset": preset.value,
        "strategy": {"type": StrategyType.CANARY.value},
        "analysis": every,
    }
    return resolve(msgspec.convert(spec, CanarySplitSpec))
