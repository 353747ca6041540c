"""What is amiss: told in the status of the resource concerned, and kept from the others."""

from __future__ import annotations

from sluice_operator.kinds import (
    MODEL_ROUTES,
    OBSERVED,
)


async def test_a_policy_too_large_is_told_and_the_last_one_stays(operator, api, team, seen):
    """What does not fit a ConfigMap is not tried; the resource says so, and pods keep what they have."""
    await operator.round()
    before = seen.policy()
    rules = [
        {
            "name": f"r{number}",
            "match": [{"models": [f"m{number}"], "headers": [{"name": f"h{i}", "value": "x" * 1024} for i in range(8)]}]
            * 16,
            "targets": [{"upstreamRef": {"name": "openai", "namespace": "platform"}}],
        }
        for number in range(10)
    ]
    api.put(MODEL_ROUTES, "chat", "team", spec={"rules": rules})
    await operator.round()
    assert seen.policy() == before
    stalled = seen.condition(MODEL_ROUTES, "chat", "team", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "PolicyTooLarge")


async def test_a_write_that_fails_is_under_way_and_then_ready(operator, api, team, seen):
    """While the ConfigMap cannot be written the route is Reconciling, not Stalled; the next round mends it."""
    api.fail(500, "InternalError", method="patch", path="/configmaps/")
    await operator.round()
    assert seen.condition(MODEL_ROUTES, "chat", "team", "Reconciling")["status"] == "True"
    assert seen.condition(MODEL_ROUTES, "chat", "team", "Stalled")["status"] == "False"
    await operator.round()
    assert seen.condition(MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"


async def test_a_status_conflict_is_retried_from_the_newer_state(operator, api, team, seen):
    """Somebody writes between a look and the status: that round overwrites nothing, the next one has both."""
    await operator.observer.relist()
    api.put(MODEL_ROUTES, "chat", "team", metadata={"annotations": {"owner": "chat-team"}})
    await operator.reconciler.lead()
    assert "status" not in api.object(MODEL_ROUTES, "chat", "team")
    assert operator.reconciler.statuses.conflicts == 1
    await operator.round()
    assert seen.condition(MODEL_ROUTES, "chat", "team", "Ready")["status"] == "True"
    assert api.object(MODEL_ROUTES, "chat", "team")["metadata"]["annotations"] == {"owner": "chat-team"}


async def test_of_two_leaders_one_status_write_stands(operators, api, team):
    """Two that both believe to lead write over the same version: the second is refused and reads again."""
    first, second = operators(), operators()
    for each in (first, second):
        await each.observer.relist()
    await first.reconciler.lead()
    await second.reconciler.lead()
    assert (first.reconciler.statuses.conflicts, second.reconciler.statuses.conflicts) == (0, 2)
    await second.round()
    assert second.reconciler.statuses.conflicts == 2


async def test_without_a_complete_view_nothing_is_known(operator, api, team):
    """Until every type was listed, absence means nothing: the world says that it is not complete."""
    api.fail(403, "Forbidden", path="/pods")
    await operator.observer.relist()
    assert not operator.world.complete
    await operator.observer.relist()
    assert operator.world.complete
    assert len(OBSERVED) == 6


async def test_if_what_is_stored_cannot_be_seen_nothing_is_written(operator, api, team, seen):
    """A leader that cannot list its own objects neither writes nor removes any."""
    api.fail(403, "Forbidden", path="/api/v1/configmaps", times=1)
    await operator.round()
    assert [path for method, path in api.writes if "status" not in path] == []
    await operator.round()
    assert seen.policy() is not None


async def test_a_status_of_another_version_is_written_anew(operator, api, team):
    """A status that cannot be read does not make its resource unreadable."""
    stored = api.object(MODEL_ROUTES, "chat", "team")
    stored["status"] = {"pods": "many", "leftover": {"a": 1}}
    await operator.round()
    status = api.object(MODEL_ROUTES, "chat", "team")["status"]
    assert status["pods"] == 1
    assert "leftover" not in status
