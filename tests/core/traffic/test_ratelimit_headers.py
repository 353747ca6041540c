"""The upstream's own limits, from its headers."""

from __future__ import annotations

import pytest

from sluice_core.ratelimit_headers import ObservedLimit, read_limits


def test_limits_of_account_and_project_are_read() -> None:
    """Requests, tokens, and the project's tokens where a limit of the project applies."""
    headers = {
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "6ms",
        "x-ratelimit-limit-tokens": "200000",
        "x-ratelimit-remaining-tokens": "40000",
        "x-ratelimit-reset-tokens": "4m12.172s",
        "x-ratelimit-limit-project-tokens": "1000",
        "x-ratelimit-remaining-project-tokens": "500",
    }
    requests, tokens, project = read_limits(headers)
    assert requests == ObservedLimit(dimension="requests", limit=10_000, remaining=9999, reset_seconds=0.006)
    assert (tokens.remaining_percent, tokens.reset_seconds) == (20.0, 252.172)
    assert project == ObservedLimit(dimension="project-tokens", limit=1000, remaining=500)


@pytest.mark.parametrize(
    ("limit", "remaining"),
    [("-1", "-1"), ("0", "0"), ("many", "5"), ("10", None), (None, "10"), ("10", "x"), ("1" * 40, "1"), ("٣", "1")],
)
def test_values_that_make_no_sense_are_ignored(limit: str | None, remaining: str | None) -> None:
    """Some deployments send -1 or 0; that is no limit of nothing."""
    headers = {"x-ratelimit-limit-tokens": limit, "x-ratelimit-remaining-tokens": remaining}
    assert read_limits({name: value for name, value in headers.items() if value is not None}) == ()
