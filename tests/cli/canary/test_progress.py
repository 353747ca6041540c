"""Rollouts that go forward: a ramp, an approval, blue/green, a return to what was before. Real calls, real sidecar."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sluice_core.api.canarysplit_status import Phase

RAMP = {
    "steps": [
        {"weight": 20, "bakeSeconds": 1, "minRequests": 10},
        {"weight": 60, "bakeSeconds": 1, "minRequests": 10},
        {"weight": 100, "bakeSeconds": 1, "minRequests": 10},
    ],
    "watchSeconds": 1,
}
V1, V2 = {"version": "v1"}, {"version": "v2"}


async def healthy(stage: Any, returns: Callable[[Any], list[str]]) -> None:
    """Step by step to everyone; no user is ever moved back; then the version before is given back at once."""
    weights: list[int] = []
    async with stage.traffic("healthy", 40) as seen:

        def promoted() -> bool:
            status = stage.status("healthy")
            if status.weight and status.weight not in weights:
                weights.append(status.weight)
            return status.phase is Phase.PROMOTED

        await stage.until(promoted, "the promotion of healthy")
        assert weights == [20, 60, 100]
        assert returns(seen) == []
        assert all(each.status == 200 for each in seen)
        assert stage.status("healthy").stable_arm.version == "v2"

        count = len(seen)
        stage.change("healthy", candidate={"version": "v1-again", "model": "healthy-stable"})
        seconds = await stage.until(lambda: seen[-1].version == "v1-again", "the version before with everyone")
        first = next(number for number, each in enumerate(seen) if each.version == "v1-again")
        await stage.until(lambda: len(seen) > first + 100, "calls after the return")
    assert {each.version for each in seen[count:]} == {"v2", "v1-again"}
    assert {each.version for each in seen[first + 40 :]} == {"v1-again"}
    status = stage.status("healthy")
    assert (status.phase, status.stable_arm.version) == (Phase.PROMOTED, "v1-again")
    print(f"healthy: the version before was back {seconds:.1f} s after the edit")


async def approved(stage: Any, judge: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A required judge that says Wait holds the step past its bake time; its Pass lets it end."""
    async with stage.traffic("approved", 20):
        await stage.until(lambda: len(judge.asked.get("approval", ())) >= 3, "three questions to the approval system")
        await stage.until(lambda: "waiting for approval" in stage.status("approved").reason, "the wait for approval")
        status = stage.status("approved")
        assert (status.phase, status.step, status.webhooks[0].message) == (Phase.PROGRESSING, "1/2", "ask Mary")
        capsys.readouterr()
        await stage.ask("status", "approved")
        shown = capsys.readouterr().out
        for part in ("errorRate", "errorCeiling", "EVIDENCE", "approval", "ask Mary", "not before", "run this policy"):
            assert part in shown, shown
        judge.says["approval"] = lambda question: ("Pass", "Mary agrees")
        await stage.phase("approved", Phase.PROMOTED)
    steps = Counter(question["step"] for question in judge.asked["approval"])
    assert {1, 2, 3} <= steps.keys(), "each step and the watch are asked about"


async def blue_green(stage: Any, name: str, *, fails: bool) -> None:
    """The preview is for the header alone; everyone is switched at once; what fails then is switched back by itself."""
    async with stage.traffic(name, 30) as seen:
        await stage.phase(name, Phase.AWAITING_GATE)
        preview, _ = await stage.call(name, "tester", **{"x-sluice-arm": "candidate"})
        assert preview.version == "v2"
        assert {each.version for each in seen} == {"v1"}
        if fails:
            stage.mock().faults.add(model=f"{name}-candidate", error="server_error")
        await stage.ask("promote", name)
        await stage.until(lambda: seen[-1].version == "v2", f"the switch of {name}")
        assert {each.version for each in seen} == {"v1", "v2"}
        if not fails:
            await stage.phase(name, Phase.PROMOTED)
            return
        switched = seen[-1].at
        await stage.phase(name, Phase.ROLLED_BACK)
        await stage.until(lambda: stage.in_force(name) and seen[-1].version == "v1", f"the return of {name}")
        print(f"{name}: back after {seen[-1].at - switched:.1f} s: {stage.status(name).reason}")
        assert seen[-1].at - switched <= 10


async def test_rollouts_that_go_forward(
    stage: Any, judge: Any, returns: Callable[[Any], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Healthy, approved by a person, blue/green that holds and blue/green that returns by itself."""
    judge.says["approval"] = lambda question: ("Wait", "ask Mary")
    approval = {"name": "approval", "url": f"{judge.url}approval", "intervalSeconds": 1}
    switch = {"type": "BlueGreen", "blueGreen": {"previewSeconds": 1, "watchSeconds": 2}}
    stage.scenario("healthy", strategy=RAMP)
    stage.scenario(
        "approved",
        strategy={
            "steps": [
                {"weight": 50, "bakeSeconds": 1, "minRequests": 5},
                {"weight": 100, "bakeSeconds": 1, "minRequests": 5},
            ],
            "watchSeconds": 1,
        },
        analysis={"errorRate": {}, "webhooks": [approval]},
    )
    stage.scenario("bluegreen", strategy=switch)
    stage.scenario("switchback", strategy=switch)
    async with stage:
        await asyncio.gather(
            healthy(stage, returns),
            approved(stage, judge, capsys),
            blue_green(stage, "bluegreen", fails=False),
            blue_green(stage, "switchback", fails=True),
        )
