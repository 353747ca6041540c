"""Harmful candidates over real calls: each kind of harm is found by its own metric and taken back within seconds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from sluice_core.api.canarysplit_status import Phase

STEPS = {"steps": [{"weight": 50, "bakeSeconds": 600}, {"weight": 100}]}
SECONDS = 30.0
"""Far above the few seconds that it takes: the machine may be busy with the other tests."""


def webhook(judge: Any, name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "url": f"{judge.url}{name}", "intervalSeconds": 1, **fields}


async def taken_back(stage: Any, name: str, per_second: float, **options: Any) -> tuple[float, str]:
    """Let users call until the candidate is off in every pod; return the seconds since it got its first call."""
    async with stage.traffic(name, per_second, **options) as seen:
        await stage.until(lambda: any(each.version == "v2" for each in seen), f"a candidate's answer in {name}")
        began = time.monotonic()
        await stage.phase(name, Phase.ROLLED_BACK)
        await stage.until(lambda: stage.in_force(name), f"the rollback of {name} in force")
        seconds = time.monotonic() - began
        count = len(seen)
        await stage.until(lambda: len(seen) >= count + 20, f"calls after the rollback of {name}")
    late = [each for each in seen if each.version == "v2" and each.at > began + seconds + 1.0]
    assert not late, f"{name}: the candidate answered after it was taken back"
    status = stage.status(name)
    assert (status.weight, status.applied_weight) == (0, 0)
    assert status.history[0].result == "RolledBack"
    return seconds, status.reason


async def test_harm_of_every_kind_is_taken_back_within_seconds(
    stage: Any, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 % errors, 2x slower, 2x dearer, a quality drop that only a judge sees, lower scores: off in seconds."""
    monkeypatch.setenv("SLUICE_SECRET_JUDGE_TOKEN", "Bearer of-the-judge")
    judge.says["quality"] = lambda question: (
        ("Fail", "answers lost half of their facts") if question["candidate"]["requests"] >= 20 else ("Wait", "")
    )
    secret = {"name": "judge", "key": "token"}
    stage.scenario("errors", strategy=STEPS)
    stage.scenario("slow", strategy=STEPS, analysis={"latency": {"maxIncreasePercent": 25}})
    stage.scenario("dear", strategy=STEPS, analysis={"cost": {"maxIncreasePercent": 25}, "outputTokens": {}})
    stage.scenario("quality", strategy=STEPS, analysis={"webhooks": [webhook(judge, "quality", secretRef=secret)]})
    stage.scenario("scores", strategy=STEPS, analysis={"score": {"maxDecreasePercent": 10}})

    async def thumb(seen: Any, content: dict[str, Any]) -> None:
        name = {"response_id": content["id"]} if seen.at % 0.1 < 0.05 else {"call_id": content["call_id"]}
        assert await stage.score((0.4 if seen.version == "v2" else 0.9) + seen.at % 0.1, **name)

    async with stage:
        faults = stage.mock().faults
        faults.add(model="errors-candidate", error="server_error", percent=30)
        faults.add(model="slow-stable", latency_seconds="lognormal(0.2,0.1)")
        faults.add(model="slow-candidate", latency_seconds="lognormal(0.4,0.1)")
        for model, tokens in (("dear-stable", 40), ("dear-candidate", 80)):
            faults.add(model=model, output_tokens=tokens)
            faults.add(model=model, output_tokens=tokens + 10, percent=50)
        (errors, slow, dear, quality, scores) = await asyncio.gather(
            taken_back(stage, "errors", 40),
            taken_back(stage, "slow", 40),
            taken_back(stage, "dear", 60),
            taken_back(stage, "quality", 20),
            taken_back(stage, "scores", 60, then=thumb),
        )
    found = {"errors": errors, "slow": slow, "dear": dear, "quality": quality, "scores": scores}
    for name, (seconds, reason) in found.items():
        print(f"{name}: off after {seconds:.1f} s: {reason}")
        assert seconds <= SECONDS, f"{name} took {seconds:.1f} s"
    assert "error rate candidate" in errors[1]
    assert "latency candidate" in slow[1]
    assert "cost per request candidate" in dear[1] or "output tokens" in dear[1]
    assert quality[1] == "quality says fail: answers lost half of their facts"
    assert "score candidate" in scores[1]
    assert judge.authorizations == {"Bearer of-the-judge"}
