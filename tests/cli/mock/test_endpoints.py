"""Every other endpoint, spoken to by the official SDK."""

import base64
import hashlib
import io
import json
from typing import Any

import openai
import pytest
from openai.types import (
    Batch,
    CreateEmbeddingResponse,
    FileDeleted,
    FileObject,
    ImageGenCompletedEvent,
    ImagesResponse,
    Model,
    ModerationCreateResponse,
    Upload,
    VectorStore,
)
from openai.types.audio import Transcription, TranscriptionVerbose
from openai.types.uploads import UploadPart
from openai.types.vector_stores import VectorStoreFile

from sluice_cli.mock import MockOpenAI

WAV = bytes(range(256)) * 250  # 64,000 bytes: two seconds


async def test_embeddings_as_numbers_and_base64_agree(client: openai.AsyncOpenAI) -> None:
    """Both encodings hold the same unit vectors, which depend on the text alone."""
    model = "text-embedding-3-small"
    raw = await client.embeddings.with_raw_response.create(
        model=model, input=["a", "b", "a"], encoding_format="float", dimensions=8
    )
    numbers = CreateEmbeddingResponse.model_validate_json(raw.text)
    packed = await client.embeddings.create(model=model, input=["a", "b"], dimensions=8)

    assert numbers.data[0].embedding == numbers.data[2].embedding != numbers.data[1].embedding
    assert packed.data[1].embedding == pytest.approx(numbers.data[1].embedding, abs=1e-6)
    assert sum(value * value for value in numbers.data[0].embedding) == pytest.approx(1.0)
    assert numbers.usage.prompt_tokens == 3


async def test_models(client: openai.AsyncOpenAI) -> None:
    """Models are listed and found; an unknown one is a 404 with its code."""
    listed = [model.id async for model in client.models.list()]

    assert {"gpt-4.1", "gpt-4.1-2025-04-14"} <= set(listed)
    Model.model_validate((await client.models.retrieve("gpt-4.1")).model_dump())
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("gpt-none")
    assert caught.value.code == "model_not_found"


async def test_files(client: openai.AsyncOpenAI) -> None:
    """A file goes up, is listed, comes down byte for byte, and is gone once deleted."""
    content = bytes(range(256)) * 4096
    made = await client.files.create(file=("ä.bin", content), purpose="user_data")
    FileObject.model_validate(made.model_dump())

    assert made.bytes == len(content)
    assert [file.id async for file in client.files.list(purpose="user_data")] == [made.id]
    assert (await client.files.content(made.id)).content == content
    FileDeleted.model_validate((await client.files.delete(made.id)).model_dump())
    with pytest.raises(openai.NotFoundError):
        await client.files.content(made.id)


def test_files_of_the_sync_client(sync_client: openai.OpenAI) -> None:
    """The synchronous client can stream a download to its end."""
    made = sync_client.files.create(file=("a.bin", io.BytesIO(b"x" * 300_000)), purpose="batch")
    with sync_client.files.with_streaming_response.content(made.id) as response:
        size = sum(len(chunk) for chunk in response.iter_bytes(65_536))

    assert size == 300_000


async def test_files_are_listed_in_pages(client: openai.AsyncOpenAI) -> None:
    """The SDK's own paging visits every file once, newest first."""
    made = [(await client.files.create(file=b"x", purpose="batch")).id for _ in range(5)]

    assert [file.id async for file in client.files.list(limit=2)] == made[::-1]


async def test_upload_in_parts(client: openai.AsyncOpenAI) -> None:
    """Parts become one file in the order given; a size that does not fit is refused."""
    made = await client.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="batch")
    Upload.model_validate(made.model_dump())
    parts = [await client.uploads.parts.create(made.id, data=data) for data in (b"def", b"abc")]
    UploadPart.model_validate(parts[0].model_dump())
    with pytest.raises(openai.BadRequestError):
        await client.uploads.complete(made.id, part_ids=[parts[0].id])
    done = await client.uploads.complete(made.id, part_ids=[parts[1].id, parts[0].id])

    assert done.status == "completed"
    assert done.file is not None
    assert (await client.files.content(done.file.id)).content == b"abcdef"


async def test_moderations(client: openai.AsyncOpenAI) -> None:
    """A text is flagged by the words in it, one result per text."""
    raw = await client.moderations.with_raw_response.create(input=["a calm sea", "senseless violence"])
    made = ModerationCreateResponse.model_validate_json(raw.text)

    assert [result.flagged for result in made.results] == [False, True]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's own, for old calls
async def test_images(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """Images come as base64 with usage by quality; dall-e ones as URLs without usage."""
    raw = await client.images.with_raw_response.generate(model="gpt-image-1", prompt="A weir", n=2, quality="low")
    made = ImagesResponse.model_validate_json(raw.text)

    assert made.data is not None
    assert base64.b64decode(made.data[0].b64_json or "").startswith(b"\x89PNG")
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (2, 544)
    old = await client.images.generate(model="dall-e-2", prompt="A weir")
    assert old.usage is None
    assert old.data is not None
    assert old.data[0].url
    edited = await client.images.edit(model="gpt-image-1", image=("a.png", b"png"), prompt="More water")
    assert edited.usage is not None
    assert edited.usage.input_tokens_details.image_tokens == 765
    assert (await client.images.create_variation(image=("a.png", b"png"))).data
    assert mock.ledger.last.endpoint == "images.variations"


async def test_image_stream(client: openai.AsyncOpenAI) -> None:
    """A streamed image shows its parts first, then itself with the usage."""
    stream = await client.images.generate(model="gpt-image-1", prompt="A weir", stream=True, partial_images=2)
    events = [event async for event in stream]

    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    ImageGenCompletedEvent.model_validate(events[-1].model_dump())


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's own, for old calls
async def test_transcription(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """An upload is billed by its seconds: in tokens, or as duration for whisper."""
    raw = await client.audio.transcriptions.with_raw_response.create(model="gpt-4o-transcribe", file=("a.wav", WAV))
    made = Transcription.model_validate_json(raw.text)

    assert made.usage is not None
    assert made.usage.type == "tokens"
    assert made.usage.input_tokens == 20
    assert mock.ledger.last.model_requested == "gpt-4o-transcribe"
    verbose = await client.audio.transcriptions.with_raw_response.create(
        model="whisper-1", file=("a.wav", WAV), response_format="verbose_json"
    )
    assert TranscriptionVerbose.model_validate_json(verbose.text).duration == 2.0
    text = await client.audio.transcriptions.create(model="whisper-1", file=("a.wav", WAV), response_format="text")
    assert text.strip() == made.text.strip()
    assert (await client.audio.translations.create(model="whisper-1", file=("a.wav", WAV))).text


async def test_transcription_stream(client: openai.AsyncOpenAI) -> None:
    """A streamed transcript's deltas join to its text, which comes with the usage."""
    stream = await client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", WAV), stream=True)
    events: list[Any] = [event async for event in stream]

    assert "".join(event.delta for event in events[:-1]) == events[-1].text
    assert events[-1].type == "transcript.text.done"
    assert events[-1].usage.input_tokens == 20


async def test_speech(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """Speech is a stream of bytes of known size, the same each time, and is billed."""
    create = client.audio.speech.with_streaming_response.create
    sums = []
    for _ in range(2):
        async with create(model="gpt-4o-mini-tts", voice="alloy", input="x" * 100) as response:
            body = b"".join([chunk async for chunk in response.iter_bytes()])
        sums.append(hashlib.sha256(body).digest())
        assert len(body) == 120_000
    await mock.ledger.settled()

    assert sums[0] == sums[1]
    assert response.headers["content-type"] == "audio/mpeg"
    assert mock.ledger.last.usage is not None
    assert mock.ledger.last.usage.audio_output_tokens == 125


async def test_batch_runs_on_demand(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """Each poll takes a batch one step on; answers and refused lines end in their own files, usage in the sum."""
    mock.faults.add(endpoint="batches.*", model="gpt-bad", error="server_error")
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "Hi"}]},
        }
        for number, model in enumerate(["gpt-4.1", "gpt-bad", "gpt-4.1"])
    ]
    source = await client.files.create(
        file=("in.jsonl", "\n".join(json.dumps(line) for line in lines).encode()), purpose="batch"
    )
    made = await client.batches.create(
        input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    polled = [await client.batches.retrieve(made.id) for _ in range(3)]
    done = Batch.model_validate(polled[-1].model_dump())

    assert [batch.status for batch in polled] == ["validating", "in_progress", "completed"]
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 1)
    output = (await client.files.content(str(done.output_file_id))).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in output] == ["line-0", "line-2"]
    errors = (await client.files.content(str(done.error_file_id))).text.splitlines()
    assert json.loads(errors[0])["response"]["status_code"] == 500
    assert done.usage is not None
    assert done.usage.total_tokens == sum(
        json.loads(line)["response"]["body"]["usage"]["total_tokens"] for line in output
    )
    booked = mock.ledger.find(endpoint="batches")[0].usage
    assert booked is not None
    assert booked.total_tokens == done.usage.total_tokens


async def test_batch_of_bad_lines_fails(client: openai.AsyncOpenAI) -> None:
    """Lines that are no requests fail the batch and are named."""
    source = await client.files.create(file=("in.jsonl", b'{"custom_id": 1}\nnot json\n'), purpose="batch")
    made = await client.batches.create(input_file_id=source.id, endpoint="/v1/embeddings", completion_window="24h")
    await client.batches.retrieve(made.id)
    failed = await client.batches.retrieve(made.id)

    assert failed.status == "failed"
    assert failed.errors is not None
    assert [error.line for error in failed.errors.data or []] == [1, 2]


async def test_batch_cancel(client: openai.AsyncOpenAI) -> None:
    """A batch that is cancelled stays so."""
    source = await client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    made = await client.batches.create(input_file_id=source.id, endpoint="/v1/responses", completion_window="24h")

    assert (await client.batches.cancel(made.id)).status == "cancelled"
    assert (await client.batches.retrieve(made.id)).status == "cancelled"
    assert [batch.id async for batch in client.batches.list()] == [made.id]


async def test_vector_stores(client: openai.AsyncOpenAI) -> None:
    """A store is made, filled, searched, emptied, renamed and deleted."""
    file = await client.files.create(file=("facts.txt", b"facts"), purpose="assistants")
    raw = await client.vector_stores.with_raw_response.create(name="facts", file_ids=[file.id])
    made = VectorStore.model_validate_json(raw.text)

    assert made.file_counts.completed == 1
    attached = await client.vector_stores.files.retrieve(file.id, vector_store_id=made.id)
    VectorStoreFile.model_validate(attached.model_dump())
    found = [hit async for hit in client.vector_stores.search(made.id, query="facts?")]
    assert [hit.filename for hit in found] == ["facts.txt"]
    await client.vector_stores.files.delete(file.id, vector_store_id=made.id)
    assert [item async for item in client.vector_stores.files.list(made.id)] == []
    assert (await client.vector_stores.update(made.id, name="other")).name == "other"
    assert [store.id async for store in client.vector_stores.list()] == [made.id]
    assert (await client.vector_stores.delete(made.id)).deleted


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing/here", 404), ("GET", "/chat/completions", 405), ("POST", "/models", 405), ("GET", "/", 404)],
)
async def test_other_paths(client: openai.AsyncOpenAI, method: str, path: str, status: int) -> None:
    """A path or method that the API lacks is refused in its own error shape."""
    with pytest.raises(openai.APIStatusError) as caught:
        await client.request(object, options=openai._models.FinalRequestOptions.construct(method=method, url=path))

    assert caught.value.status_code == status
    assert caught.value.response.json()["error"]["type"] == "invalid_request_error"
