"""What Sluice itself answers when it refuses a call, in OpenAI's error shape.

An application must be able to tell Sluice's refusals from OpenAI's own, and still handle them with the code that it
already has. So `code` keeps OpenAI's word where OpenAI has one for the same thing (an application that waits on
`rate_limit_exceeded` goes on working), `type` is always `sluice_error`, and the header `x-sluice-decision` names the
code and the policy that decided.

| code | status | waiting helps | when |
|---|---|---|---|
| rate_limit_exceeded | 429 | yes | a limit on requests or tokens per minute, or on calls in flight |
| daily_limit_exceeded | 429 | no | a limit on requests per day |
| budget_exceeded | 429 | no | a budget is spent |
| request_too_large_for_limit | 429 | no | the call alone is larger than a limit, so that it can never be admitted |
| queue_full | 429 | yes | the waiting line is full, or the wait would be longer than allowed |
| circuit_open | 503 | yes | every target's breaker is open |
| maintenance | 503 | no | the level of service in force is Maintenance |
| degraded | 503 | no | the level of service in force has no answer for the call |
| not_configured | 503 | yes | no policy has been read yet |
| upstream_unreachable | 502 | yes | no connection to the upstream, or it was lost before an answer |
| upstream_invalid_response | 502 | yes | what the upstream sent is no HTTP answer |
| deadline_exceeded | 504 | no | the time for the whole call is used up |
| stream_interrupted | 502 | no | the upstream's stream broke off after content had been sent |
| no_route | 404 | no | no rule matches, and there is no default upstream |
| no_credential | 503 | no | the upstream has no API key |
| input_too_long | 400 | no | the input is longer than the rule allows |
| invalid_request | 400 | no | the body is no JSON object, or a field is wrong |
| internal_error | 500 | yes | the sidecar itself failed |
| body_too_large | 413 | no | the body is larger than the sidecar accepts |
"""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec

from sluice_core.api.base import Value
from sluice_core.api.modelroute import Endpoint

ERROR_TYPE = "sluice_error"
DECISION_HEADER = "x-sluice-decision"


class RefusalCode(StrEnum):
    """Why Sluice refuses a call; a closed set."""

    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    DAILY_LIMIT_EXCEEDED = "daily_limit_exceeded"
    BUDGET_EXCEEDED = "budget_exceeded"
    REQUEST_TOO_LARGE_FOR_LIMIT = "request_too_large_for_limit"
    QUEUE_FULL = "queue_full"
    CIRCUIT_OPEN = "circuit_open"
    MAINTENANCE = "maintenance"
    DEGRADED = "degraded"
    NOT_CONFIGURED = "not_configured"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_INVALID_RESPONSE = "upstream_invalid_response"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    STREAM_INTERRUPTED = "stream_interrupted"
    NO_ROUTE = "no_route"
    NO_CREDENTIAL = "no_credential"
    INPUT_TOO_LONG = "input_too_long"
    INVALID_REQUEST = "invalid_request"
    BODY_TOO_LARGE = "body_too_large"
    INTERNAL_ERROR = "internal_error"


_STATUS_AND_WAITING: dict[RefusalCode, tuple[int, bool]] = {
    RefusalCode.RATE_LIMIT_EXCEEDED: (429, True),
    RefusalCode.DAILY_LIMIT_EXCEEDED: (429, False),
    RefusalCode.BUDGET_EXCEEDED: (429, False),
    RefusalCode.REQUEST_TOO_LARGE_FOR_LIMIT: (429, False),
    RefusalCode.QUEUE_FULL: (429, True),
    RefusalCode.CIRCUIT_OPEN: (503, True),
    RefusalCode.MAINTENANCE: (503, False),
    RefusalCode.DEGRADED: (503, False),
    RefusalCode.NOT_CONFIGURED: (503, True),
    RefusalCode.UPSTREAM_UNREACHABLE: (502, True),
    RefusalCode.UPSTREAM_INVALID_RESPONSE: (502, True),
    RefusalCode.DEADLINE_EXCEEDED: (504, False),
    RefusalCode.STREAM_INTERRUPTED: (502, False),
    RefusalCode.NO_ROUTE: (404, False),
    RefusalCode.NO_CREDENTIAL: (503, False),
    RefusalCode.INPUT_TOO_LONG: (400, False),
    RefusalCode.INVALID_REQUEST: (400, False),
    RefusalCode.BODY_TOO_LARGE: (413, False),
    RefusalCode.INTERNAL_ERROR: (500, True),
}


class Refusal(Value, frozen=True, kw_only=True):
    """An answer that Sluice gives itself. `policy` names the resource that decided, such as `team/openai/chat`."""

    status: int
    code: RefusalCode
    message: str
    type: str = ERROR_TYPE
    param: str | None = None
    policy: str = ""
    retry_after_seconds: float | None = None
    should_retry: bool = True

    def body(self) -> bytes:
        """Return the JSON body; all four keys of OpenAI's error object are always there."""
        return _encode({"error": self._error()})

    def headers(self) -> dict[str, str]:
        """Return the headers: `Retry-After` is rounded up, so that a client that obeys it never comes too early."""
        headers = {"content-type": "application/json", DECISION_HEADER: self.decision()}
        if self.retry_after_seconds is not None:
            # Where nothing is known of the wait but that it is short, a second keeps clients out of a tight loop.
            wait = self.retry_after_seconds if self.retry_after_seconds > 0 else 1.0
            headers["retry-after"] = str(math.ceil(wait))
            headers["retry-after-ms"] = str(math.ceil(wait * 1000))
        if not self.should_retry:  # the SDKs retry any 429 and 5xx unless they are told not to
            headers["x-should-retry"] = "false"
        return headers

    def decision(self) -> str:
        """Return the value of the `x-sluice-decision` header: the code and the policy that decided."""
        if not self.policy:
            return f"refused; code={self.code}"
        policy = "".join(char if " " <= char <= "~" and char not in '"\\' else "_" for char in self.policy)
        return f'refused; code={self.code}; policy="{policy}"'

    def event(self, endpoint: Endpoint, sequence_number: int = 0) -> bytes:
        """Return the error as an event for a stream that has begun, in the shape of the endpoint's own streams."""
        if endpoint is Endpoint.RESPONSES:
            fields = {"type": "error", "code": self.code, "message": self.message, "param": self.param}
            data = _encode({**fields, "sequence_number": sequence_number})
            return b"event: error\ndata: " + data + b"\n\n"
        return b"data: " + self.body() + b"\n\n"

    def _error(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


_encode = msgspec.json.Encoder().encode


def refuse(
    code: RefusalCode,
    message: str,
    *,
    policy: str = "",
    param: str | None = None,
    retry_after_seconds: float | None = None,
) -> Refusal:
    """Return the refusal for a code, with the status and the retry hint that the table above gives."""
    status, waiting_helps = _STATUS_AND_WAITING[code]
    return Refusal(
        status=status,
        code=code,
        message=message,
        param=param,
        policy=policy,
        retry_after_seconds=retry_after_seconds,
        should_retry=waiting_helps,
    )


class BadRequestError(ValueError):
    """The caller's body is one that no policy can be applied to. The message holds no content of the body."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def refusal(self) -> Refusal:
        """Return the answer for the caller."""
        return refuse(RefusalCode.INVALID_REQUEST, self.message, param=self.param)
