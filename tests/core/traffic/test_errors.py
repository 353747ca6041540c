"""Sluice's own refusals, as an application sees them through the official SDK."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest

from sluice_core.api.modelroute import Endpoint
from sluice_core.errors import RefusalCode, refuse


@pytest.mark.parametrize("code", list(RefusalCode))
def test_the_sdk_understands_every_refusal(code: RefusalCode) -> None:
    """Each code has a status, all four keys of OpenAI's error object, and is recognisable as Sluice's (P32)."""
    refusal = refuse(code, "why", policy="team/openai/chat", param="model")
    error = json.loads(refusal.body())["error"]
    assert error == {"message": "why", "type": "sluice_error", "param": "model", "code": code.value}
    assert refusal.headers()["x-sluice-decision"] == f'refused; code={code.value}; policy="team/openai/chat"'


@pytest.mark.parametrize(
    ("code", "kind", "attempts"),
    [
        (RefusalCode.RATE_LIMIT_EXCEEDED, openai.RateLimitError, 3),
        (RefusalCode.BUDGET_EXCEEDED, openai.RateLimitError, 1),
        (RefusalCode.CIRCUIT_OPEN, openai.InternalServerError, 3),
        (RefusalCode.DEADLINE_EXCEEDED, openai.InternalServerError, 1),
        (RefusalCode.NO_ROUTE, openai.NotFoundError, 1),
        (RefusalCode.INVALID_REQUEST, openai.BadRequestError, 1),
    ],
)
def test_the_sdk_retries_where_waiting_can_help_and_nowhere_else(
    code: RefusalCode, kind: type[openai.APIStatusError], attempts: int
) -> None:
    """The SDK retries any 429 and 5xx unless told not to; a spent budget is told so (P14, P15)."""
    refusal = refuse(code, "why", retry_after_seconds=0.001)
    seen = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(refusal.status, headers=refusal.headers(), content=refusal.body())

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        client = openai.OpenAI(api_key="k", base_url="http://sluice/v1", http_client=http, max_retries=2)
        with pytest.raises(kind) as caught:
            client.models.list()
    assert len(seen) == attempts
    assert caught.value.code == code.value
    assert caught.value.type == "sluice_error"


@pytest.mark.parametrize(
    ("seconds", "header", "milliseconds"),
    [(0.2, "1", "200"), (30.0, "30", "30000"), (-1.0, "1", "1000"), (0.0, "1", "1000")],
)
def test_retry_after_is_never_too_short(seconds: float, header: str, milliseconds: str) -> None:
    """Whole seconds are rounded up, so that who obeys does not come too early."""
    headers = refuse(RefusalCode.RATE_LIMIT_EXCEEDED, "m", retry_after_seconds=seconds).headers()
    assert (headers["retry-after"], headers["retry-after-ms"]) == (header, milliseconds)


def test_a_policy_name_cannot_break_the_header() -> None:
    """Line ends and quotes in a name do not reach the header."""
    decision = refuse(RefusalCode.NO_ROUTE, "m", policy='a"b\r\nset-cookie: x').decision()
    assert decision == 'refused; code=no_route; policy="a_b__set-cookie: x"'


def test_an_error_in_a_stream_has_the_shape_of_the_api() -> None:
    """Chat streams carry an error object, Responses streams an `error` event with its number (P16)."""
    refusal = refuse(RefusalCode.STREAM_INTERRUPTED, "cut")
    assert refusal.event(Endpoint.CHAT_COMPLETIONS) == b"data: " + refusal.body() + b"\n\n"
    name, data = refusal.event(Endpoint.RESPONSES, 8).rstrip().split(b"\n")
    assert name == b"event: error"
    assert json.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "code": "stream_interrupted",
        "message": "cut",
        "param": None,
        "sequence_number": 8,
    }
