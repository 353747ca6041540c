"""What the application is told when a call ends here: limits, budgets, open breakers, upstreams that do not answer."""

from __future__ import annotations

from sluice_core.api.degradation import Cause, Level
from sluice_core.classify import Failure
from sluice_core.errors import Refusal, RefusalCode, refuse
from sluice_core.ladder import Standing
from sluice_core.limits.decisions import Refused
from sluice_core.limits.keys import Dimension, Layer
from sluice_core.records import Outcome

_WHAT = {
    Dimension.REQUESTS: "requests per minute",
    Dimension.TOKENS: "tokens per minute",
    Dimension.REQUESTS_DAY: "requests per day",
    Dimension.CONCURRENCY: "calls in flight",
    Dimension.MONEY_DAY: "dollars per day",
}
_WHOSE = {
    Layer.USER: "this user",
    Layer.ALLOCATION: "this workload",
    Layer.MODEL: "this model",
    Layer.BUDGET: "the budget",
}


def limited(refused: Refused, policy: str, now: float) -> Refusal:
    """Return the refusal by a limit. `policy` names the quota and allocation."""
    obstacle = refused.obstacle
    what = f"the limit of {_WHAT[obstacle.dimension]} of {_WHOSE[obstacle.layer]}"
    wait = max(0.0, refused.retry_at - now) if refused.retry_at is not None else None
    match refused.reason:
        case "too_large":
            code, message = RefusalCode.REQUEST_TOO_LARGE_FOR_LIMIT, f"The call alone is larger than {what}."
        case "budget_exhausted":
            code, message = RefusalCode.BUDGET_EXCEEDED, "The budget of this workload is spent."
        case "queue_full":
            code, message = RefusalCode.QUEUE_FULL, f"Too many calls wait already for {what}."
        case _:
            code, message = _CODES.get(obstacle.dimension, RefusalCode.RATE_LIMIT_EXCEEDED), f"Over {what}."
    return refuse(code, f"{message} (Sluice policy {policy})", policy=policy, retry_after_seconds=wait)


_CODES = {
    Dimension.REQUESTS_DAY: RefusalCode.DAILY_LIMIT_EXCEEDED,
    Dimension.MONEY_DAY: RefusalCode.BUDGET_EXCEEDED,
}


_WHY = {
    Cause.HAND: "set by hand",
    Cause.BUDGET: "because of what is spent",
    Cause.BREAKER: "because the upstream keeps failing",
}


def below_service(standing: Standing, policy: str, wait_seconds: float) -> Refusal:
    """Return the refusal of a level of service that has no answer for a call. `policy` names quota and allocation."""
    why = f"{standing.level.value}, {_WHY[standing.cause or Cause.HAND]}"
    if standing.level is Level.MAINTENANCE:
        code, message = RefusalCode.MAINTENANCE, f"The level of service is {why}: no calls are sent."
    else:
        code, message = RefusalCode.DEGRADED, f"The level of service is {why}: there is no answer for this call."
    return refuse(code, f"{message} (Sluice policy {policy})", policy=policy, retry_after_seconds=wait_seconds)


def circuit_open(upstream: str, wait_seconds: float) -> Refusal:
    """Return the refusal while every breaker that could let the call through is open."""
    return refuse(
        RefusalCode.CIRCUIT_OPEN,
        f"Calls to upstream {upstream} are stopped because it keeps failing; the next may go in {wait_seconds:.0f} s.",
        policy=upstream,
        retry_after_seconds=max(0.0, wait_seconds),
    )


def held_back(upstream: str, wait_seconds: float) -> Refusal:
    """Return the refusal while the upstream has asked not to be called, by `Retry-After`."""
    return refuse(
        RefusalCode.RATE_LIMIT_EXCEEDED,
        f"Upstream {upstream} asked not to be called for this model; the next call may go in {wait_seconds:.0f} s.",
        policy=upstream,
        retry_after_seconds=max(0.0, wait_seconds),
    )


def no_credential(upstream: str) -> Refusal:
    """Return the refusal where no key is mounted."""
    return refuse(RefusalCode.NO_CREDENTIAL, f"Upstream {upstream} has no API key in this pod.", policy=upstream)


def unanswered(failure: Failure, upstream: str) -> Refusal:
    """Return what is said for an upstream that gave no answer to pass on."""
    what = failure.code or failure.outcome.value
    match failure.outcome:
        case Outcome.TIMEOUT:
            code, message = RefusalCode.DEADLINE_EXCEEDED, f"Upstream {upstream} did not answer in time ({what})."
        case Outcome.CONNECTION_ERROR:
            code, message = RefusalCode.UPSTREAM_UNREACHABLE, f"Upstream {upstream} cannot be reached ({what})."
        case _:
            code, message = RefusalCode.UPSTREAM_INVALID_RESPONSE, f"Upstream {upstream} sent no valid answer ({what})."
    return refuse(code, message, policy=upstream)
