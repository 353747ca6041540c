"""Who speaks on the sync channel."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sluice_core.sync import PodRef
from sluice_operator.authn import TokenAuthenticator

POD = PodRef(namespace="team", name="chat-1", uid="u-1")


def review(**values: Any) -> dict[str, Any]:
    user = {
        "username": "system:serviceaccount:team:default",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["chat-1"],
            "authentication.kubernetes.io/pod-uid": ["u-1"],
        },
    }
    return {"authenticated": True, "audiences": ["sluice"], "user": user, **values}


@pytest.fixture
def authenticator(cluster, clock) -> TokenAuthenticator:
    return TokenAuthenticator(cluster, clock=clock)


async def test_a_token_proves_the_pod_that_it_is_bound_to(authenticator, api):
    """Namespace, name and uid come from the API server's answer, nothing from the caller."""
    api.reviews["good"] = review()
    assert await authenticator.authenticate("good") == POD


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False},
        review(audiences=["https://kubernetes.default.svc"]),
        review(audiences=None),
        review(user={"username": "kubernetes-admin"}),
        review(user={"username": "system:serviceaccount:team:default"}),
        review(
            user={
                "username": "system:serviceaccount:team:default",
                "extra": {"authentication.kubernetes.io/pod-name": ["chat-1"]},
            }
        ),
        {"authenticated": "perhaps"},
    ],
)
async def test_anything_else_proves_nothing(authenticator, api, status):
    """Other audiences, people, tokens bound to no pod, and answers that make no sense are refused."""
    api.reviews["token"] = status
    assert await authenticator.authenticate("token") is None


@pytest.mark.parametrize("token", [None, "", "x" * 20_000])
async def test_what_is_no_token_is_not_even_asked_about(authenticator, token):
    """Nothing, and things too long, cost the API server nothing."""
    assert await authenticator.authenticate(token) is None
    assert authenticator.reviews == 0


async def test_an_answer_is_remembered_for_a_minute(authenticator, api, clock):
    """One review serves a minute of reports; then a token that was revoked is refused."""
    api.reviews["good"] = review()
    for _ in range(5):
        assert await authenticator.authenticate("good") == POD
    assert authenticator.reviews == 1
    api.reviews["good"] = {"authenticated": False}
    clock.advance(61)
    assert await authenticator.authenticate("good") is None


async def test_callers_that_come_together_share_one_review(authenticator, api):
    """A hundred connections of one pod cost one request, and one that gives up does not spoil it for the others."""
    api.reviews["good"] = review()
    callers = [asyncio.create_task(authenticator.authenticate("good")) for _ in range(100)]
    await asyncio.sleep(0)
    callers[0].cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert answers[1:] == [POD] * 99
    assert authenticator.reviews == 1


async def test_an_outage_of_the_api_server_does_not_silence_known_pods(authenticator, api, clock):
    """A pod proved lately goes on for ten minutes; an unknown one has to wait."""
    api.reviews["good"] = review()
    await authenticator.authenticate("good")
    api.fail(500, "InternalError", times=10)
    clock.advance(300)
    assert await authenticator.authenticate("good") == POD
    assert await authenticator.authenticate("unknown") is None
    clock.advance(400)
    assert await authenticator.authenticate("good") is None


async def test_memory_is_bounded_and_holds_no_token(authenticator, api, monkeypatch):
    """The oldest answers make room, and what is kept is a digest."""
    monkeypatch.setattr("sluice_operator.authn.MAX_REMEMBERED", 3)
    for number in range(10):
        await authenticator.authenticate(f"token-{number}")
    assert len(authenticator._verdicts) == 3
    assert "token" not in repr(authenticator._verdicts)
