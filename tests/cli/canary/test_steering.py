"""Rollouts steered by people, with the command line's own verbs: each request is carried out once. Real calls."""

from __future__ import annotations

import asyncio
from typing import Any

from sluice_core.api.canarysplit_status import Phase

GATED = {
    "steps": [
        {"weight": 20, "bakeSeconds": 1, "minRequests": 5},
        {"weight": 60, "bakeSeconds": 1, "minRequests": 5, "gate": "Manual"},
        {"weight": 100, "bakeSeconds": 1, "minRequests": 5, "gate": "Manual"},
    ],
    "watchSeconds": 600,
}
LONG = {"steps": [{"weight": 50, "bakeSeconds": 600}, {"weight": 100}]}


async def by_hand(stage: Any) -> None:
    """Pause, resume, promote, promote to everyone, confirm; a token that is still there does nothing again."""
    async with stage.traffic("byhand", 20) as seen:
        await stage.until(lambda: stage.status("byhand").applied_weight == 20, "the first step")
        await stage.ask("pause", "byhand")
        await stage.phase("byhand", Phase.PAUSED)
        count = len(seen)
        await stage.until(lambda: len(seen) > count + 40, "two seconds in which a step would have ended")
        assert (stage.status("byhand").step, stage.status("byhand").weight) == ("1/3", 20)
        await stage.ask("resume", "byhand")
        await stage.phase("byhand", Phase.AWAITING_GATE)
        assert stage.status("byhand").weight == 20
        await stage.ask("promote", "byhand")
        await stage.until(lambda: stage.status("byhand").weight == 60, "the second step")
        await stage.phase("byhand", Phase.AWAITING_GATE)
        await stage.ask("promote", "byhand", "--full")
        await stage.phase("byhand", Phase.WATCHING)
        await stage.ask("promote", "byhand")
        await stage.phase("byhand", Phase.PROMOTED)
    events = stage.events("byhand")
    assert [events.count(each) for each in ("Paused", "Resumed", "Promoted", "RequestIgnored")] == [1, 1, 1, 0]
    assert stage.status("byhand").consumed_requests.keys() == {"pause", "resume", "promote", "promote-full"}


async def aborted(stage: Any) -> None:
    """Everyone is back on stable, and stays there until somebody asks for a retry, which begins anew."""
    async with stage.traffic("aborted", 20) as seen:
        await stage.until(lambda: any(each.version == "v2" for each in seen), "a candidate's answer")
        first = stage.status("aborted")
        await stage.ask("abort", "aborted")
        await stage.phase("aborted", Phase.ABORTED)
        await stage.until(lambda: {each.version for each in seen[-20:]} == {"v1"}, "everyone on stable")
        stage.change("aborted", candidate={"version": "v2-renamed", "model": "aborted-candidate"})
        reloads = stage.session.reloads
        await stage.until(lambda: stage.session.reloads >= reloads and not stage.session.refused, "the edit")
        count = len(seen)
        await stage.until(lambda: len(seen) > count + 20, "calls after the edit")
        assert {each.version for each in seen[count:]} == {"v1"}
        await stage.ask("retry", "aborted")
        await stage.until(lambda: seen[-1].version == "v2-renamed", "the candidate again")
    second = stage.status("aborted")
    assert (second.phase, second.attempt) == (Phase.PROGRESSING, first.attempt + 1)
    assert second.salt != first.salt


async def changed(stage: Any) -> None:
    """A new candidate in mid-rollout begins at the first step, with other users and without the old figures."""
    async with stage.traffic("changed", 20) as seen:
        await stage.until(lambda: stage.status("changed").candidate.requests >= 10, "figures")
        old = stage.status("changed")
        stage.change("changed", candidate={"version": "v3", "model": "changed-candidate", "instructions": "Be kind."})
        await stage.until(lambda: any(each.version == "v3" for each in seen), "the new candidate")
        first = next(number for number, each in enumerate(seen) if each.version == "v3")
        await stage.until(lambda: len(seen) > first + 60, "calls of the new rollout")
    assert {each.version for each in seen[first + 20 :]} == {"v1", "v3"}
    status = stage.status("changed")
    assert (status.step, status.history[0].result, status.history[0].version) == ("1/2", "Superseded", "v2")
    assert status.salt != old.salt
    assert status.candidate.requests <= sum(each.version == "v3" for each in seen)


async def test_people_steer_and_each_request_counts_once(stage: Any) -> None:
    """The verbs of `sluice` steer running rollouts; a changed spec begins anew."""
    stage.scenario("byhand", strategy=GATED)
    stage.scenario("aborted", strategy=LONG)
    stage.scenario("changed", strategy=LONG)
    async with stage:
        await asyncio.gather(by_hand(stage), aborted(stage), changed(stage))
