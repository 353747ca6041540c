"""What failures mean: by code first, by status last."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.classify import Scope, classify_response, duration_seconds, retry_after_seconds
from sluice_core.records import Outcome


def error(code: Any = None, kind: str | None = None, message: str = "m", param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "outcome", "scope"),
    [
        (429, error("rate_limit_exceeded", "tokens"), Outcome.THROTTLED, Scope.MODEL),
        (429, error("slow_down", "rate_limit_error"), Outcome.THROTTLED, Scope.ACCOUNT),
        (429, error("insufficient_quota", "insufficient_quota"), Outcome.EXHAUSTED, Scope.ACCOUNT),
        (429, error(None, "insufficient_quota"), Outcome.EXHAUSTED, Scope.ACCOUNT),
        (429, error("billing_hard_limit_reached"), Outcome.EXHAUSTED, Scope.ACCOUNT),
        (429, error("credit_balance_exhausted", "insufficient_quota"), Outcome.EXHAUSTED, Scope.ACCOUNT),
        (429, error("organization_spend_limit_exceeded"), Outcome.EXHAUSTED, Scope.ACCOUNT),
        (429, error("project_spend_limit_exceeded", "insufficient_quota"), Outcome.EXHAUSTED, Scope.PROJECT),
        (429, b"", Outcome.THROTTLED, Scope.MODEL),
        (401, error("invalid_api_key", "invalid_request_error"), Outcome.CREDENTIAL_ERROR, Scope.KEY),
        (401, b"", Outcome.CREDENTIAL_ERROR, Scope.KEY),
        (401, error("ip_not_authorized"), Outcome.CREDENTIAL_ERROR, Scope.ACCOUNT),
        (403, error("unsupported_country_region_territory"), Outcome.CREDENTIAL_ERROR, Scope.ACCOUNT),
        (403, error(None), Outcome.CREDENTIAL_ERROR, Scope.CALL),
        (403, error("model_not_found"), Outcome.CONFIG_ERROR, Scope.MODEL),
        (404, error("model_not_found"), Outcome.CONFIG_ERROR, Scope.MODEL),
        (404, error(None, "invalid_request_error"), Outcome.CLIENT_ERROR, Scope.CALL),
        (400, error("context_length_exceeded", "invalid_request_error"), Outcome.CONFIG_ERROR, Scope.CALL),
        (400, error(None, "invalid_request_error"), Outcome.CLIENT_ERROR, Scope.CALL),
        (400, error("unsupported_parameter", param="seed"), Outcome.CLIENT_ERROR, Scope.CALL),
        (400, error("unsupported_parameter", param="temperature"), Outcome.CONFIG_ERROR, Scope.CALL),
        (400, error(None, param="messages[0].content"), Outcome.CONFIG_ERROR, Scope.CALL),
        (409, b"", Outcome.CLIENT_ERROR, Scope.CALL),
        (408, b"", Outcome.TIMEOUT, Scope.MODEL),
        (500, error(None, "server_error"), Outcome.PROVIDER_ERROR, Scope.MODEL),
        (503, error("server_is_overloaded", "service_unavailable_error"), Outcome.PROVIDER_ERROR, Scope.MODEL),
        (502, b"<html>bad gateway</html>", Outcome.PROVIDER_ERROR, Scope.UPSTREAM),
        (504, b"", Outcome.TIMEOUT, Scope.MODEL),
        (529, b'{"error":"overloaded"}', Outcome.PROVIDER_ERROR, Scope.MODEL),
        (
            400,
            b'{"object":"error","code":400,"type":"BadRequestError","message":"m"}',
            Outcome.CLIENT_ERROR,
            Scope.CALL,
        ),
    ],
)
def test_a_failure_is_judged_by_its_code(status: int, body: bytes, outcome: Outcome, scope: Scope) -> None:
    """The same status means different things; the code says which, and how far the failure reaches (P15)."""
    failure = classify_response(status, {}, body, edited={"temperature", "messages"})
    assert failure is not None
    assert (failure.outcome, failure.scope, failure.status) == (outcome, scope, status)


@pytest.mark.parametrize("code", ["content_policy_violation", "content_filter", "moderation_blocked", "invalid_prompt"])
def test_a_refusal_by_content_policy_is_an_answer(code: str) -> None:
    """No retry, no breaker and no fallback concerns it."""
    assert classify_response(400, {}, error(code)) is None


@pytest.mark.parametrize("status", [200, 204, 304])
def test_what_is_no_error_is_no_failure(status: int) -> None:
    """Statuses below 400 are answers."""
    assert classify_response(status, {}, b"") is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "3", "retry-after-ms": "120"}, 0.12),
        ({"retry-after": "3", "retry-after-ms": "soon"}, 3.0),
        ({"retry-after": "999999999"}, 86_400.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 10.0),  # by the clock that the caller passes in
        ({"retry-after": "Wed, 21 Oct 2020 07:28:30 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds, seconds or a date; nonsense counts as absent, and no header can ask for more than a day (P14)."""
    at = 1_792_567_700.0  # Wed, 21 Oct 2026 07:28:20 GMT
    assert retry_after_seconds(headers, at) == seconds


def test_the_wait_in_the_message_is_read_where_no_header_says_it() -> None:
    """OpenAI writes the wait into the text of its 429s."""
    message = "Rate limit reached. Please try again in 1m2.5s. Visit"
    failure = classify_response(429, {}, error("rate_limit_exceeded", message=message))
    assert failure is not None
    assert failure.retry_after_seconds == 62.5
    failure = classify_response(429, {"retry-after": "4"}, error("rate_limit_exceeded", message=message))
    assert failure is not None
    assert failure.retry_after_seconds == 4.0


@pytest.mark.parametrize(("value", "told"), [("true", True), ("false", False), ("", None), ("maybe", None)])
def test_the_upstreams_own_word_on_retries_is_kept(value: str, told: bool | None) -> None:
    """`x-should-retry` is passed on as a fact."""
    failure = classify_response(500, {"x-should-retry": value}, b"")
    assert failure is not None
    assert failure.should_retry is told


@pytest.mark.parametrize("code", ["sk-secret key", "x" * 65, "é", "a\nb", ""])
def test_a_code_that_is_no_plain_word_is_dropped(code: str) -> None:
    """A code may become a metric's label, so that it has to be short and plain."""
    failure = classify_response(400, {}, error(code))
    assert failure is not None
    assert failure.code is None


def test_no_text_of_the_upstream_is_kept() -> None:
    """Messages may quote the prompt or the key; a failure holds neither."""
    failure = classify_response(401, {}, error("invalid_api_key", message="Incorrect API key provided: sk-planted"))
    assert "planted" not in repr(failure)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("4m12.172s", 252.172),
        ("23h18m29.144s", 83_909.144),
        ("", None),
        ("5", None),
        ("s", None),
        ("1s x", None),
        ("-1s", None),
        ("1.2.3s", None),
    ],
)
def test_durations_as_go_writes_them(text: str, seconds: float | None) -> None:
    """Hours to milliseconds; anything else is ignored."""
    assert duration_seconds(text) == (pytest.approx(seconds) if seconds is not None else None)


@given(st.integers(400, 599), st.binary(max_size=50), st.dictionaries(st.just("retry-after"), st.text(max_size=30)))
def test_no_response_crashes(status: int, body: bytes, headers: dict[str, str]) -> None:
    """Any error response has a failure."""
    assert classify_response(status, headers, body) is not None
