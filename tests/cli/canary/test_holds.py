"""What must decide nothing: no traffic, one user with half of it, an outage of the provider. Real calls."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from sluice_core.api.canarysplit_status import Phase, Verdict
from sluice_core.split import bucket_of

STEPS = {
    "steps": [
        {"weight": 50, "bakeSeconds": 1, "minRequests": 20},
        {"weight": 100, "bakeSeconds": 1, "minRequests": 20},
    ],
    "stepDeadlineSeconds": 60,
    "onInconclusive": "Rollback",
    "watchSeconds": 1,
}


async def no_traffic(stage: Any) -> None:
    """Past bake time nothing happens until calls come; then the rollout goes on by itself."""
    await stage.until(
        lambda: stage.status("quiet").next_transition_time and "baking" not in stage.status("quiet").reason,
        "the end of the bake time",
    )
    status = stage.status("quiet")
    assert (status.phase, status.weight, status.verdict) == (Phase.PROGRESSING, 50, Verdict.INSUFFICIENT_DATA)
    assert "needs about 20 more candidate requests" in status.reason
    async with stage.traffic("quiet", 30):
        await stage.phase("quiet", Phase.PROMOTED)


async def one_heavy_user(stage: Any) -> None:
    """Half of all calls are one user's, who is on the candidate and unlucky: chance, not harm."""
    await stage.until(lambda: stage.status("whale").salt, "the salt")
    salt = stage.status("whale").salt
    whale = next(user for user in map("whale-{}".format, range(100)) if bucket_of(salt, user) < 5000)
    draw = random.Random(7)
    verdicts = set()
    async with stage.traffic(
        "whale", 60, users=lambda number: whale if draw.random() < 0.5 else f"user-{number % 200}"
    ) as seen:

        def enough() -> bool:
            verdicts.add(stage.status("whale").verdict)
            return len(seen) >= 600 or stage.status("whale").phase is Phase.PROMOTED

        await stage.until(enough, "six hundred calls")
    assert Verdict.HARM not in verdicts
    assert stage.status("whale").phase in {Phase.PROGRESSING, Phase.WATCHING, Phase.PROMOTED}


async def outage(stage: Any) -> None:
    """Both arms fail, then the breaker opens: the weight is held, the alarm is told, and afterwards it goes on."""
    async with stage.traffic("outage", 40) as seen:
        await stage.until(lambda: stage.status("outage").applied_weight == 50 and len(seen) > 20, "a running rollout")
        stage.mock("flaky").faults.add(error="server_error", percent=100)
        await stage.until(lambda: sum(each.status >= 500 for each in seen) > 60, "an outage")
        broken = len(seen)
        await stage.until(lambda: len(seen) > broken + 60, "calls in the outage")
        status = stage.status("outage")
        assert (status.phase, status.weight) == (Phase.PROGRESSING, 50)
        assert "RolledBack" not in stage.events("outage")
        stage.mock("flaky").faults.clear()
        await stage.phase("outage", Phase.PROMOTED, seconds=40)


async def test_no_data_and_no_difference_decide_nothing(stage: Any) -> None:
    """None of these is promoted early or rolled back; each goes on by itself when it can."""
    stage.scenario("quiet", strategy=STEPS)
    stage.scenario("whale", strategy=STEPS, analysis={"errorRate": {}, "latency": {}, "cost": {}})
    stage.scenario("outage", strategy=STEPS, upstream="flaky")
    async with stage:
        stage.mock().faults.add(model="whale-*", error="server_error", percent=8)
        await asyncio.gather(no_traffic(stage), one_heavy_user(stage), outage(stage))
