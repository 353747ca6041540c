"""Events on resources, and who may write at all."""

from __future__ import annotations

import pytest

from sluice_core.api.base import ObjectMeta
from sluice_operator.cluster import FencedError
from sluice_operator.events import Events
from sluice_operator.kinds import CONFIG_MAPS, EVENTS, MODEL_ROUTES

ABOUT = ObjectMeta(name="chat", namespace="team", uid="u-1", resource_version="7")


@pytest.fixture
def events(cluster, clock) -> Events:
    return Events(cluster, identity="sluice-operator-0", wall=clock)


async def test_an_event_says_about_what_why_and_from_whom(events, api):
    """The shape that `kubectl describe` shows and the API server accepts."""
    await events.tell(MODEL_ROUTES, ABOUT, "UpstreamNotFound", "there is no Upstream", warning=True)
    (event,) = api.all(EVENTS)
    assert event["involvedObject"]["namespace"] == event["metadata"]["namespace"] == "team"
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "UpstreamNotFound", 1)
    assert event["source"]["component"] == event["reportingComponent"] == "sluice-operator"


async def test_repeats_are_counted_and_not_too_often(events, api, clock):
    """The same thing within ten minutes is no news; after that its count goes up."""
    for _ in range(3):
        await events.tell(MODEL_ROUTES, ABOUT, "Paused", "by hand", warning=False)
    assert [event["count"] for event in api.all(EVENTS)] == [1]
    clock.advance(601)
    await events.tell(MODEL_ROUTES, ABOUT, "Paused", "by hand", warning=False)
    (event,) = api.all(EVENTS)
    assert (event["count"], event["lastTimestamp"] > event["firstTimestamp"]) == (2, True)


async def test_a_new_leader_counts_up_what_the_old_one_told(events, cluster, api, clock):
    """The name of an event follows from its content, so it is not told twice."""
    await events.tell(MODEL_ROUTES, ABOUT, "Paused", "by hand", warning=False)
    await Events(cluster, identity="b", wall=clock).tell(MODEL_ROUTES, ABOUT, "Paused", "by hand", warning=False)
    assert [event["count"] for event in api.all(EVENTS)] == [2]


async def test_an_event_that_the_api_server_forgot_is_written_anew(events, api, clock):
    """Events live for an hour; what happens again after that is told again."""
    await events.tell(MODEL_ROUTES, ABOUT, "Paused", "by hand", warning=False)
    api.remove(EVENTS, api.all(EVENTS)[0]["metadata"]["name"], "team")
    clock.advance(4000)
    await events.tell(MODEL_ROUTES, ABOUT, "Paused", "by hand", warning=False)
    assert [event["count"] for event in api.all(EVENTS)] == [1]


async def test_names_of_events_are_valid_however_long_the_resources_name(events, api):
    """A name of 253 characters leaves room for the rest."""
    about = ObjectMeta(name="a" * 199 + "." + "b" * 53, namespace="team", uid="u")
    await events.tell(MODEL_ROUTES, about, "Paused", "m" * 5000, warning=False)
    (event,) = api.all(EVENTS)
    assert len(event["metadata"]["name"]) <= 253
    assert ".." not in event["metadata"]["name"]
    assert len(event["message"]) <= 1024


async def test_a_fault_of_the_event_api_stops_nobody(events, api):
    """What cannot be told is logged; the caller goes on."""
    api.fail(403, "Forbidden", times=5)
    await events.tell(MODEL_ROUTES, ABOUT, "Paused", "by hand", warning=False)
    assert api.all(EVENTS) == []


async def test_whoever_does_not_lead_writes_nothing(cluster, api):
    """A fenced client reads, and refuses to send any write."""
    leading = [True]
    fenced = cluster.fenced(lambda: leading[0])
    await fenced.apply(CONFIG_MAPS, "team", "policy", {"data": {}})
    leading[0] = False
    with pytest.raises(FencedError):
        await fenced.apply(CONFIG_MAPS, "team", "policy", {"data": {"a": "1"}})
    assert (await fenced.get(CONFIG_MAPS, "team", "policy"))["data"] == {}
    await cluster.apply(CONFIG_MAPS, "team", "policy", {"data": {"a": "1"}})
    assert [method for method, _ in api.writes] == ["PATCH", "PATCH"]
