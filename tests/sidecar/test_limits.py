"""Limits as an application meets them: admitted, waiting, refused with a true Retry-After, or only counted."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest

from sluice_core.api.base import KeySource
from sluice_core.api.modelroute import CallLimits
from sluice_core.api.quotaallocation import Mode, PerUser, Queue, UserClass
from sluice_core.api.upstream import Limits

MESSAGES: Any = [{"role": "user", "content": "planted prompt about the purple submarine"}]
Client = Callable[..., openai.OpenAI]


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


def limited(policies: Any, mock: Any, limits: Limits, **allocation: Any) -> Any:
    """A snapshot with limits on the whole account, and one allocation."""
    return policies.snapshot(policies.upstream(mock.base_url, limits=limits), quotas=(policies.quota(**allocation),))


def create(client: openai.OpenAI, **fields: Any) -> Any:
    """Make a small chat call; return the raw answer, errors included."""
    fields = {"model": "gpt-4.1-mini", "messages": MESSAGES, "max_tokens": 10, **fields}
    try:
        return client.chat.completions.with_raw_response.create(**fields)
    except openai.APIStatusError as error:
        return error.response


def test_over_the_limit_of_requests_is_a_429_that_sdks_understand(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """The error has OpenAI's shape and code, says that it is Sluice's, and when to come back."""
    sidecar = start(limited(policies, mock, Limits(requests_per_minute=3)))
    chat = client(sidecar.base_url)
    assert [create(chat).status_code for _ in range(3)] == [200] * 3
    refused = create(chat)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("rate_limit_exceeded", "sluice_error", None)
    assert 55 <= int(refused.headers["retry-after"]) <= 61
    assert "team/openai-quota/chat" in refused.headers["x-sluice-decision"]
    record = sidecar.record(refused.headers["x-sluice-call-id"])
    assert record["outcome"] == "Refused"
    assert record["refusedBy"] == "team/openai-quota/chat/requests"
    assert len(mock.ledger) == 3
    assert sidecar.metric("sluice_refusals_total", mode="Enforce") == 1


def test_a_call_larger_than_the_limit_is_told_not_to_come_back(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """Waiting cannot help, and the SDK is told so."""
    sidecar = start(limited(policies, mock, Limits(tokens_per_minute=1000)))
    refused = create(client(sidecar.base_url), max_tokens=5000)
    assert refused.json()["error"]["code"] == "request_too_large_for_limit"
    assert refused.headers["x-should-retry"] == "false"


def test_tokens_are_settled_with_what_was_used(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """The estimate is reserved before, and replaced by the usage after."""
    sidecar = start(limited(policies, mock, Limits(tokens_per_minute=100_000)))
    mock.faults.add(prompt_tokens=3000, output_tokens=500)
    answer = create(client(sidecar.base_url), max_tokens=600)
    record = sidecar.record(answer.headers["x-sluice-call-id"])
    assert record["reservedTokens"] == 600
    assert sidecar.status()["allocations"][0]["usedTokens"] == 3500


def test_a_call_waits_for_a_slot_and_goes_when_one_is_free(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """With one call at a time, three at once take turns, and each is told how long it waited."""
    sidecar = start(limited(policies, mock, Limits(concurrency=1), queue=Queue(max_wait_seconds=10)))
    mock.faults.add(latency_seconds=0.1)
    chat = client(sidecar.base_url)
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(create(chat))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert sum("x-sluice-queue-ms" in answer.headers for answer in answers) == 2
    assert mock.ledger.peak_in_flight == 1
    status = sidecar.status()
    assert (status["inFlight"], status["waiting"]) == (0, 0)


def test_a_waiting_call_whose_client_leaves_holds_nothing(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """It leaves the line at once, and the next call is admitted."""
    sidecar = start(limited(policies, mock, Limits(concurrency=1), queue=Queue(max_wait_seconds=30)))
    fault = mock.faults.add(stall_seconds=30.0)
    ends: list[type[Exception]] = []

    def hold() -> None:
        try:
            create(client(sidecar.base_url, timeout=1.5), extra_headers={"x-stainless-read-timeout": "40"})
        except openai.APITimeoutError as error:
            ends.append(type(error))

    thread = threading.Thread(target=hold)
    thread.start()
    sidecar.wait_until(lambda: mock.ledger.in_flight == 1)
    with pytest.raises(openai.APITimeoutError):
        create(client(sidecar.base_url, timeout=0.3), extra_headers={"x-stainless-read-timeout": "40"})
    sidecar.wait_until(lambda: sidecar.status()["waiting"] == 0)
    mock.faults.remove(fault)
    thread.join(10)
    assert ends == [openai.APITimeoutError]
    sidecar.wait_until(lambda: sidecar.status()["inFlight"] == 0)
    assert create(client(sidecar.base_url)).status_code == 200
    assert [record["outcome"] for record in sidecar.records(3)].count("ClientClosed") == 2


def test_shadow_refuses_nothing_and_says_what_it_would(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Calls over the limit pass; the record and the metric tell."""
    sidecar = start(limited(policies, mock, Limits(requests_per_minute=1), mode=Mode.SHADOW))
    chat = client(sidecar.base_url)
    answers = [create(chat) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    record = sidecar.record(answers[2].headers["x-sluice-call-id"])
    assert record["wouldRefuse"] == "team/openai-quota/chat/requests"  # as in `refusedBy` where it refuses
    assert sidecar.metric("sluice_refusals_total", mode="Shadow") == 2


def test_users_have_limits_of_their_own_by_class(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """One user over its limit is refused while another goes on; names stay out of records."""
    per_user = PerUser(
        key=KeySource(header="x-user-id"),
        requests_per_minute=1,
        class_header="x-tier",
        classes=(UserClass(value="paid", requests_per_minute=3),),
    )
    sidecar = start(limited(policies, mock, Limits(), per_user=per_user))
    chat = client(sidecar.base_url)

    def status(user: str, tier: str = "free") -> int:
        answer = create(chat, extra_headers={"x-user-id": user, "x-tier": tier})
        return int(answer.status_code)

    assert [status(policies.USER) for _ in range(2)] == [200, 429]
    assert status("another") == 200
    assert [status("payer", "paid") for _ in range(4)] == [200, 200, 200, 429]
    records = sidecar.records(7)
    assert {record.get("userClass") for record in records} == {None, "paid"}
    assert len({record["userHash"] for record in records}) == 3


def test_a_rule_caps_input_and_output(start: Any, client: Client, mock: Any, policies: Any) -> None:
    """Too long an input is refused; too long an output is cut down."""
    caps = CallLimits(max_input_tokens=50, max_output_tokens=20)
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url), rules=(policies.rule(limits=caps),)))
    chat = client(sidecar.base_url)
    assert create(chat, max_tokens=500).status_code == 200
    assert mock.ledger.last.max_tokens == 20
    refused = create(chat, messages=[{"role": "user", "content": "word " * 500}])
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "input_too_long")


@pytest.mark.parametrize("outcome", ["error", "cut", "timeout", "refused connection"])
def test_slots_come_back_however_a_call_ends(
    start: Any, client: Client, mock: Any, policies: Any, outcome: str
) -> None:
    """After any end, the one slot there is admits the next call."""
    limits = Limits(concurrency=1)
    base_url = "http://127.0.0.1:1/v1" if outcome == "refused connection" else mock.base_url
    sidecar = start(
        policies.snapshot(policies.upstream(base_url, limits=limits), quotas=(policies.quota(),)),
    )
    faults: dict[str, Any] = {
        "error": {"error": "invalid_request"},
        "cut": {"cut_at_byte": 10},
        "timeout": {"stall_seconds": 20.0},
        "refused connection": {},
    }
    mock.faults.add(**faults[outcome])
    chat = client(sidecar.base_url)
    statuses = {create(chat, extra_headers={"x-stainless-read-timeout": "0.5"}).status_code for _ in range(3)}
    assert 429 not in statuses
    assert sidecar.status()["inFlight"] == 0


def test_a_pod_among_others_keeps_to_its_safe_share_without_the_sync_channel(
    start: Any, client: Client, mock: Any, policies: Any
) -> None:
    """Nobody has told it that the whole limit is its own, so it takes no more than the policy lets every pod take."""
    snapshot = policies.snapshot(
        policies.upstream(mock.base_url, limits=Limits(requests_per_minute=100)),
        quotas=(policies.quota(safe=Limits(requests_per_minute=2), queue=Queue(max_wait_seconds=0)),),
    )
    chat = client(start(snapshot, SLUICE_SOLE="false").base_url)

    assert [create(chat).status_code for _ in range(4)] == [200, 200, 429, 429]
