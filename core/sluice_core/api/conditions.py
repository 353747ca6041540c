"""Conditions: one observation each, in the shape of `metav1.Condition`, kept by the API conventions' rules."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sluice_core.api.base import Condition, ConditionStatus

MAX_MESSAGE_CHARACTERS: Final = 1024
_FIRST: Final = ("Ready", "Reconciling", "Stalled")


def rfc3339(unix_seconds: float) -> str:
    """Return a point in time as Kubernetes writes it: UTC, whole seconds, `Z`."""
    return datetime.fromtimestamp(int(unix_seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def find_condition(conditions: tuple[Condition, ...], type_: str) -> Condition | None:
    """Return the condition of this type, if there is one."""
    return next((condition for condition in conditions if condition.type == type_), None)


def set_condition(
    conditions: tuple[Condition, ...],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    now_unix: float,
    observed_generation: int,
) -> tuple[Condition, ...]:
    """Return the conditions with one of them set.

    `lastTransitionTime` moves only when the status flips, never for a new reason or message. The three that tools read
    come first, the rest by name, so that equal observations are equal values.
    """
    before = find_condition(conditions, type_)
    since = before.last_transition_time if before is not None and before.status == status else rfc3339(now_unix)
    condition = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message if len(message) <= MAX_MESSAGE_CHARACTERS else message[: MAX_MESSAGE_CHARACTERS - 1] + "…",
        last_transition_time=since,
        observed_generation=observed_generation,
    )
    others = tuple(each for each in conditions if each.type != type_)
    return tuple(sorted((*others, condition), key=_rank))


def remove_condition(conditions: tuple[Condition, ...], type_: str) -> tuple[Condition, ...]:
    """Return the conditions without the one of this type."""
    return tuple(condition for condition in conditions if condition.type != type_)


def _rank(condition: Condition) -> tuple[int, str]:
    return (_FIRST.index(condition.type) if condition.type in _FIRST else len(_FIRST), condition.type)
