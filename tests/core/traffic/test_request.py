"""What is read from a request, and what is refused."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_core.api.modelroute import Endpoint
from sluice_core.errors import BadRequestError
from sluice_core.request import endpoint_of, generates, peek

CHAT = Endpoint.CHAT_COMPLETIONS
DATA_URL = "data:image/png;base64," + "A" * 400_000
USER = [{"role": "user", "content": "hi"}]


def body(**members: Any) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("method", "path", "endpoint", "spends"),
    [
        ("POST", "/chat/completions", CHAT, True),
        ("GET", "/chat/completions/abc/messages", CHAT, False),
        ("POST", "/responses", Endpoint.RESPONSES, True),
        ("POST", "/responses/", Endpoint.RESPONSES, True),
        ("GET", "/responses", Endpoint.RESPONSES, False),
        ("POST", "/responses/resp_1/cancel", Endpoint.RESPONSES, False),
        ("POST", "/responses/input_tokens", Endpoint.RESPONSES, False),
        ("POST", "/completions", Endpoint.COMPLETIONS, True),
        ("POST", "/embeddings", Endpoint.EMBEDDINGS, True),
        ("POST", "/images/edits", Endpoint.IMAGES, True),
        ("POST", "/audio/transcriptions", Endpoint.AUDIO, True),
        ("POST", "/moderations", Endpoint.MODERATIONS, True),
        ("DELETE", "/files/f1", Endpoint.FILES, False),
        ("POST", "/uploads/u1/parts", Endpoint.FILES, False),
        ("POST", "/batches", Endpoint.BATCHES, False),
        ("GET", "/models/gpt-4.1", Endpoint.MODELS, False),
        ("GET", "/realtime", Endpoint.REALTIME, False),
        ("POST", "/vector_stores", Endpoint.OTHER, False),
        ("GET", "/", Endpoint.OTHER, False),
        ("GET", "", Endpoint.OTHER, False),
        ("POST", "/chat", Endpoint.OTHER, False),
    ],
)
def test_a_path_belongs_to_an_operation(method: str, path: str, endpoint: Endpoint, spends: bool) -> None:
    """Paths below an operation follow its rules; only those that generate are charged and edited."""
    assert endpoint_of(method, path) is endpoint
    assert generates(method, path) is spends


@pytest.mark.parametrize(
    ("endpoint", "members", "name", "limit"),
    [
        (CHAT, {"max_tokens": 5}, "max_tokens", 5),
        (CHAT, {"max_completion_tokens": 7}, "max_completion_tokens", 7),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, "max_completion_tokens", 7),
        (CHAT, {"max_tokens": None}, None, None),
        (CHAT, {"max_tokens": -1}, None, None),
        (Endpoint.COMPLETIONS, {"max_tokens": 5}, "max_tokens", 5),
        (Endpoint.RESPONSES, {"max_output_tokens": 9}, "max_output_tokens", 9),
        (Endpoint.RESPONSES, {"max_tokens": 9}, None, None),
    ],
)
def test_the_output_limit_has_a_name_of_its_own_on_each_endpoint(
    endpoint: Endpoint, members: dict[str, Any], name: str | None, limit: int | None
) -> None:
    """A missing limit is no error and no guess (P5, P6)."""
    facts = peek(endpoint, body(model="m", **members))
    assert (facts.output_limit_field, facts.max_output_tokens) == (name, limit)


def test_everything_that_policy_asks_for_is_read() -> None:
    """One body with all the fields, in one pass."""
    facts = peek(
        CHAT,
        body(
            model="gpt-4.1",
            stream=True,
            n=3,
            temperature=0,
            background=True,
            service_tier="flex",
            user="u",
            safety_identifier="s",
            prompt_cache_key="p",
            previous_response_id="resp_1",
            conversation={"id": "conv_1"},
            stream_options={"include_usage": True},
            messages=USER,
        ),
    )
    assert (facts.model, facts.stream, facts.n, facts.background) == ("gpt-4.1", True, 3, True)
    assert (facts.service_tier, facts.user, facts.safety_identifier) == ("flex", "u", "s")
    assert (facts.prompt_cache_key, facts.previous_response_id, facts.conversation) == ("p", "resp_1", "conv_1")
    assert facts.include_usage
    assert facts.usage_on_request
    assert facts.deterministic
    assert peek(CHAT, body(conversation="conv_2")).conversation == "conv_2"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"model": 5, "user": "u"}, (None, "u", False, 1)),
        ({"model": "m", "stream": "yes", "user": ["u"]}, ("m", None, False, 1)),
        ({"model": "m", "n": 1.5, "stream": True}, ("m", None, True, 1)),
        ({"model": None, "user": None, "n": 0}, (None, None, False, 1)),
        ({"model": "m", "stream_options": 7, "conversation": 8, "messages": 9}, ("m", None, False, 1)),
    ],
)
def test_a_field_of_a_wrong_type_is_absent(members: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """What the upstream will refuse anyway does not stop policy from reading the rest."""
    facts = peek(CHAT, body(**members))
    assert (facts.model, facts.user, facts.stream, facts.n) == expected


def test_of_members_with_the_same_name_the_last_counts() -> None:
    """As for every common JSON reader, so that policy sees the model that the upstream will run."""
    assert peek(CHAT, b'{"model":"cheap","model":"dear"}').model == "dear"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'"model"',
        b"{",
        b'{"model":"m"} x',
        b'{"model":"\xff"}',
        b'{"temperature":NaN}',
        b'{"x":' + b"[" * 100_000,
        b"\xff\xfe{}",
        b"model=m",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(text: bytes) -> None:
    """The refusal is a 400 in OpenAI's shape and quotes nothing of the body."""
    with pytest.raises(BadRequestError) as caught:
        peek(CHAT, text)
    refusal = caught.value.refusal()
    assert refusal.status == 400
    assert b"model=m" not in refusal.body()


@pytest.mark.parametrize(
    ("endpoint", "part", "images", "audio_bytes", "file_bytes"),
    [
        (CHAT, {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}}, ("low",), 0, 0),
        (CHAT, {"type": "image_url", "image_url": {"url": DATA_URL}}, ("auto",), 0, 0),
        (Endpoint.RESPONSES, {"type": "input_image", "image_url": DATA_URL, "detail": "high"}, ("high",), 0, 0),
        (Endpoint.RESPONSES, {"type": "input_image", "file_id": "file_1"}, ("auto",), 0, 0),
        (CHAT, {"type": "input_audio", "input_audio": {"data": "A" * 400_000, "format": "wav"}}, (), 300_000, 0),
        (CHAT, {"type": "file", "file": {"file_data": "A" * 400_000}}, (), 0, 300_000),
        (Endpoint.RESPONSES, {"type": "input_file", "file_data": "A" * 400_000}, (), 0, 300_000),
    ],
)
@pytest.mark.parametrize("spaced", [False, True])
def test_inline_media_are_not_text(
    endpoint: Endpoint, part: dict[str, Any], images: tuple[str, ...], audio_bytes: int, file_bytes: int, spaced: bool
) -> None:
    """Base64 of an image, sound or file is not counted as characters, or it would block the caller for good (P4)."""
    conversation = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]
    member = "input" if endpoint is Endpoint.RESPONSES else "messages"
    members = {"model": "m", member: conversation}
    facts = peek(endpoint, json.dumps(members).encode() if spaced else body(**members))
    assert facts.images == images
    assert (facts.audio_bytes, facts.file_bytes) == (audio_bytes, file_bytes)
    assert 11 <= facts.text_characters < 300


SCREENSHOT = {"type": "computer_screenshot", "image_url": DATA_URL}
URL = {"type": "image_url", "image_url": {"url": DATA_URL}}
ODD_SHAPES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [URL, "a bare string"]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA_URL, "detail": 5}}]}]},
    {"messages": [{"role": "user", "content": [URL]}, {"role": "user", "content": "x", "type": None}]},
    {"input": [{"type": "computer_call_output", "call_id": "c", "output": SCREENSHOT}]},
    {"input": [{"type": "input_image", "image_url": DATA_URL}]},
    {"input": [{"type": "code_interpreter_call", "outputs": [{"type": "image", "url": DATA_URL}]}]},
    {"input": "draw", "tools": [{"type": "image_generation", "input_image_mask": {"image_url": DATA_URL}}]},
    {"prompt": {"id": "p", "variables": {"picture": {"type": "input_image", "image_url": DATA_URL}}}},
]


@pytest.mark.parametrize("members", ODD_SHAPES)
def test_media_are_not_text_wherever_they_are(members: dict[str, Any]) -> None:
    """One malformed part or an item that is not known does not turn a picture into half a million characters."""
    endpoint = CHAT if "messages" in members else Endpoint.RESPONSES
    facts = peek(endpoint, body(model="m", **members))
    assert facts.images == ("auto",)
    assert facts.text_characters < 300


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"messages": [{"content": [URL]}]}, separators=(" , ", " : ")),
        json.dumps({"messages": [{"content": [URL]}]}).replace('"content"', '"c\\u006fntent"'),
        json.dumps({"messages": [{"content": [URL]}]}).replace('": [', '":   ['),
    ],
    ids=["spaces before colons", "an escaped name", "three spaces"],
)
def test_media_are_not_text_in_any_spelling(text: str) -> None:
    """JSON may be written in many ways."""
    facts = peek(CHAT, text.encode())
    assert facts.images == ("auto",)
    assert facts.text_characters < 300


def test_what_is_sent_as_text_counts_as_text() -> None:
    """The upstream reads it so, however much it looks like an image: nobody gets a discount for a prefix."""
    part = {"type": "text", "text": DATA_URL}
    facts = peek(CHAT, body(model="m", messages=[{"role": "user", "content": [part]}]))
    assert facts.images == ()
    assert facts.text_characters > 400_000


@pytest.mark.parametrize("number", [10**15, 10**30, 10**400])
def test_absurd_numbers_are_bounded(number: int) -> None:
    """They go into sums and reports of 64 bits, whatever the upstream says of them."""
    facts = peek(CHAT, f'{{"n":{number},"max_tokens":{number},"best_of":{number}}}'.encode())
    assert facts.max_output_tokens == 2**31 - 1
    assert facts.n * facts.max_output_tokens < 2**53


def test_all_that_is_generated_is_counted() -> None:
    """Of twenty completions one may be shown, but all are charged."""
    assert peek(Endpoint.COMPLETIONS, body(model="m", prompt="x", best_of=20)).n == 20
    assert peek(Endpoint.COMPLETIONS, body(model="m", prompt="x", n=3, best_of=2)).n == 3


@pytest.mark.parametrize("member", ["messages", "input", "prompt", "instructions", "tools"])
def test_all_input_counts_as_text(member: str) -> None:
    """Messages, instructions and tools are all part of what the upstream reads."""
    facts = peek(Endpoint.RESPONSES, body(model="m", **{member: "x" * 1000}))
    assert facts.text_characters == pytest.approx(1000, abs=2)


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: b'{"model":"' + text.encode() + b'"}'))
def test_no_body_crashes(junk: bytes) -> None:
    """Any bytes give facts or a refusal, nothing else."""
    with contextlib.suppress(BadRequestError):
        peek(CHAT, junk)


def test_brackets_in_the_text_do_not_hide_media() -> None:
    """However many brackets the earlier messages hold, content parts after them are found."""
    image = {"type": "image_url", "image_url": {"url": DATA_URL}}
    talk = [{"role": "user", "content": "a[0]" * 40}, {"role": "user", "content": [image]}]
    facts = peek(CHAT, body(model="m", messages=talk))
    assert facts.images == ("auto",)
    assert facts.text_characters < 500


def test_twenty_megabytes_are_read_in_linear_time() -> None:
    """A huge body costs a pass or two over its bytes."""
    text = body(model="m", messages=[{"role": "user", "content": [{"type": "text", "text": "x" * 20_000_000}]}])
    started = time.process_time()
    assert peek(CHAT, text).model == "m"
    assert time.process_time() - started < 1.0
