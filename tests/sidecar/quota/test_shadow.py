"""Shadow mode over every layer: all is computed, nothing waits or is refused, and what would be is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from sluice_core.api.base import KeySource
from sluice_core.api.quotaallocation import Mode, PerUser, Priority, Queue
from sluice_core.api.upstream import Limits, ModelLimits

MESSAGES: Any = [{"role": "user", "content": "hello"}]
NONE = {"requests_per_minute": 0, "tokens_per_minute": 0, "requests_per_day": 0, "concurrency": 0}
MODEL = "gpt-4.1-mini"
KEY = KeySource(header="x-user-id")


@pytest.mark.parametrize(
    ("whole", "row", "per_user", "named"),
    [
        ({"requests_per_minute": 1}, {}, {}, "requests"),
        ({"tokens_per_minute": 25}, {}, {}, "tokens"),
        ({"tokens_per_minute": 5}, {}, {}, "tokens"),  # each call alone is larger than the limit
        ({"requests_per_day": 1}, {}, {}, "requests-day"),
        ({"concurrency": 1}, {}, {}, "concurrency"),
        ({}, {"requests_per_minute": 1}, {}, "model/requests"),
        ({}, {}, {"requests_per_minute": 1}, "user/requests"),
        ({}, {}, {"tokens_per_minute": 25}, "user/tokens"),
        ({}, {}, {"daily_usd": "0.00002"}, "user/money-day"),
    ],
    ids=["requests", "tokens", "too large", "day", "concurrency", "model", "user", "user's tokens", "user's money"],
)
async def test_every_layer_counts_and_none_refuses(
    start: Any, mock: Any, policies: Any, whole: Any, row: Any, per_user: Any, named: str
) -> None:
    """Six calls at once of a batch service that may wait: all go at once, and the limit in the way is named."""
    users = PerUser(key=KEY, **({"requests_per_minute": 1000} | per_user))
    snapshot = policies.snapshot(
        policies.upstream(
            mock.base_url,
            limits=Limits(**(NONE | whole)),
            model_limits=(ModelLimits(model=MODEL, **(NONE | row)),) if row else (),
        ),
        quotas=(
            policies.quota(mode=Mode.SHADOW, priority=Priority.BATCH, per_user=users, queue=Queue(max_wait_seconds=60)),
        ),
    )
    mock.faults.add(latency_seconds=0.3)
    sidecar = await asyncio.to_thread(start, snapshot)
    async with openai.AsyncOpenAI(base_url=sidecar.base_url, api_key="x", max_retries=0) as api:
        answers = await asyncio.gather(
            *(
                api.chat.completions.with_raw_response.create(
                    model=MODEL, messages=MESSAGES, max_tokens=10, extra_headers={"x-user-id": "u"}
                )
                for _ in range(6)
            )
        )
    assert [answer.status_code for answer in answers] == [200] * 6
    assert not any("x-sluice-queue-ms" in answer.headers for answer in answers)
    records = await asyncio.to_thread(sidecar.records, 6)
    told = [record["wouldRefuse"] for record in records if "wouldRefuse" in record]
    assert 4 <= len(told) <= 6
    assert set(told) == {f"team/openai-quota/chat/{named}"}
    assert sidecar.metric("sluice_refusals_total", mode="Shadow") == len(told)
    assert sidecar.status()["allocations"][0]["refused"] == len(told)
    assert all(record["mode"] == "Shadow" and record["outcome"] == "Success" for record in records)
