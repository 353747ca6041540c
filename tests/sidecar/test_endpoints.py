"""The official SDK's surface through the sidecar, unchanged: everything that the mock serves, sync and async."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
import openai
import pytest
from pydantic import BaseModel

Client = Callable[..., openai.OpenAI]
MESSAGES: Any = [{"role": "user", "content": "hello"}]


class Step(BaseModel):
    """What an answer is parsed into."""

    text: str


def files(api: openai.OpenAI) -> None:
    uploaded = api.files.create(file=("data.jsonl", b'{"a": 1}\n'), purpose="batch")
    assert api.files.content(uploaded.id).read() == b'{"a": 1}\n'
    assert uploaded.id in {each.id for each in api.files.list()}
    assert api.files.delete(uploaded.id).deleted


def uploads(api: openai.OpenAI) -> None:
    upload = api.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="assistants")
    part = api.uploads.parts.create(upload.id, data=b"abcdef")
    assert api.uploads.complete(upload.id, part_ids=[part.id]).status == "completed"


def background(api: openai.OpenAI) -> None:
    made = api.responses.create(model="gpt-4.1-mini", input="hello", background=True)
    assert api.responses.retrieve(made.id).id == made.id
    assert api.responses.cancel(made.id).id == made.id


def conversation(api: openai.OpenAI) -> None:
    talk = api.conversations.create()
    first = api.responses.create(model="gpt-4.1-mini", input="hello", conversation=talk.id)
    again = api.responses.create(model="gpt-4.1-mini", input="more", previous_response_id=first.id)
    assert again.previous_response_id == first.id


def chat_stream(api: openai.OpenAI) -> None:
    with api.chat.completions.stream(model="gpt-4.1-mini", messages=MESSAGES) as events:
        assert events.get_final_completion().choices[0].message.content


def responses_stream(api: openai.OpenAI) -> None:
    with api.responses.stream(model="gpt-4.1-mini", input="hello") as events:
        assert events.get_final_response().output_text


def speech(api: openai.OpenAI) -> None:
    with api.audio.speech.with_streaming_response.create(model="gpt-4o-mini-tts", input="hi", voice="alloy") as answer:
        assert sum(len(chunk) for chunk in answer.iter_bytes())


def transcription(api: openai.OpenAI) -> None:
    sound = ("a.wav", io.BytesIO(b"RIFF" + b"\0" * 2000))
    assert api.audio.transcriptions.create(model="gpt-4o-transcribe", file=sound).text


def image_edit(api: openai.OpenAI) -> None:
    picture = ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    assert api.images.edit(model="gpt-image-1", image=picture, prompt="more").data


def batches(api: openai.OpenAI) -> None:
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}
    line["body"] = {"model": "gpt-4.1-mini", "messages": MESSAGES}  # type: ignore[assignment]
    made = api.files.create(file=("b.jsonl", json.dumps(line).encode() + b"\n"), purpose="batch")
    batch = api.batches.create(input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert api.batches.retrieve(batch.id).id == batch.id


def vector_stores(api: openai.OpenAI) -> None:
    store = api.vector_stores.create(name="s")
    assert api.vector_stores.retrieve(store.id).id == store.id
    assert api.vector_stores.delete(store.id).deleted


SURFACE: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda api: api.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, n=2),
    "chat stream": chat_stream,
    "responses": lambda api: api.responses.create(model="gpt-4.1-mini", input="hello"),
    "responses stream": responses_stream,
    "input tokens": lambda api: api.responses.input_tokens.count(model="gpt-4.1-mini", input="hello"),
    "background": background,
    "conversation": conversation,
    "completions": lambda api: api.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello"),
    "embeddings": lambda api: api.embeddings.create(model="text-embedding-3-small", input=["a", "b"]),
    "moderations": lambda api: api.moderations.create(input="hello"),
    "images": lambda api: api.images.generate(model="gpt-image-1", prompt="a cat"),
    "image edit": image_edit,
    "speech": speech,
    "transcription": transcription,
    "files": files,
    "uploads": uploads,
    "batches": batches,
    "vector stores": vector_stores,
    "models": lambda api: api.models.list(),
}


@pytest.mark.parametrize("name", SURFACE)
def test_the_sdk_works_unchanged(plain: Any, mock: Any, client: Client, name: str) -> None:
    """The call succeeds, and the sidecar's ledger has what the upstream's has."""
    SURFACE[name](client(plain.base_url))
    plain.wait_until(lambda: plain.status()["inFlight"] == 0)
    for entry in mock.ledger:
        record = plain.record(entry.client_request_id)
        assert record["status"] == entry.status
        if entry.usage is not None and entry.usage_sent and record["endpoint"] != "Batches":
            used = record.get("usage", {})
            assert used.get("inputTokens", 0) == entry.usage.input_tokens
            assert used.get("outputTokens", 0) == entry.usage.output_tokens


def test_a_raw_answer_has_the_apis_headers(plain: Any, client: Client) -> None:
    """Request id, organization, version and rate limits survive, on streams too."""
    api = client(plain.base_url)
    for stream in (False, True):
        raw: Any = api.chat.completions.with_raw_response.create(model="gpt-4.1-mini", messages=MESSAGES, stream=stream)
        assert raw.headers["x-request-id"].startswith("req_")
        assert raw.headers["openai-version"] == "2020-10-01"
        assert int(raw.headers["x-ratelimit-remaining-requests"]) >= 0
        if stream:
            list(raw.parse())


async def test_the_asynchronous_client_works_too(plain: Any) -> None:
    """Many calls at once over one client, streaming and not."""
    async with openai.AsyncOpenAI(base_url=plain.base_url, api_key="x", max_retries=0) as api:

        async def stream() -> str:
            chunks = await api.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])

        async def whole() -> str:
            answer = await api.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES)
            return answer.choices[0].message.content or ""

        texts = await asyncio.gather(*(stream() for _ in range(10)), *(whole() for _ in range(10)))
    assert len(set(texts)) == 1


async def test_realtime_over_a_websocket(plain: Any, mock: Any) -> None:
    """Messages pass both ways, a key in a subprotocol does not, and the usage is in the record."""
    keyed = ("realtime", "openai-insecure-api-key.sk-placeholder-of-the-application")
    async with aiohttp.ClientSession() as session:
        address = f"{plain.base_url}/realtime?model=gpt-realtime"
        async with session.ws_connect(address, protocols=keyed) as connection:
            await connection.send_json({"type": "response.create"})
            async for message in connection:
                if message.json()["type"] == "response.done":
                    break
    record = await asyncio.to_thread(plain.record, mock.ledger.last.client_request_id)
    assert record["status"] == 101
    assert record["outcome"] == "Success"
    assert record["usage"]["outputTokens"] == mock.ledger.last.usage.output_tokens > 0
    assert mock.ledger.last.key_name == "primary"


def handshake(port: int) -> tuple[int, dict[str, str], bytes]:
    """Ask for a WebSocket; return the plain HTTP answer."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    connection.request(
        "GET", "/v1/realtime?model=none", headers={**upgrade, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    )
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def test_a_websocket_that_the_upstream_declines_is_declined(plain: Any, mock: Any) -> None:
    """The application gets the upstream's own answer: its status, headers and body."""
    mock.faults.add(error="rate_limit_exceeded", retry_after="7")
    status, fields, body = handshake(plain.port)
    assert (status, fields["retry-after"]) == (429, "7")
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert plain.record(fields["x-sluice-call-id"])["outcome"] == "Throttled"


def test_a_websocket_follows_no_redirect(start: Any, mock: Any, loop_thread: Any) -> None:
    """A redirect of the handshake is passed on as it is: nothing goes anywhere else, with a key or without."""
    from aiohttp import web

    asked: list[str] = []

    async def redirect(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": f"{mock.base_url}/realtime?model=gpt-realtime"})

    async def serve() -> Any:
        runner = web.ServerRunner(web.Server(redirect))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = loop_thread.run(serve())
    sidecar = start(sys.modules["policies"].plain(f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
    status, _, _ = handshake(sidecar.port)
    loop_thread.run(runner.cleanup())
    assert (status, asked) == (307, ["/v1/realtime"])
    assert len(mock.ledger) == 0


def test_the_usage_of_a_background_response_is_booked_once(plain: Any, mock: Any, client: Client) -> None:
    """It comes with the poll that finds it completed; later polls, and polls of other responses, cost nothing."""
    mock.faults.add(background_seconds=0.05)
    api = client(plain.base_url)
    made = api.responses.with_raw_response.create(model="gpt-4.1-mini", input="hello", background=True)
    name = made.parse().id
    polls: list[Any] = [made]
    plain.wait_until(lambda: _poll(api, name, polls) == "completed")
    _poll(api, name, polls)
    whole = api.responses.with_raw_response.create(model="gpt-4.1-mini", input="hello")
    _poll(api, whole.parse().id, polls)
    records = [plain.record(poll.headers["x-sluice-call-id"]) for poll in polls]
    assert sum("usage" in record for record in records) == 1
    assert "usage" in records[-3]


def _poll(api: openai.OpenAI, name: str, polls: list[Any]) -> Any:
    polls.append(api.responses.with_raw_response.retrieve(name))
    return polls[-1].parse().status
