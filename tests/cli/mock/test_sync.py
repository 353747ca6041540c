"""Every endpoint once more through the synchronous SDK, streams included."""

from collections.abc import Callable
from typing import Any

import openai
import pytest

from sluice_cli.mock import MockOpenAI

HELLO: Any = [{"role": "user", "content": "Hello"}]
AUDIO: Any = ("a.wav", b"\0" * 64_000)


def _batch(sdk: openai.OpenAI) -> Any:
    source = sdk.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    made = sdk.batches.create(input_file_id=source.id, endpoint="/v1/embeddings", completion_window="24h")
    return sdk.batches.retrieve(made.id).status


def _upload(sdk: openai.OpenAI) -> Any:
    made = sdk.uploads.create(bytes=3, filename="a", mime_type="text/plain", purpose="batch")
    part = sdk.uploads.parts.create(made.id, data=b"abc")
    return sdk.uploads.complete(made.id, part_ids=[part.id]).status


def _background(sdk: openai.OpenAI) -> Any:
    made = sdk.responses.create(model="gpt-4.1", input="x", background=True)
    return list(sdk.responses.retrieve(made.id, stream=True))[-1].type


def _conversation(sdk: openai.OpenAI) -> Any:
    made = sdk.conversations.create()
    sdk.responses.create(model="gpt-4.1", input="x", conversation=made.id)
    return len(list(sdk.conversations.items.list(made.id)))


def _vector_store(sdk: openai.OpenAI) -> Any:
    return sdk.vector_stores.delete(sdk.vector_stores.create(name="a").id).deleted


def _speech(sdk: openai.OpenAI) -> Any:
    with sdk.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input="abc") as response:
        return sum(len(chunk) for chunk in response.iter_bytes())


CALLS: list[tuple[str, Callable[[openai.OpenAI], Any], Any]] = [
    (
        "chat.completions",
        lambda sdk: len(list(sdk.chat.completions.create(model="m", messages=HELLO, stream=True))),
        26,
    ),
    ("completions", lambda sdk: sdk.completions.create(model="m", prompt="x").object, "text_completion"),
    ("completions", lambda sdk: len(list(sdk.completions.create(model="m", prompt="x", stream=True))), 9),
    ("responses", lambda sdk: sdk.responses.create(model="m", input="x").status, "completed"),
    (
        "responses",
        lambda sdk: list(sdk.responses.create(model="m", input="x", stream=True))[-1].type,
        "response.completed",
    ),
    ("responses.retrieve", _background, "response.completed"),
    ("responses.input_tokens", lambda sdk: sdk.responses.input_tokens.count(model="m", input="x").input_tokens, 7),
    ("conversations", _conversation, 2),
    ("embeddings", lambda sdk: len(sdk.embeddings.create(model="m", input="x", dimensions=4).data[0].embedding), 4),
    ("models", lambda sdk: sdk.models.retrieve("gpt-4.1").id, "gpt-4.1"),
    ("uploads", _upload, "completed"),
    ("moderations", lambda sdk: sdk.moderations.create(input="hate").results[0].flagged, True),
    ("images.generations", lambda sdk: len(sdk.images.generate(prompt="x", n=2).data or []), 2),
    ("images.edits", lambda sdk: len(sdk.images.edit(image=b"x", prompt="x").data or []), 1),
    (
        "audio.transcriptions",
        lambda sdk: sdk.audio.transcriptions.create(model="whisper-1", file=AUDIO).usage.seconds,  # type: ignore[union-attr]
        2.0,
    ),
    ("audio.speech", _speech, 3600),
    ("batches", _batch, "validating"),
    ("vector_stores", _vector_store, True),
]


@pytest.mark.parametrize(("endpoint", "call", "expected"), CALLS)
def test_endpoint(
    sync_client: openai.OpenAI, threaded_mock: MockOpenAI, endpoint: str, call: Any, expected: Any
) -> None:
    """The call gives what it should and is booked under its endpoint."""
    assert call(sync_client) == expected
    assert threaded_mock.ledger.find(endpoint=endpoint)
