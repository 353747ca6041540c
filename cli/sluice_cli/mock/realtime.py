"""Realtime sessions over a WebSocket: items and audio in, one answer at a time out."""

import asyncio
import base64
from typing import Any, Final

import msgspec

from sluice_cli.mock.answers import Answer, JsonAnswer, SentAnswer
from sluice_cli.mock.content import Prompt, Reply, digest, grouped, measure, reply_for, usage_for
from sluice_cli.mock.errors import ApiError, ErrorShape, missing
from sluice_cli.mock.ledger import Usage
from sluice_cli.mock.sockets import Socket, book, error_of, open_socket, unknown_event
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject

_MAX_ITEMS: Final = 1000
_SECRET_LIFE_SECONDS: Final = 600
_AUDIO_BYTES_PER_TOKEN: Final = 4800  # a tenth of a second of 24 kHz, 16 bit


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
                    await self._send("error", error=error_of(exc.shape) | {"event_id": event.get("event_id")})
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
                raise unknown_event(event)

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
        book(call.entry, usage)
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


async def connect(call: Call) -> Answer:
    """Answer `GET /realtime?model=...` as a WebSocket."""
    if call.entry.model_requested is None:
        raise missing("model")
    ws = await open_socket(call)
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
