"""A WebSocket of the API: events one by one, booked as they leave, broken where a fault orders it."""

import asyncio
from typing import Final

import msgspec
from aiohttp import WSMsgType, web

from sluice_cli.mock.effects import Timing
from sluice_cli.mock.emission import abort
from sluice_cli.mock.errors import ERRORS, ApiError, ErrorShape
from sluice_cli.mock.ledger import LedgerEntry, Outcome, Usage
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject, encode_json

_MAX_MESSAGE_BYTES: Final = 16 << 20
_ORDERLY: Final = frozenset({1000, 1001, 1005})  # close codes of a client that is done


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


def book(entry: LedgerEntry, usage: Usage) -> None:
    """Add one answer to what the connection is billed."""
    former = entry.usage or Usage()
    names = Usage.__struct_fields__
    entry.usage = Usage(**{name: getattr(former, name) + getattr(usage, name) for name in names})
    entry.usage_sent = True
    entry.turns += 1


async def open_socket(call: Call) -> web.WebSocketResponse:
    """Upgrade the connection; 400 when the client did not ask for that."""
    ws = web.WebSocketResponse(max_msg_size=_MAX_MESSAGE_BYTES, protocols=("realtime",))
    if not ws.can_prepare(call.request):
        message = "This endpoint expects a WebSocket upgrade."
        raise ApiError(msgspec.structs.replace(ERRORS["invalid_request"], message=message))
    ws.headers["x-request-id"] = call.entry.request_id
    await ws.prepare(call.request)
    call.entry.status = 101
    return ws


def unknown_event(event: JsonObject) -> ApiError:
    """Refuse an event that is not part of the protocol."""
    message = f"Invalid value: '{event.get('type')}'. Supported values are those of the API reference."
    return ApiError(ErrorShape(status=400, type="invalid_request_error", code="invalid_value", message=message))


def error_of(shape: ErrorShape) -> JsonObject:
    """Write an error as error events carry it."""
    return {"type": shape.type, "code": shape.code, "message": shape.message, "param": shape.param}
