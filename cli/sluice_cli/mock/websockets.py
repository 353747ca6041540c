"""Realtime and responses over a WebSocket: sessions, one generated answer per `response.create`."""

import asyncio
import base64
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from sluice_cli.mock import responses
from sluice_cli.mock.answers import Answer, JsonAnswer, SentAnswer
from sluice_cli.mock.content import Prompt, Reply, digest, grouped, measure, reply_for, usage_for
from sluice_cli.mock.effects import Timing
from sluice_cli.mock.emission import abort
from sluice_cli.mock.errors import ERRORS, ApiError, ErrorShape, missing
from sluice_cli.mock.ledger import LedgerEntry, Outcome, Usage
from sluice_cli.mock.response_events import EventStream
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject, encode_json

_MAX_MESSAGE_BYTES: Final = 16 << 20
_MAX_ITEMS: Final = 1000
_ORDERLY: Final = frozenset({1000, 1001, 1005})  # close codes of a client that is done
_SECRET_LIFE_SECONDS: Final = 600
_AUDIO_BYTES_PER_TOKEN: Final = 4800  # a tenth of a second of 24 kHz, 16 bit


class Socket:
    """One WebSocket and the books of its call; breaks where a fault orders it."""

    __slots__ = ("_call", "_stall_seconds", "_timing", "_ws")

    def __init__(self, call: Call, ws: web.WebSocketResponse) -> None:
        self._call = call
        self._ws = ws
        self._stall_seconds = call.effect.stall_seconds or 0.0
        self._timing = Timing.of(call.effect)

    async def send(self, event: JsonObject, *, paced: bool = False) -> None:
        """Send one event; `ConnectionError` when the fault cuts here."""
        entry, effect = self._call.entry, self._call.effect
        if effect.cut_at_event is not None and entry.sent_events >= effect.cut_at_event:
            entry.outcome = Outcome.CUT
            abort(self._call.request, reset=bool(effect.reset))
            raise ConnectionResetError("cut as ordered")
        if effect.stall_at_event == entry.sent_events and self._stall_seconds:
            seconds, self._stall_seconds = self._stall_seconds, 0.0  # once, also when it is cancelled
            await asyncio.sleep(seconds)
        if paced and self._timing.gap is not None:
            await asyncio.sleep(self._timing.gap.draw(self._call.state.random.random()))
        data = encode_json(event)
        await self._ws.send_str(data.decode())
        entry.sent_bytes += len(data)
        entry.sent_events += 1

    async def receive(self) -> JsonObject | None:
        """Wait for the client's next event; None when the client is done."""
        async for message in self._ws:
            if message.type is not WSMsgType.TEXT:
                continue
            self._call.entry.received_bytes += len(message.data)
            try:
                return msgspec.json.decode(message.data, type=JsonObject)
            except msgspec.MsgspecError:
                return {"type": "not JSON"}
        if self._ws.close_code in _ORDERLY and self._call.entry.outcome is Outcome.IN_FLIGHT:
            # Now, because the lost connection cancels whatever would come later.
            self._call.entry.outcome = Outcome.COMPLETED
        return None


def _book(entry: LedgerEntry, usage: Usage) -> None:
    """Add one answer to what the connection is billed."""
    former = entry.usage or Usage()
    names = Usage.__struct_fields__
    entry.usage = Usage(**{name: getattr(former, name) + getattr(usage, name) for name in names})
    entry.usage_sent = True
    entry.turns += 1


async def _open(call: Call) -> web.WebSocketResponse:
    ws = web.WebSocketResponse(max_msg_size=_MAX_MESSAGE_BYTES, protocols=("realtime",))
    if not ws.can_prepare(call.request):
        message = "This endpoint expects a WebSocket upgrade."
        raise ApiError(msgspec.structs.replace(ERRORS["invalid_request"], message=message))
    ws.headers["x-request-id"] = call.entry.request_id
    await ws.prepare(call.request)
    call.entry.status = 101
    return ws


async def connect_responses(call: Call) -> Answer:
    """Answer `GET /responses` as a WebSocket: each `response.create` gets the events of one stream."""
    ws = await _open(call)
    socket = Socket(call, ws)
    while (event := await socket.receive()) is not None:
        tag = {"stream_id": event["stream_id"]} if "stream_id" in event else {}
        try:
            if event.get("type") != "response.create":
                raise _unknown_event(event)
            await _respond(call, socket, event, tag)
        except ApiError as exc:
            await socket.send({"type": "error", "status": exc.shape.status, "error": _error(exc.shape), **tag})
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
        _book(call.entry, msgspec.structs.replace(plan.usage, output_tokens=sent))
        raise
    if plan.status != "failed":
        _book(call.entry, plan.usage)


def _unknown_event(event: JsonObject) -> ApiError:
    message = f"Invalid value: '{event.get('type')}'. Supported values are those of the API reference."
    return ApiError(ErrorShape(status=400, type="invalid_request_error", code="invalid_value", message=message))


def _error(shape: ErrorShape) -> JsonObject:
    return {"type": shape.type, "code": shape.code, "message": shape.message, "param": shape.param}


class Realtime:
    """One realtime session: its configuration, the conversation, and the answer in the making."""

    def __init__(self, call: Call, socket: Socket) -> None:
        self._call = call
        self._socket = socket
        self._items: list[JsonObject] = []
        self._audio_bytes = 0
        self._answer: asyncio.Task[None] | None = None
        self._session: JsonObject = {
            "id": call.state.new_id("sess_"),
            "type": "realtime",
            "object": "realtime.session",
            "model": call.entry.model_requested,
            "output_modalities": ["text"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
        }

    async def run(self) -> None:
        """Serve the session until the client is done."""
        await self._send("session.created", session=self._session)
        try:
            while (event := await self._socket.receive()) is not None:
                try:
                    await self._take(event)
                except ApiError as exc:
                    await self._send("error", error=_error(exc.shape) | {"event_id": event.get("event_id")})
        finally:
            await self._stop()

    async def _take(self, event: JsonObject) -> None:
        match event.get("type"):
            case "session.update":
                self._session |= event.get("session") or {}
                await self._send("session.updated", session=self._session)
            case "conversation.item.create":
                await self._add({"status": "completed", **(event.get("item") or {})})
            case "input_audio_buffer.append":
                self._audio_bytes += len(base64.b64decode(event.get("audio", "")))
            case "input_audio_buffer.clear":
                self._audio_bytes = 0
                await self._send("input_audio_buffer.cleared")
            case "input_audio_buffer.commit":
                await self._commit()
            case "response.create":
                if self._answer is not None and not self._answer.done():
                    message = "Conversation already has an active response."
                    code = "conversation_already_has_active_response"
                    shape = ErrorShape(status=400, type="invalid_request_error", code=code, message=message)
                    raise ApiError(shape)
                self._answer = asyncio.create_task(self._generate(event.get("response") or {}))
            case "response.cancel":
                await self._stop()
            case _:
                raise _unknown_event(event)

    async def _commit(self) -> None:
        item = {
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        await self._add(item, committed=True)

    async def _add(self, item: JsonObject, *, committed: bool = False) -> None:
        item = {"id": self._call.state.new_id("item_"), "object": "realtime.item", **item}
        previous = self._items[-1]["id"] if self._items else None
        self._items = [*self._items, item][-_MAX_ITEMS:]
        if committed:
            await self._send("input_audio_buffer.committed", item_id=item["id"], previous_item_id=previous)
        await self._send("conversation.item.added", item=item, previous_item_id=previous)
        await self._send("conversation.item.done", item=item, previous_item_id=previous)

    async def _generate(self, options: JsonObject) -> None:
        """Send one answer; when it is cancelled, say so and bill what there was."""
        call = self._call
        instructions = options.get("instructions") or self._session.get("instructions") or ""
        maximum = options.get("max_output_tokens") or self._session.get("max_output_tokens")
        prompt = Prompt(
            model=call.entry.model_requested or "",
            seed=digest(self._session["model"], [item.get("content") for item in self._items], instructions),
            characters=measure(self._items)[0] + len(instructions),
            messages=len(self._items),
            max_tokens=maximum if isinstance(maximum, int) else None,
        )
        reply = reply_for(prompt, call.effect)
        heard = self._audio_bytes // _AUDIO_BYTES_PER_TOKEN
        whole = usage_for(prompt, reply.tokens, call.effect)
        usage = msgspec.structs.replace(
            whole, input_tokens=whole.input_tokens + heard, audio_input_tokens=whole.audio_input_tokens + heard
        )
        response: JsonObject = {
            "id": call.state.new_id("resp_"),
            "object": "realtime.response",
            "status": "in_progress",
            "status_details": None,
            "output": [],
            "output_modalities": ["text"],
            "usage": None,
        }
        done = 0
        try:
            await self._send("response.created", response=response)
            done = await self._content(response, reply)
        except asyncio.CancelledError:
            done = response.pop("generated", 0)
            response["status_details"] = {"type": "cancelled", "reason": "client_cancelled"}
        response.pop("generated", None)
        completed = done == len(reply.pieces)
        response["status"] = "completed" if completed else "cancelled"
        if not completed:
            usage = msgspec.structs.replace(usage, output_tokens=done)
        response["usage"] = _realtime_usage(usage)
        _book(call.entry, usage)
        await self._send("response.done", response=response)
        await self._send("rate_limits.updated", rate_limits=_RATE_LIMITS)

    async def _content(self, response: JsonObject, reply: Reply) -> int:
        """Send the answer's item and its text by deltas; return the tokens generated."""
        item: JsonObject = {
            "id": self._call.state.new_id("item_"),
            "object": "realtime.item",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        part = {"response_id": response["id"], "item_id": item["id"], "output_index": 0, "content_index": 0}
        whole = {"response_id": response["id"], "output_index": 0}
        await self._send("response.output_item.added", **whole, item=item)
        await self._send("response.content_part.added", **part, part={"type": "text", "text": ""})
        for text, upto in grouped(reply.pieces, self._call.effect.events):
            await self._send("response.output_text.delta", paced=True, **part, delta=text)
            response["generated"] = upto
        await self._send("response.output_text.done", **part, text=reply.text)
        await self._send("response.content_part.done", **part, part={"type": "text", "text": reply.text})
        item |= {"status": "completed", "content": [{"type": "output_text", "text": reply.text}]}
        await self._send("response.output_item.done", **whole, item=item)
        self._items = [*self._items, item][-_MAX_ITEMS:]
        response["output"] = [item]
        return len(reply.pieces)

    async def _stop(self) -> None:
        """Cancel the answer in the making and wait until it has said so."""
        if self._answer is None:
            return
        self._answer.cancel()
        await asyncio.gather(self._answer, return_exceptions=True)
        self._answer = None

    async def _send(self, kind: str, *, paced: bool = False, **fields: Any) -> None:
        event = {"type": kind, "event_id": self._call.state.new_id("event_"), **fields}
        await self._socket.send(event, paced=paced)


_RATE_LIMITS: Final = [
    {"name": "requests", "limit": 30_000, "remaining": 29_999, "reset_seconds": 0.002},
    {"name": "tokens", "limit": 150_000_000, "remaining": 149_999_000, "reset_seconds": 0.0},
]


def _realtime_usage(usage: Usage) -> JsonObject:
    return {
        "total_tokens": usage.total_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {
            "text_tokens": usage.input_tokens - usage.audio_input_tokens,
            "audio_tokens": usage.audio_input_tokens,
            "image_tokens": 0,
            "cached_tokens": usage.cached_tokens,
            "cached_tokens_details": {"text_tokens": usage.cached_tokens, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {
            "text_tokens": usage.output_tokens - usage.audio_output_tokens,
            "audio_tokens": usage.audio_output_tokens,
        },
    }


async def connect_realtime(call: Call) -> Answer:
    """Answer `GET /realtime?model=...` as a WebSocket."""
    if call.entry.model_requested is None:
        raise missing("model")
    ws = await _open(call)
    await Realtime(call, Socket(call, ws)).run()
    return SentAnswer(response=ws)


async def create_secret(call: Call) -> Answer:
    """Answer `POST /realtime/client_secrets`."""
    state = call.state
    session = {"type": "realtime", "model": "gpt-realtime", **(call.body.get("session") or {})}
    session |= {"id": state.new_id("sess_"), "object": "realtime.session"}
    payload = {
        "value": state.new_id("ek_"),
        "expires_at": state.created_at() + _SECRET_LIFE_SECONDS,
        "session": session,
    }
    return JsonAnswer(payload=payload)
