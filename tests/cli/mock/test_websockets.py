"""Realtime and responses over WebSockets; each event validates against the SDK's types."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.realtime import RealtimeServerEvent
from openai.types.responses import ResponsesServerEvent
from pydantic import TypeAdapter

from sluice_cli.mock import MockOpenAI, Outcome

REALTIME: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
RESPONSES: TypeAdapter[Any] = TypeAdapter(ResponsesServerEvent)
HEADERS = {"Authorization": "Bearer sk-test"}
SAY: Any = {
    "type": "conversation.item.create",
    "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that can speak WebSocket."""
    async with aiohttp.ClientSession(headers=HEADERS) as made:
        yield made


async def until(ws: aiohttp.ClientWebSocketResponse, kind: str, adapter: TypeAdapter[Any]) -> list[Any]:
    """Receive, and validate, every event up to the first of a kind."""
    events: list[Any] = []
    while not events or events[-1]["type"] != kind:
        events.append(await ws.receive_json(timeout=5))
        adapter.validate_python(events[-1])
    return events


async def test_realtime_answers_with_usage(session: aiohttp.ClientSession, mock: MockOpenAI) -> None:
    """A session opens, takes an item and generates an answer whose usage is booked once the socket closes."""
    async with session.ws_connect(mock.base_url + "/realtime?model=gpt-realtime") as ws:
        assert (await until(ws, "session.created", REALTIME))[0]["session"]["model"] == "gpt-realtime"
        await ws.send_json(SAY)
        await until(ws, "conversation.item.done", REALTIME)
        await ws.send_json({"type": "response.create"})
        events = await until(ws, "response.done", REALTIME)
        await until(ws, "rate_limits.updated", REALTIME)
    await mock.ledger.settled()
    entry, done = mock.ledger.last, events[-1]["response"]

    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert done["status"] == "completed"
    assert done["output"][0]["content"][0]["text"] == text
    assert entry.usage is not None
    assert done["usage"]["total_tokens"] == entry.usage.total_tokens
    assert (entry.endpoint, entry.model_requested, entry.turns) == ("realtime", "gpt-realtime", 1)
    assert entry.outcome is Outcome.COMPLETED


async def test_realtime_cancel_bills_the_part(session: aiohttp.ClientSession, mock: MockOpenAI) -> None:
    """A cancelled answer is said to be so, with the usage of what there was."""
    mock.faults.add(stall_seconds=3600, stall_at_event=6)
    async with session.ws_connect(mock.base_url + "/realtime?model=gpt-realtime") as ws:
        await until(ws, "session.created", REALTIME)
        await ws.send_json({"type": "response.create"})
        await until(ws, "response.output_text.delta", REALTIME)
        await ws.send_json({"type": "response.cancel"})
        done = (await until(ws, "response.done", REALTIME))[-1]["response"]

    assert done["status"] == "cancelled"
    assert 0 < done["usage"]["output_tokens"] < 24


async def test_realtime_refuses_what_it_does_not_know(session: aiohttp.ClientSession, mock: MockOpenAI) -> None:
    """An unknown event gets an error event and the session goes on."""
    async with session.ws_connect(mock.base_url + "/realtime?model=gpt-realtime") as ws:
        await until(ws, "session.created", REALTIME)
        await ws.send_json({"type": "no.such.event"})
        assert (await until(ws, "error", REALTIME))[-1]["error"]["code"] == "invalid_value"
        await ws.send_json({"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief"}})
        await until(ws, "session.updated", REALTIME)


async def test_realtime_audio_is_billed_by_its_length(session: aiohttp.ClientSession, mock: MockOpenAI) -> None:
    """Audio that was appended counts as audio tokens of the answer."""
    async with session.ws_connect(mock.base_url + "/realtime?model=gpt-realtime") as ws:
        await until(ws, "session.created", REALTIME)
        # 9600 bytes: a fifth of a second of 24 kHz, 16 bit
        await ws.send_json({"type": "input_audio_buffer.append", "audio": "AAAA" * 3200})
        await ws.send_json({"type": "input_audio_buffer.commit"})
        await until(ws, "conversation.item.done", REALTIME)
        await ws.send_json({"type": "response.create"})
        done = (await until(ws, "response.done", REALTIME))[-1]["response"]

    assert done["usage"]["input_token_details"]["audio_tokens"] == 2


async def test_cut_socket(session: aiohttp.ClientSession, mock: MockOpenAI) -> None:
    """A socket that is cut ends without a closing handshake and is booked as cut."""
    mock.faults.add(cut_at_event=3)
    async with session.ws_connect(mock.base_url + "/responses") as ws:
        await ws.send_json({"type": "response.create", "model": "gpt-4.1", "input": "Hello"})
        kinds = [message.type async for message in ws]
        assert kinds == [aiohttp.WSMsgType.TEXT] * 3
        assert ws.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    await mock.ledger.settled()

    assert mock.ledger.last.outcome is Outcome.CUT


async def test_responses_over_a_websocket(session: aiohttp.ClientSession, mock: MockOpenAI) -> None:
    """Each turn gets the events of one stream with its stream id; the turns' usage adds up in one entry."""
    totals = []
    async with session.ws_connect(mock.base_url + "/responses") as ws:
        previous = None
        for turn in range(2):
            create = {"type": "response.create", "model": "gpt-4.1", "input": "Hello", "stream_id": f"s{turn}"}
            await ws.send_json(create | {"previous_response_id": previous})
            events = await until(ws, "response.completed", RESPONSES)
            assert {event["stream_id"] for event in events} == {f"s{turn}"}
            previous = events[-1]["response"]["id"]
            totals.append(events[-1]["response"]["usage"]["total_tokens"])
        await ws.send_json({"type": "response.create", "input": "no model"})
        assert (await until(ws, "error", RESPONSES))[-1]["status"] == 400
    await mock.ledger.settled()
    entry = mock.ledger.last

    assert totals[1] > totals[0]
    assert entry.usage is not None
    assert entry.usage.total_tokens == sum(totals)
    assert entry.turns == 2


async def test_faults_and_keys_hold_before_the_upgrade(mock: MockOpenAI) -> None:
    """Without a key, or with an error ordered, there is no upgrade but a status."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(mock.base_url + "/realtime?model=gpt-realtime")
        assert caught.value.status == 401
        mock.faults.add(endpoint="realtime", model="gpt-realtime", error="server_is_overloaded")
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(mock.base_url + "/realtime?model=gpt-realtime", headers=HEADERS)
        assert caught.value.status == 503


async def test_plain_get_is_refused(client: openai.AsyncOpenAI) -> None:
    """A request without an upgrade is a 400, not a hang."""
    with pytest.raises(openai.BadRequestError):
        await client.get("/realtime?model=gpt-realtime", cast_to=object)


async def test_client_secrets(client: openai.AsyncOpenAI) -> None:
    """An ephemeral key is minted for a session."""
    made = await client.realtime.client_secrets.create(session={"type": "realtime", "model": "gpt-realtime"})

    assert made.value.startswith("ek_")
