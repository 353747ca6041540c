"""What complete answers say about themselves, for every endpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.answer import read_answer, read_event, read_usage
from sluice_core.api.modelroute import Endpoint
from sluice_core.records import Outcome
from sluice_core.usage import Usage

CHAT, RESPONSES = Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES


def encode(members: Any) -> bytes:
    return json.dumps(members).encode()


@pytest.mark.parametrize(
    ("endpoint", "reported", "usage"),
    [
        (
            CHAT,
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 20, "audio_tokens": 5},
                "completion_tokens_details": {
                    "reasoning_tokens": 30,
                    "audio_tokens": 4,
                    "rejected_prediction_tokens": 9,
                },
            },
            Usage(
                input_tokens=100,
                output_tokens=50,
                cached_input_tokens=64,
                cache_write_tokens=20,
                reasoning_tokens=30,
                audio_input_tokens=5,
                audio_output_tokens=4,
            ),
        ),
        (
            RESPONSES,
            {
                "input_tokens": 36,
                "input_tokens_details": {"cached_tokens": 4},
                "output_tokens": 87,
                "output_tokens_details": {"reasoning_tokens": 64},
                "total_tokens": 123,
            },
            Usage(input_tokens=36, output_tokens=87, cached_input_tokens=4, reasoning_tokens=64),
        ),
        (Endpoint.COMPLETIONS, {"prompt_tokens": 5, "completion_tokens": 7}, Usage(input_tokens=5, output_tokens=7)),
        (Endpoint.EMBEDDINGS, {"prompt_tokens": 8, "total_tokens": 8}, Usage(input_tokens=8)),
        (
            Endpoint.IMAGES,
            {
                "input_tokens": 50,
                "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                "output_tokens": 1000,
                "output_tokens_details": {"image_tokens": 1000, "text_tokens": 0},
            },
            Usage(input_tokens=50, image_input_tokens=40, output_tokens=1000, image_output_tokens=1000),
        ),
        (
            Endpoint.AUDIO,
            {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
                "output_tokens": 45,
            },
            Usage(input_tokens=14, audio_input_tokens=14, output_tokens=45),
        ),
        (Endpoint.AUDIO, {"type": "duration", "seconds": 9.5}, Usage(audio_input_milliseconds=9500)),
        (
            Endpoint.REALTIME,
            {
                "input_tokens": 30,
                "output_tokens": 20,
                "input_token_details": {"text_tokens": 10, "audio_tokens": 20, "cached_tokens": 5},
                "output_token_details": {"text_tokens": 5, "audio_tokens": 15},
            },
            Usage(
                input_tokens=30,
                output_tokens=20,
                cached_input_tokens=5,
                audio_input_tokens=20,
                audio_output_tokens=15,
            ),
        ),
        (
            Endpoint.BATCHES,
            {"input_tokens": 900, "output_tokens": 300, "input_tokens_details": {"cached_tokens": 100}},
            Usage(input_tokens=900, output_tokens=300, cached_input_tokens=100),
        ),
        (Endpoint.MODERATIONS, None, None),
        (CHAT, {}, None),
        (CHAT, {"prompt_tokens": -4, "completion_tokens": 3, "prompt_tokens_details": None}, Usage(output_tokens=3)),
        (CHAT, "free", None),
    ],
)
def test_usage_of_every_endpoint_has_one_shape(endpoint: Endpoint, reported: Any, usage: Usage | None) -> None:
    """Each endpoint names its tokens differently; the ledger sees one shape, and None where nothing is said (P5)."""
    answer = read_answer(endpoint, 200, encode({"id": "x", "usage": reported}))
    assert answer.usage == usage
    assert answer.failure is None


def test_the_model_and_tier_served_are_told() -> None:
    """What is paid for is what was served, not what was asked for (P19)."""
    members = {"id": "c1", "model": "gpt-4.1-2025-04-14", "service_tier": "priority", "choices": []}
    answer = read_answer(CHAT, 200, encode(members))
    assert (answer.response_id, answer.served_model, answer.service_tier) == ("c1", "gpt-4.1-2025-04-14", "priority")


@pytest.mark.parametrize(
    ("endpoint", "members", "reason"),
    [
        (CHAT, {"choices": [{"finish_reason": "stop"}]}, "stop"),
        (CHAT, {"choices": [{"finish_reason": "stop"}, {"finish_reason": "content_filter"}]}, "content_filter"),
        (CHAT, {"choices": [{"finish_reason": "novel"}]}, "novel"),
        (CHAT, {"choices": []}, None),
        (RESPONSES, {"status": "completed"}, "stop"),
        (
            RESPONSES,
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "max_output_tokens",
        ),
        (RESPONSES, {"status": "queued"}, None),
    ],
)
def test_why_an_answer_ended(endpoint: Endpoint, members: dict[str, Any], reason: str | None) -> None:
    """Chat says so per choice, Responses by status."""
    assert read_answer(endpoint, 200, encode(members)).finish_reason == reason


@pytest.mark.parametrize(
    ("endpoint", "members", "outcome"),
    [
        (RESPONSES, {"status": "failed", "error": {"code": "server_error", "message": "m"}}, Outcome.PROVIDER_ERROR),
        (RESPONSES, {"status": "failed", "error": {"code": "rate_limit_exceeded"}}, Outcome.THROTTLED),
        (RESPONSES, {"status": "failed", "error": None}, Outcome.PROVIDER_ERROR),
        (RESPONSES, {"status": "failed", "error": {"code": "image_too_large"}}, Outcome.CLIENT_ERROR),
        (RESPONSES, {"status": "failed", "error": {"code": "bio_policy"}}, None),
        (RESPONSES, {"status": "completed", "error": None}, None),
        (RESPONSES, {"status": "incomplete"}, None),
        (CHAT, {"error": {"message": "upstream"}}, Outcome.PROVIDER_ERROR),
        (Endpoint.BATCHES, {"status": "failed", "errors": {}}, None),
        (Endpoint.OTHER, {"status": "failed", "error": {"code": "x"}}, None),
    ],
)
def test_a_failure_inside_a_200(endpoint: Endpoint, members: dict[str, Any], outcome: Outcome | None) -> None:
    """A failed response is a failure whatever its status line says; a failed batch is only news about the batch."""
    failure = read_answer(endpoint, 200, encode(members)).failure
    assert (failure.outcome if failure else None) == outcome


@pytest.mark.parametrize("text", [b"<html>busy</html>", b"", b'{"id":'])
def test_a_200_that_is_no_json_is_a_failure_where_json_is_the_only_answer(text: bytes) -> None:
    """A web page of some proxy is no completion; a transcript in plain text is one."""
    failure = read_answer(CHAT, 200, text).failure
    assert failure is not None
    assert failure.code == "invalid_response"
    assert read_answer(Endpoint.AUDIO, 200, text).failure is None


def test_usage_is_found_beside_members_of_an_unknown_shape() -> None:
    """A new kind of choice does not hide what is to be paid."""
    text = encode({"choices": {"new": 1}, "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    assert read_answer(CHAT, 200, text).usage == Usage(input_tokens=3, output_tokens=4)


def test_an_error_status_is_classified() -> None:
    """A 4xx or 5xx has its failure and no usage."""
    answer = read_answer(CHAT, 503, b"")
    assert answer.failure is not None
    assert answer.failure.outcome is Outcome.PROVIDER_ERROR


@given(st.binary(max_size=60), st.sampled_from(list(Endpoint)), st.sampled_from([200, 204, 400, 500]))
def test_no_answer_crashes(junk: bytes, endpoint: Endpoint, status: int) -> None:
    """Any bytes are read without a fault."""
    read_answer(endpoint, status, junk)
    read_usage(junk)


@pytest.mark.parametrize(
    ("endpoint", "event", "usage", "outcome"),
    [
        (
            Endpoint.REALTIME,
            {"type": "response.done", "response": {"status": "completed", "usage": {"input_tokens": 4}}},
            Usage(input_tokens=4),
            None,
        ),
        (
            RESPONSES,
            {"type": "response.completed", "response": {"id": "r", "usage": {"input_tokens": 4, "output_tokens": 2}}},
            Usage(input_tokens=4, output_tokens=2),
            None,
        ),
        (
            RESPONSES,
            {"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error"}}},
            None,
            Outcome.PROVIDER_ERROR,
        ),
    ],
)
def test_the_message_that_closes_a_response_on_a_websocket(
    endpoint: Endpoint, event: dict[str, Any], usage: Usage | None, outcome: Outcome | None
) -> None:
    """Usage and failure of each turn are in its closing event (P5)."""
    answer = read_event(endpoint, json.dumps(event))
    assert answer is not None
    assert answer.usage == usage
    assert (answer.failure.outcome if answer.failure else None) == outcome


@pytest.mark.parametrize(
    "message", ['{"type":"response.audio.delta","delta":"AA=="}', "{}", "", "[1]", '{"type":"response.done"}']
)
def test_other_messages_close_nothing(message: str) -> None:
    """Deltas and whatever else passes by settle no call."""
    assert read_event(Endpoint.REALTIME, message) is None
