"""WebSocket calls (realtime, responses): messages pass both ways as they come, each side slowed by the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
from aiohttp import WSMsgType, web

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
CLOSE_SECONDS = 5.0
POLICY_CODE = 1008
KEY_PROTOCOL = "openai-insecure-api-key."
"""Browsers carry a key in a subprotocol of this prefix. It is the application's own and is dropped like its header."""

Look = Callable[[str | bytes], str | None]
Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
_END = frozenset({WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR})


def is_websocket(request: web.BaseRequest) -> bool:
    """Tell whether the application asks for a WebSocket."""
    return request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"


def protocols(request: web.BaseRequest) -> tuple[str, ...]:
    """Return the subprotocols that the application offers, keys left out."""
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    names = (name.strip() for name in offered.split(","))
    return tuple(name for name in names if name and not name.startswith(KEY_PROTOCOL))


def is_handshake_field(name: str) -> bool:
    """Tell whether a header field belongs to one hop's handshake."""
    return name.lower().startswith("sec-websocket-")


async def relay(
    application: web.WebSocketResponse,
    upstream: aiohttp.ClientWebSocketResponse,
    seen: Look,
    asked: Look,
) -> None:
    """Pass messages both ways until one side ends.

    `asked` is shown each message of the application, `seen` each one of the upstream. What they return is told to the
    application instead; for one of the upstream that is the end.
    """
    directions = {
        asyncio.create_task(_pass_on(application, upstream, asked, told=application)),
        asyncio.create_task(_pass_on(upstream, application, seen, told=application)),
    }
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for direction in directions:
            direction.cancel()
        await asyncio.gather(*directions, return_exceptions=True)


async def _pass_on(source: Socket, sink: Socket, look: Look, *, told: Socket) -> None:
    while True:
        message = await source.receive()
        if message.type in _END:
            await sink.close(code=source.close_code or 1011)
            return
        instead = look(message.data) if message.type in (WSMsgType.TEXT, WSMsgType.BINARY) else None
        try:
            if instead is None:
                await _send(sink, message)
                continue
            await told.send_str(instead)
            if told is sink:
                await sink.close(code=POLICY_CODE)
                return
        except (ConnectionError, RuntimeError):
            return


async def _send(sink: Socket, message: aiohttp.WSMessage) -> None:
    if message.type is WSMsgType.TEXT:
        await sink.send_str(message.data)
    elif message.type is WSMsgType.BINARY:
        await sink.send_bytes(message.data)
    elif message.type is WSMsgType.PING:
        await sink.ping(message.data)
    elif message.type is WSMsgType.PONG:
        await sink.pong(message.data)
