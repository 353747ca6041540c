"""The responses API and conversations, spoken to by the official SDK."""

from typing import Any

import openai
import pytest
from openai.types.conversations import Conversation, ConversationItemList
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from sluice_cli.mock import MockOpenAI

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


class Colour(BaseModel):
    name: str
    hex: str


async def test_body_is_what_the_sdk_declares(client: openai.AsyncOpenAI) -> None:
    """A response validates strictly against the SDK's own type; its usage follows the documented count."""
    raw = await client.responses.with_raw_response.create(
        model="gpt-4.1", input="Say hello", instructions="Be short", max_output_tokens=10
    )
    response = Response.model_validate_json(raw.text)

    assert response.model == "gpt-4.1-2025-04-14"
    assert response.status == "completed"
    assert response.usage is not None
    # ceil(17 / 4) + 2 messages * 3 + 3
    assert (response.usage.input_tokens, response.usage.output_tokens) == (14, 5)


async def test_stream_is_numbered_typed_and_ends_with_the_whole(client: openai.AsyncOpenAI) -> None:
    """Every event validates, sequence numbers count up, the last event carries the answer and its usage."""
    whole = await client.responses.create(model="gpt-4.1", input="Say hello")
    events = [e async for e in await client.responses.create(model="gpt-4.1", input="Say hello", stream=True)]
    for event in events:
        EVENT.validate_python(event.model_dump())
    kinds = [event.type for event in events]

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    last: Any = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == whole.output_text
    assert last.response.usage == whole.usage
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text


async def test_stream_has_no_done_marker(client: openai.AsyncOpenAI) -> None:
    """The bytes of a responses stream hold `event:` lines and no `[DONE]`."""
    async with client.responses.with_streaming_response.create(model="gpt-4.1", input="x", stream=True) as raw:
        body = await raw.read()

    assert body.startswith(b"event: response.created\ndata: ")
    assert b"[DONE]" not in body


async def test_reasoning_and_function_calls_stream(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """A reasoning item with a summary comes before the call, whose argument deltas join to its arguments."""
    mock.faults.add(reasoning_tokens=64)
    stream = await client.responses.create(
        model="o4-mini", input="Weather?", tools=[WEATHER], reasoning={"summary": "auto"}, stream=True
    )
    events: list[Any] = [event async for event in stream]
    for event in events:
        EVENT.validate_python(event.model_dump())
    done: Any = events[-1].response

    assert [item.type for item in done.output] == ["reasoning", "function_call"]
    assert done.usage.output_tokens_details.reasoning_tokens == 64
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == done.output[1].arguments
    assert any(event.type == "response.reasoning_summary_text.done" for event in events)


async def test_parse(client: openai.AsyncOpenAI) -> None:
    """`parse` with a pydantic model gets text that validates."""
    response = await client.responses.parse(model="gpt-4.1", input="A colour", text_format=Colour)

    assert isinstance(response.output_parsed, Colour)


@pytest.mark.parametrize(
    ("fault", "kind", "detail"),
    [
        ({"response_failed": "server_error"}, "response.failed", "server_error"),
        ({"finish_reason": "length"}, "response.incomplete", "max_output_tokens"),
        ({"finish_reason": "content_filter"}, "response.incomplete", "content_filter"),
    ],
)
async def test_other_ends(client: openai.AsyncOpenAI, mock: MockOpenAI, fault: Any, kind: str, detail: str) -> None:
    """A response can fail or stay incomplete inside a 200; a failed one is not billed."""
    mock.faults.add(**fault)
    events = [e async for e in await client.responses.create(model="gpt-4.1", input="x", stream=True)]
    last: Any = events[-1]
    EVENT.validate_python(last.model_dump())
    await mock.ledger.settled()

    assert last.type == kind
    reason = last.response.error.code if kind == "response.failed" else last.response.incomplete_details.reason
    assert reason == detail
    assert (last.response.usage is None) is (kind == "response.failed")
    assert (mock.ledger.last.usage is None) is (kind == "response.failed")
    assert mock.ledger.last.outcome == ("failed" if kind == "response.failed" else "completed")


async def test_previous_response_is_context(client: openai.AsyncOpenAI) -> None:
    """A follow-up is billed for what it continues; an unknown id is refused."""
    first = await client.responses.create(model="gpt-4.1", input="x" * 400)
    second = await client.responses.create(model="gpt-4.1", input="y", previous_response_id=first.id)

    assert second.usage is not None
    assert second.usage.input_tokens > 100
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="gpt-4.1", input="y", previous_response_id="resp_gone")
    assert caught.value.code == "previous_response_not_found"


async def test_stored_responses(client: openai.AsyncOpenAI) -> None:
    """A response can be fetched, its input listed, and deleted; then it is gone."""
    made = await client.responses.create(model="gpt-4.1", input="Say hello")
    raw = await client.responses.input_items.with_raw_response.list(made.id)

    assert (await client.responses.retrieve(made.id)).output_text == made.output_text
    assert len(ResponseItemList.model_validate_json(raw.text).data) == 1
    await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)


async def test_input_tokens_predict_the_bill(client: openai.AsyncOpenAI) -> None:
    """`input_tokens` counts what the response is then billed."""
    counted = await client.responses.input_tokens.count(model="gpt-4.1", input="How many tokens is this?")
    made = await client.responses.create(model="gpt-4.1", input="How many tokens is this?")

    assert made.usage is not None
    assert counted.input_tokens == made.usage.input_tokens


async def test_background_poll(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """A background response is queued at once and completed when its time is over."""
    mock.faults.add(background_seconds=0)
    made = await client.responses.create(model="gpt-4.1", input="x", background=True)

    assert made.status == "queued"
    assert made.usage is None
    polled = await client.responses.retrieve(made.id)
    assert polled.status == "completed"
    assert polled.output_text


async def test_background_cancel(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """A cancelled background response stays cancelled and is billed for what it had generated."""
    mock.faults.add(background_seconds=3600)
    made = await client.responses.create(model="gpt-4.1", input="x", background=True)
    creation = mock.ledger.last
    cancelled = await client.responses.cancel(made.id)

    assert cancelled.status == "cancelled"
    assert (await client.responses.retrieve(made.id)).status == "cancelled"
    assert creation.usage is not None
    assert creation.usage.output_tokens == 0


async def test_background_stream_resumes(client: openai.AsyncOpenAI) -> None:
    """A background stream that was left can be taken up again behind any event."""
    stream = await client.responses.create(model="gpt-4.1", input="x", background=True, stream=True)
    identifier, seen = "", []
    async for event in stream:
        seen.append(event)
        if event.type == "response.created":
            identifier = event.response.id
        if event.sequence_number == 5:
            break
    await stream.close()
    rest = [e async for e in await client.responses.retrieve(identifier, stream=True, starting_after=5)]

    assert [event.sequence_number for event in seen + rest] == list(range(len(seen) + len(rest)))
    assert rest[-1].type == "response.completed"


async def test_compact(client: openai.AsyncOpenAI) -> None:
    """Compaction answers one item and its usage."""
    compacted = await client.responses.compact(model="gpt-5", input="a long story")

    assert compacted.output[0].type == "compaction"
    assert compacted.usage.output_tokens == 16


async def test_conversations(client: openai.AsyncOpenAI) -> None:
    """A conversation gathers the items of the responses made in it."""
    raw = await client.conversations.with_raw_response.create(metadata={"topic": "water"})
    made = Conversation.model_validate_json(raw.text)
    await client.responses.create(model="gpt-4.1", input="Hello", conversation=made.id)
    listed = await client.conversations.items.with_raw_response.list(made.id, order="asc")
    items = ConversationItemList.model_validate_json(listed.text).data

    assert [getattr(item, "role", None) for item in items] == ["user", "assistant"]
    first = await client.conversations.items.retrieve(str(items[0].id), conversation_id=made.id)
    assert first.type == "message"
    await client.conversations.items.delete(str(items[0].id), conversation_id=made.id)
    updated = await client.conversations.update(made.id, metadata={"topic": "wind"})
    assert updated.metadata == {"topic": "wind"}
    await client.conversations.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.retrieve(made.id)
