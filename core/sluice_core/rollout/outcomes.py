"""What a call says about its arm, where that is not how the call ended."""

from __future__ import annotations

from typing import Final

from sluice_core.records import CallRecord, Outcome

HIDDEN_BY_RETRIES: Final = frozenset(
    {
        Outcome.PROVIDER_ERROR,
        Outcome.TIMEOUT,
        Outcome.CONNECTION_ERROR,
        Outcome.TRUNCATED,
        Outcome.CONFIG_ERROR,
    }
)
"""Failures of a first attempt that count. Throttling and bad keys are the account's doing, not the version's."""


def outcome_for_arm(record: CallRecord) -> Outcome:
    """Return how the first attempt failed, if that was the version's or the provider's doing, else how the call ended.

    Retries spare the application such failures; they must not hide them from the judge.
    """
    first = record.attempts[0].outcome if record.attempts else record.outcome
    return first if first in HIDDEN_BY_RETRIES else record.outcome
