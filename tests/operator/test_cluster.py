"""The client of the API server."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from sluice_operator import cluster as api_client
from sluice_operator.cluster import (
    Cluster,
    ConflictError,
    ExpiredError,
    NotFoundError,
    ObjectVersion,
    RefusedError,
    UnavailableError,
    VersionOnly,
)
from sluice_operator.kinds import CONFIG_MAPS, MODEL_ROUTES, SECRETS, UPSTREAMS


async def test_a_listing_is_read_page_by_page(cluster: Cluster, api, monkeypatch):
    """More objects than fit one page all arrive, once each."""
    monkeypatch.setattr(api_client, "PAGE_SIZE", 3)
    for number in range(8):
        api.put(CONFIG_MAPS, f"c{number}", "team", data={})
    items = await cluster.list_all(CONFIG_MAPS, dict[str, Any])
    assert [item["metadata"]["name"] for item in items] == [f"c{number}" for number in range(8)]


async def test_a_listing_that_expires_halfway_is_started_anew(cluster: Cluster, api, monkeypatch):
    """410 on a continuation restarts the listing instead of returning a part of it."""
    monkeypatch.setattr(api_client, "PAGE_SIZE", 3)
    for number in range(5):
        api.put(CONFIG_MAPS, f"c{number}", "team", data={})
    pages = []

    def expire(request):
        pages.append(request.params.get("continue"))
        if len(pages) == 2:
            api.fail(410, "Expired")
            return api.faults.pop()(request)
        return None

    api.faults.append(expire)
    assert len(await cluster.list_all(CONFIG_MAPS, dict[str, Any])) == 5
    assert pages == [None, "3", None, "3"]


async def test_a_metadata_listing_by_name_carries_no_secret(cluster: Cluster, api):
    """Versions of Secrets of one name are read without their content."""
    api.put(SECRETS, "sluice-credentials", "team", data={"k": "c2VjcmV0"})
    api.put(SECRETS, "other", "team", data={"k": "c2VjcmV0"})
    raw = await cluster.list_all(
        SECRETS, dict[str, Any], field_selector="metadata.name=sluice-credentials", metadata_only=True
    )
    assert len(raw) == 1
    assert "data" not in raw[0]
    typed = await cluster.list_all(
        SECRETS, VersionOnly, field_selector="metadata.name=sluice-credentials", metadata_only=True
    )
    assert typed[0].metadata.namespace == "team"


async def test_apply_is_idempotent_and_sets_back_what_others_changed(cluster: Cluster, api):
    """Applying the same twice makes no new version; a key no longer applied goes away."""
    first = await cluster.apply(CONFIG_MAPS, "team", "policy", {"data": {"a": "1", "b": "2"}})
    again = await cluster.apply(CONFIG_MAPS, "team", "policy", {"data": {"a": "1", "b": "2"}})
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    api.put(CONFIG_MAPS, "policy", "team", data={"a": "edited", "b": "2", "c": "foreign"})
    repaired = await cluster.apply(CONFIG_MAPS, "team", "policy", {"data": {"a": "1"}})
    assert repaired["data"] == {"a": "1", "c": "foreign"}


async def test_fields_of_another_manager_are_taken_over_on_purpose(cluster: Cluster, api):
    """An apply that does not insist is refused where somebody else has written; the operator's own does insist."""
    await cluster.apply(CONFIG_MAPS, "team", "policy", {"data": {"a": "1"}})
    api.put(CONFIG_MAPS, "policy", "team", data={"a": "edited"})
    path = CONFIG_MAPS.path("team", "policy")
    body = {"metadata": {"name": "policy", "namespace": "team"}, "data": {"a": "2"}}
    url = f"{str(api.url).rstrip('/')}{path}?fieldManager=sluice-operator"
    async with (
        aiohttp.ClientSession() as session,
        session.patch(url, json=body, headers={"Content-Type": "application/apply-patch+yaml"}) as answer,
    ):
        assert answer.status == 409
    assert (await cluster.apply(CONFIG_MAPS, "team", "policy", body))["data"] == {"a": "2"}


async def test_a_status_patch_loses_against_a_newer_version(cluster: Cluster, api):
    """The status of an object that changed meanwhile is left alone."""
    stored = api.put(UPSTREAMS, "openai", "platform", spec={})
    version = stored["metadata"]["resourceVersion"]
    after = await cluster.patch_status(UPSTREAMS, "platform", "openai", {"consumers": 1}, version)
    assert (after["status"]["consumers"], after["metadata"]["generation"]) == (1, 1)
    with pytest.raises(ConflictError):
        await cluster.patch_status(UPSTREAMS, "platform", "openai", {"consumers": 2}, version)
    assert api.object(UPSTREAMS, "openai", "platform")["status"]["consumers"] == 1


async def test_a_delete_spares_an_object_that_changed(cluster: Cluster, api):
    """Deletion names the exact version; one that is gone already is no fault."""
    stored = api.put(CONFIG_MAPS, "policy", "team", data={})
    meta = stored["metadata"]
    version = ObjectVersion(name="policy", uid=meta["uid"], resource_version=meta["resourceVersion"])
    api.put(CONFIG_MAPS, "policy", "team", data={"a": "1"})
    with pytest.raises(ConflictError):
        await cluster.delete(CONFIG_MAPS, "team", version)
    fresh = api.object(CONFIG_MAPS, "policy", "team")["metadata"]
    version = ObjectVersion(name="policy", uid=fresh["uid"], resource_version=fresh["resourceVersion"])
    await cluster.delete(CONFIG_MAPS, "team", version)
    await cluster.delete(CONFIG_MAPS, "team", version)
    assert api.all(CONFIG_MAPS) == []


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (404, NotFoundError),
        (409, ConflictError),
        (410, ExpiredError),
        (401, RefusedError),
        (403, RefusedError),
        (422, RefusedError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
async def test_answers_are_told_apart_by_what_to_do_next(cluster: Cluster, api, status: int, fault: type[Exception]):
    """Each status code becomes the fault that says whether trying again helps."""
    api.fail(status, "Reason")
    with pytest.raises(fault):
        await cluster.get(MODEL_ROUTES, "team", "chat")


async def test_no_answer_is_a_fault_like_an_overloaded_server(cluster: Cluster, api):
    """A connection that breaks is told as UnavailableError, with nothing of the request in it."""
    await api.servers[0].server.close()
    with pytest.raises(UnavailableError, match="GET modelroutes"):
        await cluster.get(MODEL_ROUTES, "team", "chat")


async def test_a_secret_never_comes_back_in_an_error(cluster: Cluster, api):
    """The API server repeats invalid values in its message; for Secrets the message is dropped."""
    api.fail(422, "Invalid")
    original = api.faults.pop()

    def echo(request):
        answer = original(request)
        if answer is not None:
            answer.text = answer.text.replace('""', '"data.k: Invalid value: sk-secret"')
        return answer

    api.faults.append(echo)
    with pytest.raises(RefusedError) as refused:
        await cluster.apply(SECRETS, "team", "sluice-credentials", {"data": {"k": "sk-secret"}})
    assert "sk-secret" not in str(refused.value)
