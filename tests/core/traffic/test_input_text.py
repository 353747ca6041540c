"""Which text of a request is counted, and what comes on top of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.modelroute import Endpoint
from sluice_core.input_text import input_text
from sluice_core.limits.estimate import Estimator
from sluice_core.request import RequestFacts

CHAT, RESPONSES = Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES
PHOTO = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}
TOOL = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("endpoint", "body", "pieces", "tokens"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hi"}]}, ["user", "hi"], 6),
        (CHAT, {"messages": [{"role": "user", "name": "ann", "content": "hi"}]}, ["user", "ann", "hi"], 7),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, PHOTO]}]}, ["user", "hi"], 6),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}], "tools": [TOOL]},
            ["weather", '{"city":"Ulm"}', "assistant", '[{"type":"function","function":{"name":"weather"}}]'],
            6,
        ),
        (RESPONSES, {"input": "hi", "instructions": "be brief"}, ["be brief", "hi"], 9),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
            ["user", "hi"],
            6,
        ),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": "rain"}]}, ["rain"], 6),
        (Endpoint.COMPLETIONS, {"prompt": ["a", "b"]}, ["a", "b"], 0),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2, 3]}, [], 3),
        (Endpoint.EMBEDDINGS, {"input": [[1, 2], [3]]}, [], 3),
        (Endpoint.EMBEDDINGS, {"input": "a"}, ["a"], 0),
    ],
)
def test_the_text_of_an_input_is_found(endpoint: Endpoint, body: Any, pieces: list[str], tokens: int) -> None:
    """Text, names, arguments and schemas; never the base64 of an image."""
    found = input_text(endpoint, json.dumps(body, separators=(",", ":")).encode())
    assert found is not None
    assert (list(found.pieces), found.tokens) == (pieces, tokens)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"messages":' + b"[" * 100_000, b'{"messages": "\xff"}'])
def test_what_is_no_request_has_no_text(body: bytes) -> None:
    """It is estimated, and never an error."""
    assert input_text(CHAT, body) is None


def test_what_is_not_charged_by_text_has_none() -> None:
    """Speech and pictures have rules of their own."""
    assert input_text(Endpoint.AUDIO, b'{"input": "hi"}') is None


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "name", "content", "tool_calls", "function", "text"]), inner, max_size=3
        )
    ),
)


@given(st.sampled_from([CHAT, RESPONSES, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS]), _json, _json)
def test_any_json_is_survived(endpoint: Endpoint, turns: Any, tools: Any) -> None:
    """Whatever a caller sends, there is a count or none."""
    body = {"messages": turns, "input": turns, "prompt": turns, "instructions": tools, "tools": tools}
    found = input_text(endpoint, json.dumps(body).encode())
    assert found is None or found.tokens >= 0


def test_counted_tokens_stand_instead_of_characters() -> None:
    """The estimate of an input is the count where there is one, with the media on top."""
    facts = RequestFacts(endpoint=CHAT, model="m", text_characters=4000, text_tokens=123, images=("low",))
    assert Estimator().estimate(facts, "m", 10).input_tokens == 123 + 85
