"""What the account itself says of its limits: read by real sidecars, told to the leader, shown and shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from sluice_cli.mock.limiter import ModelLimit
from sluice_core.api.upstream import Limits

Client = Callable[..., openai.OpenAI]
MESSAGES: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def limited(mock: Any) -> Iterator[Any]:
    """The mock, whose own limits are put back at the end: other tests share it."""
    before = mock.limiter.limits
    yield mock
    mock.limiter.configure(before)


@pytest.mark.parametrize(
    ("account", "tokens"),
    [
        (ModelLimit(model="*", requests_per_minute=500, tokens_per_minute=30_000), 30_000),
        (
            ModelLimit(model="*", requests_per_minute=500, tokens_per_minute=60_000, project_tokens_per_minute=20_000),
            20_000,
        ),
        (ModelLimit(model="*", requests_per_minute=500, tokens_per_minute=900_000), 100_000),
    ],
    ids=["less than declared", "the project has less", "more than declared"],
)
def test_what_the_account_allows_is_in_force_and_shown(
    start: Any, client: Client, limited: Any, policies: Any, plane: Any, account: ModelLimit, tokens: int
) -> None:
    """The lower of what is declared and what the account says, in the upstream's effective limits."""
    declared = Limits(requests_per_minute=1000, tokens_per_minute=100_000, requests_per_day=0, concurrency=0)
    snapshot = policies.snapshot(
        policies.upstream(limited.base_url, limits=declared), quotas=(policies.quota(safe=declared),)
    )
    plane.adopt(snapshot)
    limited.limiter.configure([account])
    sidecar = start(snapshot, SLUICE_SYNC_URL=plane.url)
    client(sidecar.base_url).chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, max_tokens=10)

    def effective() -> Limits:
        plane.adopt(snapshot)
        limits = plane.leader.effective_limits("team/openai")
        assert limits is not None
        return limits  # type: ignore[no-any-return]

    sidecar.wait_until(lambda: effective().requests_per_minute == 500)
    assert effective().tokens_per_minute == tokens
    (reported,) = plane.leader.reported_limits("team/openai")
    assert (reported.model, reported.requests_per_minute, reported.tokens_per_minute) == (
        "gpt-4.1-mini",
        500,
        account.tokens_per_minute,
    )
    assert reported.project_tokens_per_minute == (account.project_tokens_per_minute or 0)
