"""Answers given again: the mock's ledger says how often the API was asked, the headers and records why."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable
from typing import Any

import openai
import pytest

from sluice_core.api.base import KeySource
from sluice_core.api.degradation import Degradation, Level
from sluice_core.api.modelroute import Authorization, Cache
from sluice_core.api.quotaallocation import Budget, OnExhausted, Queue
from sluice_core.api.upstream import Breaker, Limits, Retry
from sluice_core.snapshot import ArmPolicy, CachedFallbackPolicy, FallbackPolicy, SplitPolicy

Client = Callable[..., openai.OpenAI]
PROMPT = "planted prompt about the purple submarine"
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
COLD: Any = {"model": "gpt-4.1-mini", "messages": MESSAGES, "temperature": 0}
STATIC = FallbackPolicy(static_message="We are busy.")
OF_TODAY = CachedFallbackPolicy(place=0, max_age_seconds=600)


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


def cached(policies: Any, mock: Any, cache: Cache | None = None, *, quotas: Any = (), **fields: Any) -> Any:
    """Return a snapshot whose one rule keeps answers."""
    upstream = {name: fields.pop(name) for name in ("breaker", "retry", "limits", "credentials") if name in fields}
    rule = policies.rule(cache=cache or Cache(), **fields)
    return policies.snapshot(policies.upstream(mock.base_url, **upstream), rules=(rule,), quotas=quotas)


def create(client: openai.OpenAI, **fields: Any) -> Any:
    """Make a chat call that may be kept; return the raw answer, errors included."""
    try:
        return client.chat.completions.with_raw_response.create(**{**COLD, **fields})
    except openai.APIStatusError as error:
        return error.response


def read(answer: Any) -> str:
    """Return the text of a chat answer, streamed or not."""
    parsed = answer.parse()
    if isinstance(parsed, openai.Stream):
        return "".join(chunk.choices[0].delta.content or "" for chunk in parsed if chunk.choices)
    return parsed.choices[0].message.content


def use(answer: Any) -> str:
    """Return what the cache did."""
    return answer.headers["x-sluice-cache"].partition(";")[0]


def post(port: int, path: str, body: Any, **headers: str) -> tuple[dict[str, str], bytes]:
    """Send one request with a plain client; return the header of the answer and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body)
        connection.request("POST", f"/v1{path}", data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


KEPT: dict[str, tuple[str, Any]] = {
    "chat": ("/chat/completions", COLD),
    "chat stream": ("/chat/completions", {**COLD, "stream": True}),
    "chat stream with usage": (
        "/chat/completions",
        {**COLD, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "chat with tools": (
        "/chat/completions",
        {**COLD, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    ),
    "responses": ("/responses", {"model": "gpt-4.1-mini", "input": PROMPT, "temperature": 0, "store": False}),
    "responses stream": (
        "/responses",
        {"model": "gpt-4.1-mini", "input": PROMPT, "temperature": 0.1, "store": False, "stream": True},
    ),
    "completions": ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": PROMPT, "temperature": 0}),
    "embeddings": ("/embeddings", {"model": "text-embedding-3-small", "input": [PROMPT, "b"]}),
    "moderations": ("/moderations", {"model": "omni-moderation-latest", "input": PROMPT}),
}


@pytest.mark.parametrize("kind", KEPT)
def test_an_identical_call_gets_the_same_bytes_and_asks_nobody(share: Any, mock: Any, policies: Any, kind: str) -> None:
    """The API is asked once. The second answer is the first one's bytes, under header fields of Sluice's own."""
    sidecar = share(cached(policies, mock))
    path, body = KEPT[kind]
    body = {**body, "user": kind}
    post(sidecar.port, path, body, **{"Cache-Control": "no-cache"})  # whatever another test has left
    asked = len(mock.ledger)
    first = post(sidecar.port, path, {**body, "user": "another", "metadata": {"a": "b"}})
    second = post(sidecar.port, path, json.dumps(body, indent=2).encode())
    assert len(mock.ledger) == asked == 1
    assert first[1] == second[1]
    assert first[1]
    assert second[0]["x-sluice-cache"].startswith("hit; age=")
    assert second[0]["content-type"] == first[0]["content-type"]
    assert "x-request-id" not in second[0]
    assert "x-ratelimit-remaining-requests" not in second[0]
    if kind.endswith("stream"):
        assert second[0]["transfer-encoding"] == "chunked"


FORMS: dict[str, tuple[bool, dict[str, Any]]] = {
    "a stream of lines that end in CRLF, byte by byte": (True, {"crlf": True, "chunking": "bytes"}),
    "a stream with comments between events": (True, {"comments": True, "chunking": "coalesced"}),
    "a stream with one large event": (True, {"line_bytes": 100_000}),
    "a stream in gzip, unasked": (True, {"gzip_body": True}),
    "an answer byte by byte": (False, {"chunking": "bytes"}),
    "an answer in gzip, unasked": (False, {"gzip_body": True}),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_of_any_form_is_given_again_as_it_was_shown(share: Any, mock: Any, policies: Any, form: str) -> None:
    """Whatever the framing and coding that it came in."""
    sidecar = share(cached(policies, mock))
    stream, fault = FORMS[form]
    body = {**COLD, "stream": stream, "x": form}
    mock.faults.add(**fault)
    first, second = (post(sidecar.port, "/chat/completions", body) for _ in range(2))
    assert len(mock.ledger) == 1
    assert first[1] == second[1]
    assert second[0]["x-sluice-cache"].startswith("hit")
    assert "content-encoding" not in first[0] | second[0]
    assert b"chat.completion" in second[1]


def test_a_hit_is_told_and_costs_nothing(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Header, record and metrics tell of it and of what it spared; tokens and dollars are counted once."""
    sidecar = start(cached(policies, mock))
    api = client(sidecar.base_url)
    miss, hit = create(api), create(api)
    assert (use(miss), use(hit)) == ("miss", "hit")
    assert miss.parse() == hit.parse()
    first, second = (sidecar.record(each.headers["x-sluice-call-id"]) for each in (miss, hit))
    assert (first["cache"], second["cache"]) == ("Miss", "Hit")
    assert second["savedUSDMicros"] == first["costUSDMicros"] > 0
    assert (second["outcome"], second["status"], second["costUSDMicros"]) == ("Success", 200, 0)
    assert "usage" not in second
    assert "attempts" not in second
    spent = first["costUSDMicros"] / 1e6
    assert sidecar.metric("sluice_cost_usd_total") == pytest.approx(spent)
    assert sidecar.metric("sluice_cache_saved_usd_total", route="team/chat/default") == pytest.approx(spent)
    tokens = sidecar.metric("sluice_tokens_total", kind="input") + sidecar.metric("sluice_tokens_total", kind="output")
    assert sidecar.metric("sluice_cache_saved_tokens_total") == tokens
    for result in ("hit", "miss"):
        assert sidecar.metric("sluice_cache_calls_total", result=result, route="team/chat/default") == 1
    assert sidecar.status()["cache"]["answers"] == 1


SAMPLED: dict[str, tuple[dict[str, Any], str]] = {
    "warm": ({"temperature": 0.2}, "temperature"),
    "of unknown temperature": ({"temperature": openai.NOT_GIVEN}, "temperature"),
    "of several choices": ({"n": 2}, "choices"),
    "stored": ({"store": True}, "stored"),
    "searching": ({"web_search_options": {}}, "tools"),
    "looking at an address": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "https://images.example.com/now.png"}}],
                }
            ]
        },
        "remote_input",
    ),
    "that wants none kept": ({"extra_headers": {"Cache-Control": "no-store"}}, "cache_control"),
}


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_call_that_may_get_another_answer_is_sent_each_time(
    share: Any, client: Client, mock: Any, policies: Any, kind: str
) -> None:
    """It says why it was passed by."""
    fields, reason = SAMPLED[kind]
    api = client(share(cached(policies, mock)).base_url)
    answers = [create(api, **fields) for _ in range(2)]
    assert [each.headers["x-sluice-cache"] for each in answers] == [f"bypass; reason={reason}"] * 2
    assert len(mock.ledger) == 2


@pytest.mark.parametrize("stored", [True, None])
def test_a_response_that_the_upstream_stores_is_not_given_to_others(
    share: Any, client: Client, mock: Any, policies: Any, stored: bool | None
) -> None:
    """The Responses API stores by default, under an id that belongs to the call."""
    api = client(share(cached(policies, mock)).base_url)
    fields: Any = {} if stored is None else {"store": stored}
    for _ in range(2):
        answer = api.responses.with_raw_response.create(model="gpt-4.1-mini", input="i", temperature=0, **fields)
        assert answer.headers["x-sluice-cache"] == "bypass; reason=stored"
    assert len(mock.ledger) == 2


def test_a_rule_without_cache_knows_nothing_of_it(plain: Any, client: Client, mock: Any) -> None:
    """Every call is sent, and no header speaks of a cache."""
    answers = [create(client(plain.base_url)) for _ in range(2)]
    assert len(mock.ledger) == 2
    assert not any("x-sluice-cache" in each.headers for each in answers)


def test_what_the_arm_sets_decides(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Temperature is looked at after the overrides, and two arms never share an answer; hits say nothing of an arm."""
    split = SplitPolicy(
        key="team/prompt",
        revision="r1",
        salt="s",
        weight=50,
        stable=ArmPolicy(version="v1", overrides={"temperature": 0}),
        candidate=ArmPolicy(version="v2", overrides={"temperature": 0}),
        keys=(KeySource(header="x-user-id"),),
    )
    sidecar = start(cached(policies, mock, split=split))
    api = client(sidecar.base_url)
    for arm in ("stable", "candidate"):
        for expected in ("miss", "hit", "hit"):
            headers = {"x-sluice-arm": arm, "x-user-id": "u"}
            answer = create(api, temperature=1, extra_headers=headers)
            assert use(answer) == expected
            assert answer.headers["x-sluice-arm"] == ("v1" if arm == "stable" else "v2")
    assert len(mock.ledger) == 2
    for number in range(20):
        create(api, temperature=1, extra_headers={"x-user-id": f"u{number}"})
    assert len(mock.ledger) == 2
    counted = {each["arm"]: each.get("requests", 0) for each in sidecar.status()["arms"]}
    assert counted == {"stable": 0, "candidate": 0}, "the calls that asked were forced, the others asked nothing"


DIFFERENT: dict[str, Any] = {
    "text": {"messages": [{"role": "user", "content": PROMPT + " "}]},
    "model": {"model": "gpt-4.1-nano"},
    "parameter": {"seed": 1},
    "stream": {"stream": True},
    "version of the API": {"extra_headers": {"OpenAI-Beta": "assistants=v2"}},
    "query": {"extra_query": {"a": "b"}},
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_a_different_call_is_another_call(
    share: Any, client: Client, mock: Any, policies: Any, difference: str
) -> None:
    """Whatever the answer may depend on keeps calls apart."""
    api = client(share(cached(policies, mock)).base_url)
    alone = {"extra_body": {"x": difference}}
    assert [use(create(api, **alone)), use(create(api, **alone, **DIFFERENT[difference]))] == ["miss", "miss"]
    assert len(mock.ledger) == 2


def test_answers_are_kept_apart_by_user_where_the_rule_says_so(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """A user gets what the same user got; a call that names nobody is sent."""
    cache = Cache(user_key=(KeySource(header="x-user-id"),))
    api = client(start(cached(policies, mock, cache)).base_url)
    found = [use(create(api, extra_headers={"x-user-id": user})) for user in ("a", "b", "a", "b")]
    assert found == ["miss", "miss", "hit", "hit"]
    assert create(api).headers["x-sluice-cache"] == "bypass; reason=user_key"


def test_applications_with_their_own_key_share_with_none(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Where the application's key is sent, an answer is for that key alone."""
    sidecar = start(cached(policies, mock, authorization=Authorization.APPLICATION))
    keys = (policies.KEY, policies.NEXT_KEY)
    found = [use(create(client(sidecar.base_url, api_key=key))) for key in (*keys, *keys)]
    assert found == ["miss", "miss", "hit", "hit"]


def test_the_callers_cache_control_is_obeyed(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """`no-cache` asks anew and keeps that; `no-store` does neither; `max-age` bounds the age of what will do."""
    api = client(start(cached(policies, mock)).base_url)
    expected = {"": "miss", "no-cache": "miss", "no-store": "bypass", "max-age=60": "hit", "max-age=0": "miss"}
    for wish, result in expected.items():
        assert use(create(api, extra_headers={"Cache-Control": wish} if wish else {})) == result
    assert len(mock.ledger) == 4


def test_an_answer_has_its_time(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """After `ttlSeconds` the upstream is asked again."""
    sidecar = start(cached(policies, mock, Cache(ttl_seconds=1)))
    api = client(sidecar.base_url)
    assert use(create(api)) == "miss"
    sidecar.wait_until(lambda: use(create(api)) == "miss")
    assert len(mock.ledger) == 2


NOT_KEPT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an error": ({"error": "invalid_request"}, {}),
    "a cut stream": ({"cut_at_event": 6}, {"stream": True}),
    "a stream without its end": ({"no_done": True}, {"stream": True}),
    "an answer that hit its limit": ({"finish_reason": "length"}, {}),
    "a stream that hit its limit": ({"finish_reason": "length"}, {"stream": True}),
    "an answer that a filter held back": ({"finish_reason": "content_filter"}, {}),
}


@pytest.mark.parametrize("kind", NOT_KEPT)
def test_what_is_not_whole_is_not_kept(share: Any, mock: Any, policies: Any, kind: str) -> None:
    """Failures, broken streams and answers cut at their limit are nobody else's."""
    sidecar = share(cached(policies, mock, retry=Retry(attempts=1)))
    fault, fields = NOT_KEPT[kind]
    body = {**COLD, "messages": [{"role": "user", "content": kind}], **fields}
    if fault:
        mock.faults.add(count=1, **fault)
    assert post(sidecar.port, "/chat/completions", body)[0]["x-sluice-cache"] == "miss"
    assert post(sidecar.port, "/chat/completions", body)[0]["x-sluice-cache"] == "miss"
    assert len(mock.ledger) == 2


def test_a_hit_needs_no_capacity_no_money_and_no_upstream(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """With the limit used up, the breaker open and the upstream failing, what is kept is still given."""
    breaker = Breaker(consecutive_failures=1, open_seconds=600)
    upstream: dict[str, Any] = {"breaker": breaker, "retry": Retry(attempts=1), "limits": Limits(requests_per_minute=3)}
    upstream["credentials"] = policies.BOTH_KEYS[:1]
    quota = policies.quota(queue=Queue(max_wait_seconds=0))
    sidecar = start(cached(policies, mock, quotas=(quota,), **upstream))
    api = client(sidecar.base_url)
    assert use(create(api)) == "miss"
    mock.faults.add(error="server_error")
    assert create(api, seed=1).status_code == 500
    assert create(api, seed=2).status_code == 503
    assert [use(create(api)) for _ in range(5)] == ["hit"] * 5
    assert create(api, seed=3).status_code in (429, 503)
    assert len(mock.ledger) == 2


def test_a_spent_budget_does_not_concern_what_is_kept(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Calls that cost money are refused; those that cost nothing are answered."""
    budget = Budget(daily_usd="0.000001", on_exhausted=OnExhausted.REJECT)
    sidecar = start(cached(policies, mock, quotas=(policies.quota(budget=budget),)))
    api = client(sidecar.base_url)
    assert create(api).status_code == 200
    sidecar.wait_until(lambda: create(api, extra_headers={"Cache-Control": "no-store"}).status_code == 429)
    assert use(create(api)) == "hit"


@pytest.mark.parametrize("level", [Level.ECONOMY, Level.CACHE_ONLY, Level.STATIC, Level.MAINTENANCE])
def test_kept_answers_are_given_down_to_their_level(
    start: Any, client: Client, mock: Any, policies: Any, level: Level
) -> None:
    """Whoever sets the service to fixed answers, or to none, wants no kept ones either."""
    sidecar = start(cached(policies, mock, quotas=(policies.quota(),)))
    api = client(sidecar.base_url)
    assert use(create(api)) == "miss"
    quota = policies.quota(degradation=Degradation(level=level, static_message="We are busy."))
    sidecar.runs(sidecar.apply(cached(policies, mock, quotas=(quota,))))
    answer = create(api)
    if level in (Level.ECONOMY, Level.CACHE_ONLY):
        assert use(answer) == "hit"
    else:
        assert "x-sluice-cache" not in answer.headers
        assert answer.status_code == (200 if level is Level.STATIC else 503)
    assert len(mock.ledger) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_earlier_answer_stands_in_when_the_upstream_fails(
    start: Any, client: Client, mock: Any, policies: Any, stream: bool
) -> None:
    """Past its time it is given only where the rule has a place for it, and says so; without one, the next is tried."""
    fallbacks: Any = {"fallbacks": (STATIC,), "cached_fallbacks": (OF_TODAY,)}
    sidecar = start(cached(policies, mock, Cache(ttl_seconds=0), retry=Retry(attempts=1), **fallbacks))
    api = client(sidecar.base_url)
    fresh = create(api, stream=stream)
    text = read(fresh)
    assert use(fresh) == "miss"
    mock.faults.add(error="server_error")
    stale = create(api, stream=stream)
    assert (read(stale), use(stale), stale.headers["x-sluice-fallback"]) == (text, "stale", "0")
    record = sidecar.record(stale.headers["x-sluice-call-id"])
    assert (record["cache"], record["outcome"], record["fallback"]) == ("Stale", "Success", 0)
    assert [each["outcome"] for each in record["attempts"]] == ["ProviderError"]
    unknown = create(api, seed=1)
    assert (unknown.headers["x-sluice-fallback"], use(unknown)) == ("1", "miss")
    assert "We are busy." in read(unknown)
    fresh_only = create(api, extra_headers={"Cache-Control": "no-cache"})
    assert fresh_only.headers["x-sluice-fallback"] == "1"


def test_without_an_earlier_answer_the_upstreams_error_is_passed_on(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """A cached fallback alone that has nothing leaves things as they would be without it."""
    sidecar = start(cached(policies, mock, cached_fallbacks=(OF_TODAY,), retry=Retry(attempts=1)))
    mock.faults.add(error="server_error")
    answer = create(client(sidecar.base_url))
    assert (answer.status_code, use(answer)) == (500, "miss")
    assert "sluice" not in answer.text


def test_a_flood_of_prompts_takes_no_more_than_its_room(start: Any, mock: Any, policies: Any) -> None:
    """The memory for answers is bounded, the oldest go, and no single answer takes it all."""
    sidecar = start(cached(policies, mock), SLUICE_CACHE_BYTES="65536")
    connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=20)
    for number in range(80):
        body = {"model": "text-embedding-3-small", "input": f"prompt {number}", "dimensions": 64}
        connection.request("POST", "/v1/embeddings", json.dumps(body), {"Content-Type": "application/json"})
        assert connection.getresponse().read()
    connection.close()
    kept = sidecar.status()["cache"]
    assert 0 < kept["bytes"] <= kept["maxBytes"] == 65536
    assert 0 < kept["answers"] < 80
    assert sidecar.metric("sluice_cache_evictions_total") == 80 - kept["answers"]
    headers, _ = post(sidecar.port, "/embeddings", {"model": "text-embedding-3-small", "input": [PROMPT] * 20})
    assert headers["x-sluice-cache"] == "miss"
    assert sidecar.status()["cache"]["answers"] == kept["answers"]
