"""A user's limit over several real sidecars and a real leader; the upstream's own ledger is the judge."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from sluice_core.api.base import KeySource
from sluice_core.api.quotaallocation import Mode, PerUser
from sluice_core.api.upstream import Limits

Client = Callable[..., openai.OpenAI]
MESSAGES: Any = [{"role": "user", "content": "hello"}]
KEY = KeySource(header="x-user-id")


def governed(policies: Any, mock: Any, pods: int, **per_user: Any) -> Any:
    """A snapshot without limits but those of users."""
    return policies.snapshot(
        policies.upstream(mock.base_url, limits=Limits()),
        quotas=(policies.quota(per_user=PerUser(key=KEY, **per_user), pods=pods),),
    )


def create(client: openai.OpenAI, user: str = "u", **fields: Any) -> Any:
    """Make a small chat call of a user; return the raw answer, errors included."""
    fields = {"model": "gpt-4.1-mini", "messages": MESSAGES, "max_tokens": 10, **fields}
    try:
        return client.chat.completions.with_raw_response.create(extra_headers={"x-user-id": user}, **fields)
    except openai.APIStatusError as error:
        return error.response


def hear_the_leader(sidecar: Any) -> None:
    sidecar.wait_until(lambda: sidecar.status()["sync"]["secondsSinceSuccess"] is not None)


def be_refused(sidecar: Any, api: openai.OpenAI) -> None:
    sidecar.wait_until(lambda: create(api).status_code == 429)


@pytest.fixture
def fleet(start: Any, plane: Any) -> Callable[..., list[Any]]:
    """Start so many sidecars that have all heard the leader."""

    def start_all(snapshot: Any, count: int) -> list[Any]:
        plane.adopt(snapshot)
        sidecars = [
            start(snapshot, SLUICE_SYNC_URL=plane.url, SLUICE_POD_NAME=f"p{number}", SLUICE_POD_UID=f"u{number}")
            for number in range(count)
        ]
        for sidecar in sidecars:
            hear_the_leader(sidecar)
        return sidecars

    return start_all


async def insist(base_urls: list[str], seconds: float) -> int:
    """Have a user call through all of these at once, again and again; return how many calls were answered."""
    answered = 0

    async def one(base_url: str) -> None:
        nonlocal answered
        async with openai.AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0) as api:
            while time.monotonic() < until:
                try:
                    await api.chat.completions.create(
                        model="gpt-4.1-mini", messages=MESSAGES, max_tokens=10, extra_headers={"x-user-id": "u"}
                    )
                    answered += 1
                except openai.RateLimitError:
                    await asyncio.sleep(0.1)

    until = time.monotonic() + seconds
    await asyncio.gather(*(one(base_url) for base_url in base_urls))
    return answered


@pytest.mark.parametrize(
    ("pods", "running", "used", "most"),
    [(2, 2, 1, 20), (4, 3, 3, 15)],
    ids=["through one of two pods", "through three pods of four"],
)
async def test_a_user_has_its_limit_once_in_all_pods(
    mock: Any, policies: Any, fleet: Any, pods: int, running: int, used: int, most: int
) -> None:
    """Nearly all of it within two rounds, and never more. A pod that was never heard of keeps its safe share."""
    sidecars = await asyncio.to_thread(fleet, governed(policies, mock, pods, requests_per_minute=20), running)
    answered = await insist([sidecar.base_url for sidecar in sidecars[:used]], 8.0)
    assert answered == len(mock.ledger)
    assert most - 2 <= answered <= most


def test_a_cut_off_pod_keeps_to_its_part(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """A pod that never reaches the leader lets a user have its safe share, and no more."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        sidecar = start(governed(policies, mock, 4, requests_per_minute=20), SLUICE_SYNC_URL=url)
        sidecar.wait_until(lambda: sidecar.status()["sync"]["error"])
        api = client(sidecar.base_url)
        sidecar.wait_until(lambda: create(api).status_code == 200)
        assert [create(api).status_code for _ in range(6)] == [200] * 4 + [429] * 2
    assert len(mock.ledger) == 5


def test_money_of_a_user_is_spent_in_all_pods(
    client: Client, mock: Any, policies: Any, fleet: Any, start: Any, plane: Any
) -> None:
    """What it spent in one pod is told to the others, outlives that pod, and the refusal says when it is back."""
    snapshot = governed(policies, mock, 2, daily_usd="0.001")
    first, second = fleet(snapshot, 2)
    mock.faults.add(prompt_tokens=2600, count=1)
    assert create(client(first.base_url)).status_code == 200
    first.wait_until(lambda: plane.leader.spending.exhausted_users("team/openai-quota/chat", time.time()))
    assert first.terminate() == 0
    third = start(snapshot, SLUICE_SYNC_URL=plane.url, SLUICE_POD_NAME="p2", SLUICE_POD_UID="u2")
    for sidecar in (second, third):
        api = client(sidecar.base_url)
        be_refused(sidecar, api)
        refused = create(api)
        assert refused.json()["error"]["code"] == "budget_exceeded"
        assert refused.headers["x-should-retry"] == "false"
        midnight = 86_400 - time.time() % 86_400
        assert abs(int(refused.headers["retry-after"]) - midnight) < 5
        assert create(api, "another").status_code == 200


def test_shadow_counts_what_users_would_be_refused(
    start: Any, client: Client, mock: Any, policies: Any, plane: Any
) -> None:
    """Nothing is refused, and a user's money and requests are told apart."""
    snapshot = policies.snapshot(
        policies.upstream(mock.base_url, limits=Limits()),
        quotas=(
            policies.quota(
                per_user=PerUser(key=KEY, requests_per_minute=3, daily_usd="0.001"), pods=1, mode=Mode.SHADOW
            ),
        ),
    )
    plane.adopt(snapshot)
    sidecar = start(snapshot, SLUICE_SYNC_URL=plane.url)
    sidecar.wait_until(lambda: sidecar.status()["sync"]["secondsSinceSuccess"] is not None)
    api = client(sidecar.base_url)
    mock.faults.add(prompt_tokens=2600, count=1)
    answers = [create(api) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    records = [sidecar.record(answer.headers["x-sluice-call-id"]) for answer in answers]
    assert [record.get("wouldRefuse", "").rpartition("/")[2] for record in records] == ["", *["money-day"] * 4]
    assert sidecar.metric("sluice_refusals_total", mode="Shadow") == 4
