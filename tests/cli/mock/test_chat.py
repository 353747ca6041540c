"""Chat and legacy completions, spoken to by the official SDK."""

from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from sluice_cli.mock import MockOpenAI

HELLO: Any = [{"role": "user", "content": "Say hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 3}},
        },
    },
}


class Person(BaseModel):
    name: str
    age: int
    friends: list[str]


async def test_body_is_what_the_sdk_declares(client: openai.AsyncOpenAI) -> None:
    """A chat completion validates strictly against the SDK's own type and names the model's snapshot."""
    raw = await client.chat.completions.with_raw_response.create(model="gpt-4.1", messages=HELLO, max_tokens=10)
    completion = ChatCompletion.model_validate_json(raw.text)

    assert completion.model == "gpt-4.1-2025-04-14"
    assert completion.service_tier == "default"
    # ceil(9 / 4) characters, 3 for the message, 3 for the reply; half of max_tokens comes back.
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (9, 5)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["openai-version"] == "2020-10-01"
    assert int(raw.headers["x-ratelimit-limit-requests"]) > 0


async def test_equal_requests_get_equal_bytes(client: openai.AsyncOpenAI) -> None:
    """In a stable server the body is a function of the request; another temperature is another request."""
    create = client.chat.completions.with_raw_response.create
    bodies = [(await create(model="gpt-4.1", messages=HELLO, temperature=t)).text for t in (0.1, 0.1, 0.9)]

    assert bodies[0] == bodies[1] != bodies[2]


@pytest.mark.parametrize("choices", [1, 3])
async def test_stream_adds_up_to_the_whole(client: openai.AsyncOpenAI, choices: int) -> None:
    """The deltas of each choice join to the text of the unstreamed answer, with the same usage."""
    whole = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, n=choices)
    stream = await client.chat.completions.create(
        model="gpt-4.1", messages=HELLO, n=choices, stream=True, stream_options={"include_usage": True}
    )
    texts, chunks = [""] * choices, [chunk async for chunk in stream]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump())
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""

    assert texts == [choice.message.content for choice in whole.choices]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize(
    ("options", "usage_seen", "padded"),
    [({}, False, True), ({"include_usage": True}, True, True), ({"include_obfuscation": False}, False, False)],
)
async def test_stream_options(
    client: openai.AsyncOpenAI, mock: MockOpenAI, options: Any, usage_seen: bool, padded: bool
) -> None:
    """Usage comes only when asked for, obfuscation unless declined; the ledger knows which."""
    stream = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    await mock.ledger.settled()

    assert (chunks[-1].usage is not None) is usage_seen
    assert (chunks[0].obfuscation is not None) is padded
    assert mock.ledger.last.usage_sent is usage_seen
    assert mock.ledger.last.usage is not None


async def test_tool_calls_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    """A tool is called with arguments that its schema allows; streamed, the argument deltas join to the same."""
    whole = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, tools=[WEATHER])
    calls: Any = whole.choices[0].message.tool_calls
    stream = await client.chat.completions.create(model="gpt-4.1", messages=HELLO, tools=[WEATHER], stream=True)
    joined, finish = "", None
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            joined += (call.function.arguments if call.function else None) or ""
        finish = chunk.choices[0].finish_reason or finish

    assert whole.choices[0].finish_reason == finish == "tool_calls"
    assert calls[0].function.name == "weather"
    assert calls[0].function.arguments == joined
    assert '"days":' in joined


async def test_a_tool_result_is_answered_with_text(client: openai.AsyncOpenAI) -> None:
    """Once the tool's result is in the conversation the model speaks."""
    messages = [*HELLO, {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
    answer = await client.chat.completions.create(model="gpt-4.1", messages=messages, tools=[WEATHER])

    assert answer.choices[0].message.content


async def test_parse_gives_an_object_of_the_schema(client: openai.AsyncOpenAI) -> None:
    """`parse` with a pydantic model gets content that validates."""
    answer = await client.chat.completions.parse(model="gpt-4.1", messages=HELLO, response_format=Person)

    assert isinstance(answer.choices[0].message.parsed, Person)


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    """Each token has its log probability and as many alternatives as asked for."""
    answer = await client.chat.completions.create(
        model="gpt-4.1", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=8
    )
    assert answer.choices[0].logprobs is not None
    rows = answer.choices[0].logprobs.content or []

    assert "".join(row.token for row in rows) == answer.choices[0].message.content
    assert [len(row.top_logprobs) for row in rows] == [2] * 4


def test_sync_client(sync_client: openai.OpenAI) -> None:
    """The synchronous SDK works the same, streaming and not."""
    whole = sync_client.chat.completions.create(model="gpt-4.1", messages=HELLO)
    stream = sync_client.chat.completions.create(model="gpt-4.1", messages=HELLO, stream=True)

    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content


async def test_legacy_completions(client: openai.AsyncOpenAI) -> None:
    """Legacy completions answer in their own shape, whole and streamed."""
    raw = await client.completions.with_raw_response.create(model="gpt-3.5-turbo-instruct", prompt="Once")
    whole = Completion.model_validate_json(raw.text)
    stream = await client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once", stream=True)

    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text


async def test_the_ledger_shows_which_arm_was_applied(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """Model, temperature and a hash of the instructions are booked; no text is."""
    secret = "You are a pirate called Zanzibar."
    await client.chat.completions.create(
        model="gpt-4.1-mini", temperature=0.6, messages=[{"role": "system", "content": secret}, *HELLO], user="ann"
    )
    entry = mock.ledger.last

    assert (entry.model_requested, entry.model_served) == ("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14")
    assert entry.temperature == 0.6
    assert entry.instructions_sha256 is not None
    assert entry.user_sha256 is not None
    assert "Zanzibar" not in repr(entry)
    assert "'ann'" not in repr(entry)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{not json", 400, None),
        (b"\xff\xfe", 400, None),
        (b"[]", 400, None),
        (b"{}", 400, "missing_required_parameter"),
        (b'{"model":"gpt-4.1","messages":[]}', 400, "missing_required_parameter"),
        (b'{"model":"gpt-4.1","messages":[{"role":"user","content":"x"}],"n":0.5}', 400, "integer_out_of_range"),
    ],
)
async def test_bad_bodies_get_the_api_error_shape(
    client: openai.AsyncOpenAI, body: bytes, status: int, code: str | None
) -> None:
    """A body that cannot be served is refused with all four keys of the error body."""
    with pytest.raises(openai.APIStatusError) as caught:
        await client.post("/chat/completions", cast_to=object, content=body)

    assert caught.value.status_code == status
    assert caught.value.code == code
    assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}
