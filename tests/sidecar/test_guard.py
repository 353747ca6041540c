"""What fails at the upstream: repeated, sent elsewhere, stopped or passed on, as the kind of failure deserves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from sluice_core.api.modelroute import OnClientDisconnect
from sluice_core.api.upstream import Breaker, Retry, Timeouts
from sluice_core.snapshot import FallbackPolicy

MESSAGES: Any = [{"role": "user", "content": "planted prompt about the purple submarine"}]
UPSTREAM = "team/openai"
CHEAPER = FallbackPolicy(upstream=UPSTREAM, model="gpt-4.1-nano")
STATIC = FallbackPolicy(static_message="We are busy. Please come back in a minute.")


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    import sys

    return sys.modules["policies"]


Client = Callable[..., openai.OpenAI]


def create(client: openai.OpenAI, **fields: Any) -> Any:
    """Make a chat call; return the raw answer, errors included."""
    try:
        return client.chat.completions.with_raw_response.create(
            **{"model": "gpt-4.1-mini", "messages": MESSAGES, **fields}
        )
    except openai.APIStatusError as error:
        return error.response


RETRIED = ["server_error", "server_is_overloaded", "rate_limit_exceeded", "slow_down"]


@pytest.mark.parametrize("error", RETRIED)
def test_a_passing_failure_is_repeated_unseen(share: Any, client: Client, mock: Any, policies: Any, error: str) -> None:
    """The application sees the answer of the second attempt, and the record both."""
    sidecar = share(policies.snapshot(policies.upstream(mock.base_url)))
    mock.faults.add(error=error, count=1, retry_after_ms="5")
    answer = create(client(sidecar.base_url))
    assert answer.status_code == 200
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert len(record["attempts"]) == 2
    assert record["attempts"][0]["outcome"] in ("ProviderError", "Throttled")
    assert record["outcome"] == "Success"
    assert len(mock.ledger) == 2


@pytest.mark.parametrize("fallback", [True, False], ids=["with a fallback", "without"])
def test_a_retry_after_beyond_the_cap_is_not_waited_for(
    start: Any, client: Client, mock: Any, policies: Any, fallback: bool
) -> None:
    """The fallback answers at once; without one the application gets the 429 and its time, after a single attempt."""
    retry = Retry(attempts=3, base_delay_milliseconds=1, max_delay_seconds=30)
    fallbacks = (CHEAPER,) if fallback else ()
    snapshot = policies.snapshot(
        policies.upstream(mock.base_url, retry=retry), rules=(policies.rule(fallbacks=fallbacks),)
    )
    mock.faults.add(error="rate_limit_exceeded", count=1, retry_after="45")
    begun = time.monotonic()
    answer = create(client(start(snapshot).base_url))
    assert time.monotonic() - begun < 10
    if fallback:
        assert (answer.status_code, answer.headers["x-sluice-fallback"]) == (200, "0")
    else:
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "45")
        assert len(mock.ledger) == 1


NOT_RETRIED = {
    "invalid_request": 400,
    "insufficient_quota": 429,
    "credit_balance_exhausted": 429,
    "unsupported_country_region_territory": 403,
}


@pytest.mark.parametrize("error", NOT_RETRIED)
def test_a_lasting_failure_is_passed_on_at_once(
    start: Any, client: Client, mock: Any, policies: Any, error: str
) -> None:
    """The application sees the upstream's own words, after one attempt."""
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url)))
    mock.faults.add(error=error)
    answer = create(client(sidecar.base_url))
    assert answer.status_code == NOT_RETRIED[error]
    assert "sluice" not in answer.text
    assert len(mock.ledger) == 1
    assert sidecar.record(answer.headers["x-sluice-call-id"])["attempts"][0]["status"] == NOT_RETRIED[error]


@pytest.mark.parametrize("error", ["invalid_api_key", "project_spend_limit_exceeded"])
def test_another_key_is_tried_where_the_first_is_refused(
    start: Any, client: Client, mock: Any, policies: Any, error: str
) -> None:
    """A refused key is left alone from then on, and the next one answers; the metric for the alert counts."""
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url)))
    mock.faults.add(error=error, key="primary")
    chat = client(sidecar.base_url)
    first, second = create(chat), create(chat)
    assert (first.status_code, second.status_code) == (200, 200)
    assert [entry.key_name for entry in mock.ledger] == ["primary", "next", "next"]
    assert sidecar.status()["breakers"][0]["credential"] == "primary"
    if error == "invalid_api_key":
        assert sidecar.metric("sluice_credential_errors_total", credential="primary") == 1


def test_a_new_key_is_used_when_the_secret_changes(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Keys are read again when their files change, and the new one is tried at once."""
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url)))
    sidecar.credentials.write(team__openai__primary="sk-revoked")
    sidecar.wait_until(lambda: sidecar.status()["upstreams"][UPSTREAM]["keys"] == ["primary"])
    chat = client(sidecar.base_url)
    sidecar.wait_until(lambda: create(chat).status_code == 401)
    sidecar.credentials.write(team__openai__primary=policies.KEY)
    sidecar.wait_until(lambda: create(chat).status_code == 200)


@pytest.mark.parametrize("repeated", [50, 50_000])
def test_an_input_too_long_is_made_smaller_once(
    share: Any, client: Client, mock: Any, policies: Any, repeated: int
) -> None:
    """The oldest turns go, and the answer says so; kilobytes or megabytes."""
    sidecar = share(policies.snapshot(policies.upstream(mock.base_url)))
    mock.faults.add(error="context_length_exceeded", count=1)
    turns = [{"role": "user", "content": "a long story " * repeated}, {"role": "assistant", "content": "indeed"}] * 3
    answer = create(client(sidecar.base_url), messages=[*turns, *MESSAGES])
    assert answer.status_code == 200
    assert "input_shrunk" in answer.headers["x-sluice-decision"]
    sent = [entry.received_bytes for entry in mock.ledger]
    assert sent[1] < sent[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_fallback_answers_for_a_failing_model(
    share: Any, client: Client, mock: Any, policies: Any, stream: bool
) -> None:
    """The cheaper model's answer comes in the place of the failing one's, and says so in a header."""
    sidecar = share(
        policies.snapshot(policies.upstream(mock.base_url), rules=(policies.rule(fallbacks=(CHEAPER, STATIC)),))
    )
    mock.faults.add(error="server_error", model="gpt-4.1-mini")
    answer = create(client(sidecar.base_url), stream=stream)
    assert answer.status_code == 200
    assert answer.headers["x-sluice-fallback"] == "0"
    if stream:
        assert {chunk.model for chunk in answer.parse()} == {"gpt-4.1-nano-2025-04-14"}
    else:
        assert answer.parse().model == "gpt-4.1-nano-2025-04-14"
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert record["fallback"] == 0
    assert record["attempts"][-1]["model"] == "gpt-4.1-nano"
    assert len(record["attempts"]) <= 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "responses", "completions"])
def test_a_fixed_answer_is_the_last_resort(
    share: Any, client: Client, mock: Any, policies: Any, kind: str, stream: bool
) -> None:
    """It has the shape that the official client expects of the endpoint."""
    sidecar = share(policies.snapshot(policies.upstream(mock.base_url), rules=(policies.rule(fallbacks=(STATIC,)),)))
    mock.faults.add(error="server_error")
    assert _text(client(sidecar.base_url), kind, stream) == STATIC.static_message


def _text(client: openai.OpenAI, kind: str, stream: bool) -> str:
    if kind == "chat":
        if not stream:
            answer = client.chat.completions.create(model="m", messages=MESSAGES)
            return answer.choices[0].message.content or ""
        chunks = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    if kind == "completions":
        if not stream:
            return client.completions.create(model="m", prompt="p").choices[0].text
        return "".join(chunk.choices[0].text for chunk in client.completions.create(model="m", prompt="p", stream=True))
    if not stream:
        return client.responses.create(model="m", input="i").output_text
    with client.responses.stream(model="m", input="i") as events:
        return events.get_final_response().output_text


FAILING_STREAMS = {
    "an error event first": {"stream_error": "server_error", "fail_at_event": 0},
    "a cut before content": {"cut_at_byte": 0},
    "a reset before content": {"reset": True},
}


@pytest.mark.parametrize("failure", FAILING_STREAMS)
def test_a_stream_that_fails_before_its_content_is_repeated_unseen(
    share: Any, client: Client, mock: Any, policies: Any, failure: str
) -> None:
    """Until content has been seen, the application notices nothing."""
    sidecar = share(policies.snapshot(policies.upstream(mock.base_url)))
    mock.faults.add(count=1, **FAILING_STREAMS[failure])
    answer = create(client(sidecar.base_url), stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in answer.parse() if chunk.choices)
    assert text
    assert len(mock.ledger) == 2
    assert sidecar.record(answer.headers["x-sluice-call-id"])["outcome"] == "Success"


@pytest.mark.parametrize("failure", ["cut", "reset", "no_done"])
@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_a_stream_that_fails_after_content_ends_with_an_error(
    share: Any, client: Client, mock: Any, policies: Any, kind: str, failure: str
) -> None:
    """Nothing is generated again: what was received stays, an error event follows, and there is no [DONE]."""
    sidecar = share(
        policies.snapshot(policies.upstream(mock.base_url), rules=(policies.rule(fallbacks=(CHEAPER, STATIC)),))
    )
    if failure == "no_done" and kind == "responses":
        pytest.skip("a Responses stream has no [DONE]")
    mock.faults.add(**{"no_done": True} if failure == "no_done" else {"cut_at_event": 6, "reset": failure == "reset"})
    chat = client(sidecar.base_url)
    fields: Any = {"model": "gpt-4.1-mini", "stream": True}
    if kind == "chat":
        path, body = "/chat/completions", {**fields, "messages": MESSAGES}
    else:
        path, body = "/responses", {**fields, "input": "hello"}
    with chat._client.stream("POST", f"{sidecar.base_url}{path}", json=body) as answer:
        text = answer.read().decode()
    last = [line for line in text.splitlines() if line.startswith("data:")][-1]
    event = json.loads(last.removeprefix("data:"))
    code = event["code"] if kind == "responses" else event["error"]["code"]
    assert code == "stream_interrupted"
    assert "[DONE]" not in text
    assert len(mock.ledger) == 1
    assert sidecar.record(answer.headers["x-sluice-call-id"])["outcome"] in ("Truncated", "ConnectionError")


def test_a_failure_within_a_200_counts_as_one(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """A Responses stream that ends in `response.failed` is repeated before content and counted after it."""
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url, retry=Retry(attempts=1))))
    mock.faults.add(response_failed="server_error")
    answer = client(sidecar.base_url).responses.with_raw_response.create(model="gpt-4.1-mini", input="x", stream=True)
    kinds = [event.type for event in answer.parse()]
    assert kinds[-1] == "response.failed"
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert (record["status"], record["outcome"]) == (200, "ProviderError")


def test_a_breaker_opens_answers_at_once_and_closes_again(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """While it is open the upstream is not called, and the refusal says when a call may succeed."""
    breaker = Breaker(consecutive_failures=2, open_seconds=1, successes_to_close=1)
    sidecar = start(
        policies.snapshot(
            policies.upstream(
                mock.base_url, breaker=breaker, retry=Retry(attempts=1), credentials=policies.BOTH_KEYS[:1]
            )
        )
    )
    chat = client(sidecar.base_url)
    mock.faults.add(error="server_error")
    assert [create(chat).status_code for _ in range(2)] == [500, 500]
    refused = create(chat)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "circuit_open"
    assert 0 < int(refused.headers["retry-after-ms"]) <= 1000
    assert len(mock.ledger) == 2
    assert sidecar.metric("sluice_breaker_state", upstream=UPSTREAM) == 2
    assert create(chat, model="gpt-4.1-nano").status_code == 500, "another model has a breaker of its own"
    mock.faults.clear()
    sidecar.wait_until(lambda: create(chat).status_code == 200)
    sidecar.wait_until(lambda: sidecar.metric("sluice_breaker_state", upstream=UPSTREAM, model="") == 0)


def test_the_callers_own_mistakes_open_no_breaker(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """A 400 says nothing about the upstream."""
    breaker = Breaker(consecutive_failures=2, minimum_requests=1)
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url, breaker=breaker)))
    chat = client(sidecar.base_url)
    mock.faults.add(error="invalid_request")
    assert {create(chat).status_code for _ in range(6)} == {400}
    assert sidecar.status()["breakers"] == []


def test_an_upstream_that_is_not_there_gives_502(start: Any, client: Client, policies: Any) -> None:
    """The refusal is recognisable, and holds nothing of the request."""
    sidecar = start(policies.snapshot(policies.upstream("http://127.0.0.1:1/v1")))
    answer = create(client(sidecar.base_url))
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_unreachable"
    assert answer.json()["error"]["type"] == "sluice_error"
    assert len(sidecar.record(answer.headers["x-sluice-call-id"])["attempts"]) == 3


def test_a_slow_upstream_gives_504_within_the_clients_patience(
    share: Any, client: Client, mock: Any, policies: Any
) -> None:
    """The deadline is the SDK's own time-out: later nobody reads the answer."""
    sidecar = share(policies.snapshot(policies.upstream(mock.base_url, timeouts=Timeouts(first_byte_seconds=30))))
    mock.faults.add(stall_seconds=20.0)
    answer = create(client(sidecar.base_url), extra_headers={"x-stainless-read-timeout": "0.4"})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    sidecar.wait_until(lambda: mock.ledger.in_flight == 0)


def test_retries_stay_within_their_share_of_traffic(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """With everything failing, a fifth of the calls plus a small floor may be repeated, not all of them."""
    retry = Retry(attempts=3, base_delay_milliseconds=1, budget_percent=20)
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url, retry=retry)))
    mock.faults.add(error="server_error")
    chat = client(sidecar.base_url)
    for _ in range(30):
        create(chat)
    assert 30 < len(mock.ledger) <= 30 * 1.2 + 3


@pytest.mark.parametrize("rule", list(OnClientDisconnect))
def test_an_application_that_leaves_cancels_or_drains(
    start: Any, client: Client, mock: Any, policies: Any, rule: OnClientDisconnect
) -> None:
    """Cancel closes the upstream at once; Drain reads on to its usage. Both settle, and nothing stays held."""
    sidecar = start(
        policies.snapshot(policies.upstream(mock.base_url), rules=(policies.rule(on_client_disconnect=rule),))
    )
    mock.faults.add(events=40, gap_seconds=0.02)
    answer = create(client(sidecar.base_url), stream=True)
    stream = answer.parse()
    next(iter(stream))
    stream.close()
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert mock.ledger.last.outcome == ("completed" if rule is OnClientDisconnect.DRAIN else "client_closed")
    if rule is OnClientDisconnect.DRAIN:
        assert record["usage"]["outputTokens"] == mock.ledger.last.usage.output_tokens
    else:
        assert record["outcome"] == "ClientClosed"
        assert record["usageEstimated"]
        assert record["usage"]["inputTokens"] > 0
    assert sidecar.status()["inFlight"] == 0


def test_a_call_whose_client_leaves_before_the_answer_is_cancelled(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """The upstream is closed at once, and the call is settled."""
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url)))
    mock.faults.add(stall_seconds=20.0)
    with pytest.raises(openai.APITimeoutError):
        client(sidecar.base_url, timeout=0.3).chat.completions.create(
            model="gpt-4.1-mini", messages=MESSAGES, extra_headers={"x-stainless-read-timeout": "30"}
        )
    sidecar.wait_until(lambda: mock.ledger.in_flight == 0)
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == 0)
    assert sidecar.records(1)[0]["outcome"] == "ClientClosed"


def test_a_call_that_waits_in_line_ends_with_its_application(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """Drain is for answers under way: what has not left yet is not sent for nobody."""
    from sluice_core.api.upstream import Limits

    drain = policies.rule(on_client_disconnect=OnClientDisconnect.DRAIN)
    quota = policies.quota(queue=policies.Queue(max_wait_seconds=30))
    upstream = policies.upstream(mock.base_url, limits=Limits(concurrency=1))
    sidecar = start(policies.snapshot(upstream, rules=(drain,), quotas=(quota,)))
    mock.faults.add(stall_seconds=1.5, count=1)
    ends = []

    def call(seconds: float) -> None:
        try:
            create(client(sidecar.base_url, timeout=seconds), extra_headers={"x-stainless-read-timeout": "30"})
        except openai.APITimeoutError as error:
            ends.append(error)

    first = threading.Thread(target=call, args=(10.0,))
    first.start()
    sidecar.wait_until(lambda: mock.ledger.in_flight == 1)
    call(0.2)
    sidecar.wait_until(lambda: sidecar.status()["waiting"] == 0)
    first.join()
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == 0)
    assert len(ends) == 1
    assert len(mock.ledger) == 1
