"""Changing a body: what policy names changes, everything else stays byte for byte."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.modelroute import Endpoint
from sluice_core.edits import Edits, rewrite
from sluice_core.request import peek
from sluice_core.shrink import shrink

CHAT, RESPONSES, COMPLETIONS = Endpoint.CHAT_COMPLETIONS, Endpoint.RESPONSES, Endpoint.COMPLETIONS
SYSTEM = {"role": "system", "content": "old"}
USER = {"role": "user", "content": "hi"}
USAGE_ON = {"include_usage": True}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
bodies = st.fixed_dictionaries(
    {"model": st.just("a"), "stream": st.booleans()},
    optional={
        "messages": st.lists(st.sampled_from([SYSTEM, USER]), max_size=4),
        "temperature": st.floats(0, 2),
        "max_tokens": st.integers(0, 100),
        "stream_options": st.sampled_from([None, {}, USAGE_ON, {"include_usage": False, "x": 1}]),
        "metadata": json_values,
    },
)


def edit(endpoint: Endpoint, body: bytes, **edits: Any) -> bytes:
    return rewrite(endpoint, body, peek(endpoint, body), Edits(**edits))


def edited(endpoint: Endpoint, members: dict[str, Any], **edits: Any) -> Any:
    return json.loads(edit(endpoint, json.dumps(members).encode(), **edits))


@pytest.mark.parametrize(
    ("endpoint", "members", "edits"),
    [
        (CHAT, {"model": "a"}, {}),
        (CHAT, {"model": "a"}, {"model": "a"}),
        (CHAT, {"model": "a", "temperature": 0.5}, {"overrides": {"temperature": 0.5}}),
        (CHAT, {"model": "a", "max_tokens": 5}, {"max_output_tokens": 10}),
        (CHAT, {"model": "a"}, {"include_usage": True}),  # no stream
        (CHAT, {"model": "a", "stream": True, "stream_options": USAGE_ON}, {"include_usage": True}),
        (RESPONSES, {"model": "a", "stream": True}, {"include_usage": True}),  # an unknown parameter there
        (RESPONSES, {"model": "a", "instructions": "i"}, {"instructions": "i"}),
        (COMPLETIONS, {"model": "a", "prompt": "p"}, {"instructions": "i"}),
        (CHAT, {"model": "a", "messages": "wrong"}, {"instructions": "i"}),
        (CHAT, {"model": "a", "messages": 5}, {"instructions": "i"}),
        (CHAT, {"model": "a", "messages": {"role": "user"}}, {"instructions": "i"}),
        (CHAT, {"model": "a"}, {"overrides": {"model": "b", "stream": True, "messages": [], "stream_options": {}}}),
        (Endpoint.EMBEDDINGS, {"model": "a"}, {"max_output_tokens": 10}),
    ],
)
def test_a_body_in_which_nothing_changes_is_the_same_object(
    endpoint: Endpoint, members: dict[str, Any], edits: dict[str, Any]
) -> None:
    """No copy, no reformatting: the bytes that came are the bytes that go."""
    body = json.dumps(members, indent=1).encode()
    assert edit(endpoint, body, **edits) is body


def test_a_member_that_is_only_added_leaves_all_others_where_they_were() -> None:
    """Spaces, order, escapes and duplicate names in the rest survive."""
    body = b' { "model" : "a", "stream":true, "x":1.0, "x":2e5, "m":"\\u00e9\xc3\xa9" }\r\n'
    expected = b' { "model" : "a", "stream":true, "x":1.0, "x":2e5, "m":"\\u00e9\xc3\xa9" ,"stream_options":'
    assert edit(CHAT, body, include_usage=True) == expected + b'{"include_usage":true}}'


@given(bodies, st.booleans(), st.none() | st.text(max_size=5), st.none() | st.integers(1, 50), st.booleans())
def test_what_policy_does_not_name_stays(
    members: dict[str, Any], usage: bool, instructions: str | None, cap: int | None, ascii_only: bool
) -> None:
    """Every other member keeps its value to the byte, whatever is edited."""
    body = json.dumps(members, ensure_ascii=ascii_only).encode()
    result = edit(CHAT, body, model="b", include_usage=usage, instructions=instructions, max_output_tokens=cap)
    after = json.loads(result)
    assert after["model"] == "b"
    for name in ("temperature", "metadata"):
        if name in members:
            assert json.dumps(members[name], ensure_ascii=ascii_only).encode() in result
        else:
            assert name not in after
    if usage and members["stream"]:
        assert after["stream_options"]["include_usage"] is True
    else:
        assert after.get("stream_options") == members.get("stream_options")
    if cap is not None:
        assert min(after.get("max_tokens", cap), after.get("max_completion_tokens", cap)) <= cap
        assert len({"max_tokens", "max_completion_tokens"} & after.keys()) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([USER], [{"role": "system", "content": "new"}, USER]),
        ([SYSTEM, USER], [{"role": "system", "content": "new"}, USER]),
        ([SYSTEM, SYSTEM, USER, SYSTEM], [{"role": "system", "content": "new"}, USER, SYSTEM]),
        ([{"role": "developer", "content": "old"}, USER], [{"role": "developer", "content": "new"}, USER]),
        ([], [{"role": "system", "content": "new"}]),
    ],
)
def test_instructions_replace_the_leading_system_text_of_a_chat(before: list[Any], after: list[Any]) -> None:
    """One message, in the role that the call itself used; later messages are the conversation and stay."""
    assert edited(CHAT, {"model": "a", "messages": before}, instructions="new")["messages"] == after


_space = st.sampled_from(["", " ", "\n\t ", "\r\n"])
_turns = st.sampled_from(
    [
        '{"role":"system","content":"a, ]b"}',
        '{"content":"[\\"","role" : "developer"}',
        '{"role":"system","content":"%s"}' % ("long é " * 1500),
        '{"role":"user","content":"x"}',
        '{"content":"é","role":"user"}',
        '{ "role" : "assistant", "content":"%s"}' % ("long é " * 1500),
        '{"role":"user","content":[{"type":"text","text":"]"}]}',
        "5",
        '"text"',
        "null",
    ]
)


@given(st.lists(_turns, max_size=7), st.lists(_space, min_size=16, max_size=16), st.sampled_from(["new", ""]))
def test_instructions_lead_a_chat_however_it_is_written(turns: list[str], spaces: list[str], text: str) -> None:
    """Only the leading texts change, whatever stands between messages; all others stay byte for byte."""
    gaps = iter(spaces)
    joined = "".join(f"{',' if at else ''}{next(gaps)}{turn}{next(gaps)}" for at, turn in enumerate(turns))
    body = f'{{"messages":{next(gaps)}[{joined or next(gaps)}],"model":"a"}}'.encode()
    parsed = [json.loads(turn) for turn in turns]
    roles = [turn.get("role", "") if isinstance(turn, dict) else None for turn in parsed]
    leading = next((at for at, role in enumerate(roles) if role not in ("system", "developer")), len(turns))
    after = rewrite(CHAT, body, peek(CHAT, body), Edits(instructions=text))
    if leading < len(turns) and roles[leading] is None:
        assert after == body, "no list of messages: for the upstream to judge"
        return
    role = "developer" if "developer" in roles[:leading] else "system"
    lead = [{"role": role, "content": text}] if text else []
    assert json.loads(after) == {"messages": lead + parsed[leading:], "model": "a"}
    for turn in turns[leading:]:
        assert turn.encode() in after


def test_empty_instructions_remove_the_system_text() -> None:
    """An arm may have no prompt at all."""
    assert edited(CHAT, {"messages": [SYSTEM, USER]}, instructions="")["messages"] == [USER]


def test_instructions_of_responses_are_a_member() -> None:
    """The input is left alone."""
    members = {"model": "a", "input": [SYSTEM, USER], "instructions": "old"}
    assert edited(RESPONSES, members, instructions="new") == {**members, "instructions": "new"}


@pytest.mark.parametrize(
    ("endpoint", "members", "edits", "expected"),
    [
        (CHAT, {"max_tokens": 50}, {"max_output_tokens": 20}, {"max_tokens": 20}),
        (CHAT, {}, {"max_output_tokens": 20}, {"max_completion_tokens": 20}),
        (COMPLETIONS, {}, {"max_output_tokens": 20}, {"max_tokens": 20}),
        (RESPONSES, {}, {"max_output_tokens": 20}, {"max_output_tokens": 20}),
        (CHAT, {"max_tokens": 50}, {"overrides": {"max_completion_tokens": 9}}, {"max_completion_tokens": 9}),
        (
            CHAT,
            {"max_tokens": 5},
            {"overrides": {"max_completion_tokens": 90}, "max_output_tokens": 20},
            {"max_completion_tokens": 20},
        ),
        (CHAT, {"top_p": 1}, {"overrides": {"top_p": None, "seed": 3}}, {"top_p": None, "seed": 3}),
    ],
)
def test_parameters_and_caps(
    endpoint: Endpoint, members: dict[str, Any], edits: dict[str, Any], expected: dict[str, Any]
) -> None:
    """A cap only lowers; there is never more than one name for the output limit in a body."""
    assert edited(endpoint, {"model": "a", **members}, **edits) == {"model": "a", **expected}


def test_shrinking_a_very_long_conversation_takes_no_longer_than_reading_it() -> None:
    """The time grows with the length, not with its square."""
    body = json.dumps({"messages": [USER] * 100_000}).encode()
    began = time.process_time()
    smaller = shrink(CHAT, body)
    assert time.process_time() - began < 5.0
    assert smaller is not None
    assert len(json.loads(smaller)["messages"]) == 50_000


def test_shrinking_drops_the_oldest_turns_and_keeps_pairs_together() -> None:
    """System text and the latest turns stay, beginning with a user's message; other members stay byte for byte."""
    turns = [
        {"role": "user", "content": "one " * 50},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]},
        {"role": "tool", "tool_call_id": "t", "content": "result"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "fine"},
        {"role": "user", "content": "three"},
    ]
    body = json.dumps({"model": "a", "messages": [SYSTEM, *turns], "x": 1.50}).encode()
    smaller = shrink(CHAT, body)
    assert smaller is not None
    assert json.loads(smaller)["messages"] == [SYSTEM, *turns[3:]]
    again = shrink(CHAT, smaller)
    assert again is not None
    assert json.loads(again)["messages"] == [SYSTEM, turns[5]]
    assert shrink(CHAT, again) is None


@pytest.mark.parametrize(
    ("endpoint", "members", "after"),
    [
        (RESPONSES, {"input": "x"}, {"input": "x", "truncation": "auto"}),
        (RESPONSES, {"input": "x", "truncation": "disabled"}, {"input": "x", "truncation": "auto"}),
        (RESPONSES, {"input": "x", "truncation": "auto"}, None),
        (CHAT, {"messages": [USER]}, None),
        (CHAT, {"messages": 5}, None),
        (Endpoint.EMBEDDINGS, {"input": "x"}, None),
    ],
)
def test_what_cannot_shrink_is_left(endpoint: Endpoint, members: dict[str, Any], after: dict[str, Any] | None) -> None:
    """The Responses API truncates by itself when asked; where nothing can be left out there is no second try."""
    smaller = shrink(endpoint, json.dumps(members).encode())
    assert (json.loads(smaller) if smaller is not None else None) == after
