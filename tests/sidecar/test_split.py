"""Splits as an application meets them: its arm applied, named in a header, kept for a conversation, scored."""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import openai
import pytest

from sluice_core.api.base import BodyField, KeySource
from sluice_core.api.upstream import Breaker, Retry
from sluice_core.snapshot import ArmPolicy, FallbackPolicy, SplitPolicy

Client = Callable[..., openai.OpenAI]
MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


def split(**fields: Any) -> SplitPolicy:
    """A split that sends everybody to the stable arm unless told otherwise."""
    return SplitPolicy(
        **{
            "key": "team/prompt",
            "revision": "r1",
            "salt": "s",
            "weight": 0,
            "stable": ArmPolicy(version="v1", model="gpt-4.1-mini"),
            "candidate": ArmPolicy(
                version="v2", model="gpt-4.1", instructions="be verbose", overrides={"temperature": 0.25}
            ),
            "keys": (KeySource(header="x-user-id"), KeySource(body=BodyField.USER)),
            **fields,
        }
    )


def started(start: Any, policies: Any, mock: Any, **fields: Any) -> Any:
    """A sidecar whose one rule has a split."""
    return start(policies.snapshot(policies.upstream(mock.base_url), rules=(policies.rule(split=split(**fields)),)))


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_an_arm_brings_its_model_instructions_and_parameters(
    start: Any, client: Client, mock: Any, policies: Any, kind: str
) -> None:
    """The override header forces the candidate; the upstream sees all that it changes."""
    api = client(started(start, policies, mock).base_url)
    for arm, version, model in (("stable", "v1", "gpt-4.1-mini"), ("candidate", "v2", "gpt-4.1")):
        headers = {"x-sluice-arm": arm}
        if kind == "chat":
            answer: Any = api.chat.completions.with_raw_response.create(
                model="any", messages=MESSAGES, extra_headers=headers
            )
        else:
            answer = api.responses.with_raw_response.create(
                model="any", input="hello", instructions="be brief", extra_headers=headers
            )
        entry = mock.ledger.last
        assert answer.headers["x-sluice-arm"] == version
        assert entry.model_requested == model
        text = "be verbose" if arm == "candidate" else "be brief"
        assert entry.instructions_sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert entry.temperature == (0.25 if arm == "candidate" else None)


def test_users_stay_on_their_arm_and_counts_follow(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """The same user gets the same arm, by header or body field; both arms are counted."""
    sidecar = started(start, policies, mock, weight=50)
    api = client(sidecar.base_url)
    arms: dict[str, set[str]] = {}
    for number in range(40):
        user = f"u{number % 10}"
        fields: Any = {"user": user} if number % 2 else {"extra_headers": {"x-user-id": user}}
        answer = api.chat.completions.with_raw_response.create(model="any", messages=MESSAGES, **fields)
        arms.setdefault(user, set()).add(answer.headers["x-sluice-arm"])
    assert all(len(each) == 1 for each in arms.values())
    assert len(set.union(*arms.values())) == 2
    counts = {each["arm"]: each["requests"] for each in sidecar.status()["arms"]}
    assert sum(counts.values()) == 40
    assert counts["candidate"] == 4 * sum("v2" in each for each in arms.values())


def test_a_failing_arm_is_counted_as_failing_even_if_a_fallback_answers(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """A fallback hides a failure from the application, but not from the judge."""
    rule = policies.rule(
        split=split(weight=100), fallbacks=(FallbackPolicy(upstream="team/openai", model="gpt-4.1-nano"),)
    )
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url), rules=(rule,)))
    mock.faults.add(error="server_error", model="gpt-4.1")
    answer = client(sidecar.base_url).chat.completions.with_raw_response.create(
        model="any", messages=MESSAGES, user="u"
    )
    assert answer.headers["x-sluice-fallback"] == "0"
    assert sidecar.status()["arms"][0]["errors"] == {"ProviderError": 1}


def test_a_breaker_that_an_arm_has_opened_counts_against_it(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """Calls that are stopped because the arm's model keeps failing are failures of the arm, not calls without a say."""
    upstream = policies.upstream(
        mock.base_url, breaker=Breaker(minimum_requests=2, open_seconds=600), retry=Retry(attempts=1)
    )
    sidecar = start(policies.snapshot(upstream, rules=(policies.rule(split=split(weight=100)),)))
    mock.faults.add(error="server_error", model="gpt-4.1")
    api = client(sidecar.base_url)
    codes = []
    for _ in range(6):
        with pytest.raises(openai.InternalServerError) as failed:
            api.chat.completions.create(model="any", messages=MESSAGES, user="u")
        codes.append(failed.value.code)
    assert codes[-1] == "circuit_open"
    assert sidecar.status()["arms"][0]["errors"] == {"ProviderError": 6}


def test_a_parameter_of_the_arm_that_is_refused_is_the_arms_fault(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """A 400 about what the arm set counts against the arm; one about what the caller sent does not."""
    candidate = ArmPolicy(version="v2", model="no-such-model")
    sidecar = started(start, policies, mock, weight=100, candidate=candidate)
    mock.faults.add(error="model_not_found", model="no-such-model")
    with pytest.raises(openai.NotFoundError):
        client(sidecar.base_url).chat.completions.create(model="any", messages=MESSAGES, user="u")
    assert sidecar.status()["arms"][0]["errors"] == {"ConfigError": 1}


def test_a_conversation_stays_on_its_arm(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """A response that continues another one keeps its arm, whatever the weight has become."""
    sidecar = started(start, policies, mock, weight=0)
    api = client(sidecar.base_url)
    first = api.responses.create(model="any", input="a", user="u", extra_headers={"x-sluice-arm": "candidate"})
    raw = api.responses.with_raw_response.create(model="any", input="b", user="u", previous_response_id=first.id)
    assert raw.headers["x-sluice-arm"] == "v2"


@pytest.mark.parametrize("as_object", [False, True])
def test_a_conversation_object_stays_on_its_arm(
    start: Any, client: Client, mock: Any, policies: Any, as_object: bool
) -> None:
    """A call in a conversation keeps the arm of the one before it there, however the conversation is named."""
    sidecar = started(start, policies, mock, weight=0)
    api = client(sidecar.base_url)
    talk = api.conversations.create()
    named: Any = {"id": talk.id} if as_object else talk.id
    arms = []
    for headers in ({"x-sluice-arm": "candidate"}, {}, {"x-sluice-arm": "stable"}, {}):
        raw = api.responses.with_raw_response.create(
            model="any", input="b", user="u", conversation=named, extra_headers=headers
        )
        arms.append(raw.headers["x-sluice-arm"])
    assert arms == ["v2", "v2", "v1", "v1"]


def test_another_rollout_begins_without_memories(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """The candidate of the next rollout is another version: who talked with the last one is not put on it."""
    sidecar = started(start, policies, mock, weight=0)
    api = client(sidecar.base_url)
    first = api.responses.create(model="any", input="a", user="u", extra_headers={"x-sluice-arm": "candidate"})
    rule = policies.rule(split=split(weight=0, revision="next", candidate=ArmPolicy(version="v3")))
    sidecar.runs(sidecar.apply(policies.snapshot(policies.upstream(mock.base_url), rules=(rule,))))
    raw = api.responses.with_raw_response.create(model="any", input="b", user="u", previous_response_id=first.id)
    assert raw.headers["x-sluice-arm"] == "v1"


def test_an_application_scores_an_answer(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """A score counts once for the arm that gave the answer; unknown answers and nonsense are told apart."""
    sidecar = started(start, policies, mock, weight=100)
    answer = client(sidecar.base_url).chat.completions.create(model="any", messages=MESSAGES, user="u")

    def score(body: Any) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{sidecar.port}/sluice/v1/feedback", json.dumps(body).encode(), method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert [score({"response_id": answer.id, "score": 0.5}) for _ in range(2)] == [200, 200]
    assert score({"response_id": "another", "score": 0.5}) == 404
    assert score({"response_id": answer.id, "score": 2}) == 400
    assert sidecar.status()["arms"][0]["score"]["n"] == 1
