"""What to do after a failed attempt: the table from failure to next step, within one budget of attempts and time.

One call has one budget, whatever it tries: attempts (the first, retries, other keys and fallbacks together) and time.
Retries of all calls together have another, a share of live traffic, so that a failing upstream is not finished off by
those who try again. Each attempt is counted before it is made; a budget that counts answers would be blind to the very
calls that hang.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from sluice_core.api.base import Value
from sluice_core.api.upstream import Retry as RetryPolicy
from sluice_core.classify import Failure, Scope
from sluice_core.records import Outcome

FLOOR_RETRIES = 3
"""Retries per window that are always allowed, so that a pod with little traffic may retry at all."""

MIN_ATTEMPT_SECONDS = 0.05
"""A retry that would leave less time than this is not worth starting."""


class Retry(Value, frozen=True, kw_only=True):
    """Try the same target again after the delay."""

    delay_seconds: float


class Fallback(Value, frozen=True, kw_only=True):
    """Go on to the next fallback at once."""


class RotateKey(Value, frozen=True, kw_only=True):
    """Try the same target with another key at once."""


class ShrinkAndRetry(Value, frozen=True, kw_only=True):
    """Make the input smaller and try the same target again, once."""


class GiveUp(Value, frozen=True, kw_only=True):
    """Pass the failure on to the caller. `reason` says why, for the record."""

    reason: str


Step = Retry | Fallback | RotateKey | ShrinkAndRetry | GiveUp


class NextFallback(StrEnum):
    """What the next fallback is; a static answer costs no attempt."""

    NONE = "None"
    UPSTREAM = "Upstream"
    STATIC = "Static"


class Wish(StrEnum):
    """What could help against a failure, before the budgets are asked."""

    RETRY = "Retry"
    SHRINK = "Shrink"
    ROTATE = "Rotate"
    FALL_BACK = "FallBack"
    NOTHING = "Nothing"


WISHES: dict[Outcome, Wish] = {
    Outcome.SUCCESS: Wish.NOTHING,
    Outcome.REFUSED: Wish.NOTHING,
    Outcome.THROTTLED: Wish.RETRY,
    Outcome.EXHAUSTED: Wish.ROTATE,
    Outcome.PROVIDER_ERROR: Wish.RETRY,
    Outcome.TIMEOUT: Wish.RETRY,
    Outcome.CONNECTION_ERROR: Wish.RETRY,
    Outcome.TRUNCATED: Wish.RETRY,
    Outcome.CONFIG_ERROR: Wish.FALL_BACK,
    Outcome.CREDENTIAL_ERROR: Wish.ROTATE,
    Outcome.CLIENT_ERROR: Wish.NOTHING,
    Outcome.CLIENT_CLOSED: Wish.NOTHING,
}

_WISHES_BY_CODE: dict[str, Wish] = {"context_length_exceeded": Wish.SHRINK}


class Situation(Value, frozen=True, kw_only=True, gc=False):
    """How far a call has come. `attempt` counts those made, from 1; `deadline_seconds` is for the whole call.

    `keys_left` counts keys of this upstream that this call has not tried. `can_shrink` is false once it has shrunk.
    """

    attempt: int
    elapsed_seconds: float
    deadline_seconds: float
    content_seen: bool = False
    keys_left: int = 0
    can_shrink: bool = False
    next_fallback: NextFallback = NextFallback.NONE


class RetryBudget:
    """Retries as a share of live calls, over a window that exceeds the longest call. Times are monotonic seconds."""

    __slots__ = ("_calls", "_percent", "_retries", "_slot", "_slot_seconds")

    _SLOTS = 10

    def __init__(self, percent: int = 20, window_seconds: float = 600.0) -> None:
        self._percent = percent
        self._slot_seconds = window_seconds / self._SLOTS
        self._calls = [0] * self._SLOTS
        self._retries = [0] * self._SLOTS
        self._slot: int | None = None

    def configure(self, percent: int) -> None:
        """Take a new share; the counts stay."""
        self._percent = percent

    def count_call(self, now: float) -> None:
        """Count a call, before its first attempt."""
        self._calls[self._turn(now)] += 1

    def take(self, now: float) -> bool:
        """Count a retry if one is allowed; return whether it is."""
        slot = self._turn(now)
        if self._percent == 0:
            return False
        made = sum(self._retries) + 1
        if made > FLOOR_RETRIES and made * 100 > self._percent * sum(self._calls):
            return False
        self._retries[slot] += 1
        return True

    def _turn(self, now: float) -> int:
        slot = int(now // self._slot_seconds)
        if slot == self._slot:
            return slot % self._SLOTS
        last = slot if self._slot is None else self._slot
        for passed in range(last + 1, min(slot, last + self._SLOTS) + 1):
            self._calls[passed % self._SLOTS] = self._retries[passed % self._SLOTS] = 0
        self._slot = max(last, slot)
        return self._slot % self._SLOTS


def next_step(
    failure: Failure,
    situation: Situation,
    policy: RetryPolicy,
    budget: RetryBudget,
    draw: float,
    now: float,
) -> Step:
    """Return what to do after a failed attempt. `draw`, uniform in [0, 1), spreads retries in time.

    A retry is taken out of `budget` only if it is the answer.
    """
    if situation.content_seen:
        return GiveUp(reason="content_sent")  # a second answer would repeat what the client already has
    wish = _wish(failure)
    if wish is Wish.NOTHING:
        return GiveUp(reason="not_retriable")
    if situation.elapsed_seconds + MIN_ATTEMPT_SECONDS >= situation.deadline_seconds:
        return _static_or_give_up(situation, "deadline")
    if situation.attempt >= policy.attempts:
        return _static_or_give_up(situation, "attempts")
    match wish:
        case Wish.SHRINK if situation.can_shrink:
            return ShrinkAndRetry() if budget.take(now) else _fall_back(situation, "retry_budget")
        case Wish.ROTATE if situation.keys_left > 0 and failure.scope is not Scope.ACCOUNT:
            return RotateKey()
        case Wish.RETRY:
            return _retry(failure, situation, policy, budget, draw, now)
        case _:
            return _fall_back(situation, "no_fallback")


def _wish(failure: Failure) -> Wish:
    wish = _WISHES_BY_CODE.get(failure.code or "", WISHES[failure.outcome])
    return Wish.FALL_BACK if wish is Wish.RETRY and failure.should_retry is False else wish


def _retry(
    failure: Failure, situation: Situation, policy: RetryPolicy, budget: RetryBudget, draw: float, now: float
) -> Step:
    last = situation.attempt + 1 >= policy.attempts
    if last and situation.next_fallback is NextFallback.UPSTREAM:
        return Fallback()  # the last attempt is better spent elsewhere
    delay = delay_seconds(failure, situation.attempt, policy, draw)
    if delay is None:
        return _fall_back(situation, "retry_after")
    if situation.elapsed_seconds + delay + MIN_ATTEMPT_SECONDS >= situation.deadline_seconds:
        return _fall_back(situation, "deadline")
    if not budget.take(now):
        return _fall_back(situation, "retry_budget")
    return Retry(delay_seconds=delay)


def delay_seconds(failure: Failure, attempt: int, policy: RetryPolicy, draw: float) -> float | None:
    """Return the wait before the next attempt; None if the upstream asks for more than the policy waits.

    It doubles with each attempt and is spread from half to one and a half of its mean. A `Retry-After` is a lower
    bound, with a tenth of the mean at most on top, so that those who were told the same do not come back together. One
    above the policy's cap is neither cut short nor waited for: a fallback, or the caller, has better use for the time.
    """
    cap = float(policy.max_delay_seconds)
    mean = min(policy.base_delay_milliseconds / 1000 * 2.0 ** (attempt - 1), cap)
    asked = failure.retry_after_seconds
    if asked is None:
        return min(mean * (0.5 + draw), cap)
    if asked > cap:
        return None
    return min(asked + mean * 0.1 * draw, cap)


def _fall_back(situation: Situation, reason: str) -> Step:
    return Fallback() if situation.next_fallback is not NextFallback.NONE else GiveUp(reason=reason)


def _static_or_give_up(situation: Situation, reason: str) -> Step:
    return Fallback() if situation.next_fallback is NextFallback.STATIC else GiveUp(reason=reason)


def deadline_seconds(total_seconds: float, headers: Mapping[str, str]) -> float:
    """Return how long a whole call may take: the upstream's total, or the client's own time-out if that is shorter.

    The SDKs name theirs in `x-stainless-read-timeout`: later than that, nobody is there to read the answer.
    """
    text = headers.get("x-stainless-read-timeout")
    if text is None:
        return total_seconds
    try:
        patience = float(text)
    except ValueError:
        return total_seconds
    return min(total_seconds, patience) if patience > 0 else total_seconds


def client_retry(headers: Mapping[str, str]) -> int:
    """Return which retry of the client's own this call is, 0 for the first; the SDKs say so in a header."""
    text = headers.get("x-stainless-retry-count")
    if text is None or text == "0":
        return 0
    return min(int(text), 100) if text.isascii() and text.isdigit() and len(text) < 10 else 0
