"""Responses over a WebSocket: each `response.create` gets the events of one stream."""

import asyncio

import msgspec

from sluice_cli.mock import responses
from sluice_cli.mock.answers import Answer, SentAnswer
from sluice_cli.mock.errors import ApiError
from sluice_cli.mock.response_events import EventStream
from sluice_cli.mock.sockets import Socket, book, error_of, open_socket, unknown_event
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject


async def connect(call: Call) -> Answer:
    """Answer `GET /responses` as a WebSocket: each `response.create` gets the events of one stream."""
    ws = await open_socket(call)
    socket = Socket(call, ws)
    while (event := await socket.receive()) is not None:
        tag = {"stream_id": event["stream_id"]} if "stream_id" in event else {}
        try:
            if event.get("type") != "response.create":
                raise unknown_event(event)
            await _respond(call, socket, event, tag)
        except ApiError as exc:
            await socket.send({"type": "error", "status": exc.shape.status, "error": error_of(exc.shape), **tag})
    return SentAnswer(response=ws)


async def _respond(call: Call, socket: Socket, event: JsonObject, tag: JsonObject) -> None:
    body = {name: value for name, value in event.items() if name not in ("type", "stream_id", "event_id")}
    call.entry.model_requested = body.get("model") or call.entry.model_requested
    plan, items = responses.decide(call, body)
    call.entry.model_served = plan.model
    stored = responses.StoredResponse(plan, items, call.entry, asyncio.get_running_loop().time(), 0.0)
    call.state.shelf("response").put(plan.id, stored)
    sent = 0
    try:
        for made in EventStream(plan).events():
            await socket.send(made.payload | tag, paced=made.payload["type"].endswith(".delta"))
            sent = made.output_tokens
    except (ConnectionError, asyncio.CancelledError):
        book(call.entry, msgspec.structs.replace(plan.usage, output_tokens=sent))
        raise
    if plan.status != "failed":
        book(call.entry, plan.usage)
