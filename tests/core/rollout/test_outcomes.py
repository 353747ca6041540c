"""What a call says about its arm."""

from __future__ import annotations

import pytest

from sluice_core.api.modelroute import Endpoint
from sluice_core.records import Attempt, CallRecord, Outcome
from sluice_core.rollout.outcomes import outcome_for_arm


@pytest.mark.parametrize(
    ("attempts", "ended", "counted"),
    [
        ((Outcome.PROVIDER_ERROR, Outcome.SUCCESS), Outcome.SUCCESS, Outcome.PROVIDER_ERROR),
        ((Outcome.TIMEOUT, Outcome.SUCCESS), Outcome.SUCCESS, Outcome.TIMEOUT),
        ((Outcome.THROTTLED, Outcome.SUCCESS), Outcome.SUCCESS, Outcome.SUCCESS),
        ((Outcome.CREDENTIAL_ERROR, Outcome.SUCCESS), Outcome.SUCCESS, Outcome.SUCCESS),
        ((Outcome.SUCCESS,), Outcome.SUCCESS, Outcome.SUCCESS),
        ((), Outcome.REFUSED, Outcome.REFUSED),
    ],
)
def test_retries_do_not_hide_failures_from_the_judge(
    attempts: tuple[Outcome, ...], ended: Outcome, counted: Outcome
) -> None:
    """A failed first attempt counts, unless it was the account's doing."""
    record = CallRecord(
        call_id="c",
        time=0.0,
        namespace="n",
        endpoint=Endpoint.CHAT_COMPLETIONS,
        outcome=ended,
        attempts=tuple(Attempt(upstream="n/u", outcome=each) for each in attempts),
    )

    assert outcome_for_arm(record) is counted
