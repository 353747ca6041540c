"""What went wrong with an attempt: read from the error code first, because one status covers very different failures.

A 429 may mean "wait a second", "the account is out of money" or "this project is"; a 400 may be the caller's, the
route's or a refusal by content policy, which is an answer and no failure at all. The tables follow OpenAI's published
error codes and the codes of the Responses API's error object. Unknown codes are judged by their status.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from sluice_core.api.base import Value
from sluice_core.records import Outcome
from sluice_core.untrusted import UNREADABLE


class Scope(StrEnum):
    """How far a failure reaches: what else would fail for the same reason."""

    CALL = "Call"
    MODEL = "Model"
    KEY = "Key"
    PROJECT = "Project"
    ACCOUNT = "Account"
    UPSTREAM = "Upstream"


class Failure(Value, frozen=True, kw_only=True):
    """Why an attempt failed. It holds no text of the upstream's, which may quote the prompt or the key.

    `should_retry` is the upstream's own word in `x-should-retry`, None if it said nothing.
    """

    outcome: Outcome
    code: str | None = None
    status: int | None = None
    scope: Scope = Scope.CALL
    retry_after_seconds: float | None = None
    should_retry: bool | None = None


_Verdict = tuple[Outcome, Scope]

_BY_CODE: dict[str, _Verdict] = {
    "rate_limit_exceeded": (Outcome.THROTTLED, Scope.MODEL),
    "resource_unavailable": (Outcome.THROTTLED, Scope.MODEL),  # no flex capacity at the moment
    "slow_down": (Outcome.THROTTLED, Scope.ACCOUNT),
    "insufficient_quota": (Outcome.EXHAUSTED, Scope.ACCOUNT),
    "credit_balance_exhausted": (Outcome.EXHAUSTED, Scope.ACCOUNT),
    "organization_spend_limit_exceeded": (Outcome.EXHAUSTED, Scope.ACCOUNT),
    "organization_usage_limit_exceeded": (Outcome.EXHAUSTED, Scope.ACCOUNT),
    "billing_hard_limit_reached": (Outcome.EXHAUSTED, Scope.ACCOUNT),
    "billing_not_active": (Outcome.EXHAUSTED, Scope.ACCOUNT),
    "project_spend_limit_exceeded": (Outcome.EXHAUSTED, Scope.PROJECT),
    "invalid_api_key": (Outcome.CREDENTIAL_ERROR, Scope.KEY),
    "invalid_organization": (Outcome.CREDENTIAL_ERROR, Scope.KEY),
    "mismatched_organization": (Outcome.CREDENTIAL_ERROR, Scope.KEY),
    "mismatched_project": (Outcome.CREDENTIAL_ERROR, Scope.KEY),
    "insufficient_permissions": (Outcome.CREDENTIAL_ERROR, Scope.CALL),
    "ip_not_authorized": (Outcome.CREDENTIAL_ERROR, Scope.ACCOUNT),
    "unsupported_country_region_territory": (Outcome.CREDENTIAL_ERROR, Scope.ACCOUNT),
    "account_deactivated": (Outcome.CREDENTIAL_ERROR, Scope.ACCOUNT),
    "model_not_found": (Outcome.CONFIG_ERROR, Scope.MODEL),
    "DeploymentNotFound": (Outcome.CONFIG_ERROR, Scope.MODEL),  # Azure OpenAI
    "context_length_exceeded": (Outcome.CONFIG_ERROR, Scope.CALL),
    "server_error": (Outcome.PROVIDER_ERROR, Scope.MODEL),
    "server_is_overloaded": (Outcome.PROVIDER_ERROR, Scope.MODEL),
    "vector_store_timeout": (Outcome.PROVIDER_ERROR, Scope.CALL),
    "data_residency_mismatch": (Outcome.CONFIG_ERROR, Scope.PROJECT),
}

_BY_TYPE: dict[str, _Verdict] = {
    "insufficient_quota": (Outcome.EXHAUSTED, Scope.ACCOUNT),
    "rate_limit_error": (Outcome.THROTTLED, Scope.MODEL),
    "authentication_error": (Outcome.CREDENTIAL_ERROR, Scope.KEY),
    "server_error": (Outcome.PROVIDER_ERROR, Scope.MODEL),
    "service_unavailable_error": (Outcome.PROVIDER_ERROR, Scope.MODEL),
}

_BY_STATUS: dict[int, _Verdict] = {
    401: (Outcome.CREDENTIAL_ERROR, Scope.KEY),
    403: (Outcome.CREDENTIAL_ERROR, Scope.CALL),  # what this key may not do; it still works for other calls
    408: (Outcome.TIMEOUT, Scope.MODEL),
    429: (Outcome.THROTTLED, Scope.MODEL),
    502: (Outcome.PROVIDER_ERROR, Scope.UPSTREAM),
    504: (Outcome.TIMEOUT, Scope.MODEL),
}

_PARAMETER_CODES = frozenset(
    {"unsupported_parameter", "unsupported_value", "unknown_parameter", "invalid_value", "invalid_type"}
)
POLICY_REFUSALS = frozenset(
    {
        "content_policy_violation",
        "content_filter",
        "moderation_blocked",
        "invalid_prompt",
        "bio_policy",
        "cyber_policy",
        "image_content_policy_violation",
    }
)
"""Codes by which the upstream declines to answer this content: an answer, which no retry would change."""

_IMAGE_CODE = re.compile(r"(^|_)image(_|$)")  # of the Responses API: the caller's image cannot be used

MAX_RETRY_AFTER_SECONDS = 86_400.0
"""Longer waits are cut to this, so that one odd header cannot hold a breaker open for good."""

_BOUNDED_CODE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_TRY_AGAIN = re.compile(r"try again in ((?:[0-9.]+(?:ms|h|m|s))+)", re.IGNORECASE)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s)")
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class UpstreamError(msgspec.Struct, gc=False):
    """OpenAI's error object, as far as it is read; every member may be missing or null."""

    code: str | int | None = None
    type: str | None = None
    param: str | None = None
    message: str | None = None


class _ErrorBody(msgspec.Struct, gc=False):
    error: UpstreamError | str | None = None


_decode_error_body = msgspec.json.Decoder(_ErrorBody).decode
_decode_bare_error = msgspec.json.Decoder(UpstreamError).decode
_NO_ERROR = UpstreamError()


def classify_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    edited: Container[str] = (),
    at_unix: float | None = None,
) -> Failure | None:
    """Return why a response is a failure; None for an answer: a 2xx or 3xx, or a refusal by content policy.

    `headers` has lower-case names or ignores case. `edited` names the request members that Sluice set: if the
    upstream objects to one of them, the fault is the route's or the arm's, not the caller's. `at_unix` is only needed
    for a `Retry-After` with a date in a response that has no `Date` itself. For a 2xx, see `answer.read_answer`.
    """
    if status < 400:
        return None
    return classify_error(
        read_error(body),
        status=status,
        edited=edited,
        retry_after_seconds=retry_after_seconds(headers, at_unix),
        should_retry={"true": True, "false": False}.get(headers.get("x-should-retry", "")),
    )


def classify_error(
    error: UpstreamError,
    *,
    status: int | None = None,
    edited: Container[str] = (),
    retry_after_seconds: float | None = None,
    should_retry: bool | None = None,
) -> Failure | None:
    """Return the failure that an error object stands for, in a response or inside a stream; None for an answer."""
    code = _bounded(error.code)
    if code in POLICY_REFUSALS:
        return None
    outcome, scope = _verdict(code, error, status, edited)
    if retry_after_seconds is None and outcome is Outcome.THROTTLED and error.message:
        retry_after_seconds = _wait_in_message(error.message)
    return Failure(
        outcome=outcome,
        code=code or _bounded(error.type),
        status=status,
        scope=scope,
        retry_after_seconds=retry_after_seconds,
        should_retry=should_retry,
    )


def _verdict(code: str | None, error: UpstreamError, status: int | None, edited: Container[str]) -> _Verdict:
    found = _BY_CODE.get(code or "")
    if found is not None:
        return found
    if (code in _PARAMETER_CODES or status == 400) and error.param is not None and _root(error.param) in edited:
        return Outcome.CONFIG_ERROR, Scope.CALL
    if code in _PARAMETER_CODES or _IMAGE_CODE.search(code or ""):
        return Outcome.CLIENT_ERROR, Scope.CALL
    found = _BY_TYPE.get(error.type or "")
    if found is not None:
        return found
    return _verdict_by_status(status)


def _verdict_by_status(status: int | None) -> _Verdict:
    if status is None:  # an error inside a 200 whose code says nothing
        return Outcome.PROVIDER_ERROR, Scope.MODEL
    found = _BY_STATUS.get(status)
    if found is not None:
        return found
    return (Outcome.PROVIDER_ERROR, Scope.MODEL) if status >= 500 else (Outcome.CLIENT_ERROR, Scope.CALL)


def _root(param: str) -> str:
    """Return the top-level member that a path such as `messages[0].content` or `text.format` names."""
    return re.split(r"[.\[]", param, maxsplit=1)[0]


def read_error(body: bytes) -> UpstreamError:
    """Return the error object of a response body, empty if there is none that can be read."""
    try:
        error = _decode_error_body(body).error
        if isinstance(error, UpstreamError):
            return error
        return _decode_bare_error(body) if error is None else UpstreamError(message=error)
    except UNREADABLE:
        return _NO_ERROR


def _bounded(code: str | int | None) -> str | None:
    """Return a code that may become a metric's label: short and plain, else None."""
    text = str(code) if code is not None else ""
    return text if _BOUNDED_CODE.fullmatch(text) else None


def retry_after_seconds(headers: Mapping[str, str], at_unix: float | None = None) -> float | None:
    """Return how long the upstream asks to wait: `retry-after-ms`, else `retry-after` in seconds or as a date.

    A date counts from the response's own `Date`, so that a skewed clock does no harm, else from `at_unix`.
    Values that make no sense count as absent; the result lies within 0 and a day.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER_SECONDS)
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = _number(text)
    if seconds is None:
        until, since = _http_date(text), _http_date(headers.get("date"))
        start = since if since is not None else at_unix
        if until is None or start is None:
            return None
        seconds = max(0.0, until - start)
    return min(seconds, MAX_RETRY_AFTER_SECONDS)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else -1.0
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _http_date(text: str | None) -> float | None:
    try:
        parsed = datetime.strptime((text or "").strip(), "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
    except ValueError:
        return None
    return parsed.timestamp()


def _wait_in_message(message: str) -> float | None:
    """Return the wait that OpenAI writes into the message of a 429 ("Please try again in 1.2s")."""
    found = _TRY_AGAIN.search(message)
    return duration_seconds(found[1]) if found else None


def duration_seconds(text: str) -> float | None:
    """Return the seconds of a Go-like duration such as `6m0s`, `12ms` or `23h18m29.144s`; None if it is none."""
    total, position = 0.0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            return None
        total += float(part[1]) * _UNIT_SECONDS[part[2]]
        position = part.end()
    return min(total, MAX_RETRY_AFTER_SECONDS) if text and position == len(text) else None


TRUNCATED = Failure(outcome=Outcome.TRUNCATED, code="truncated", scope=Scope.MODEL)
"""A stream that ended before its terminal event."""
