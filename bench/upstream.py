"""A fast upstream: fixed answers in OpenAI's shapes, chosen by the model's name. Run on a core of its own.

Models: `fail-*` answers 500, `mostly-*` 500 nine times of ten, anything else 200. With `"stream":true` in the body
the answer is a chat stream of `--events` events, `--gap` seconds apart. Each event holds the moment at which it was
sent, in nanoseconds of the machine's monotonic clock, so that the reader can tell how long it was under way.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from typing import cast

import uvloop

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4.1-mini-2025-04-14",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "y" * 700}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 200, "completion_tokens": 100, "total_tokens": 300},
    }
).encode()
_FAILED = b'{"error":{"message":"The server had an error","type":"server_error","param":null,"code":null}}'


def _whole(status: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"x-request-id: req_bench\r\nopenai-processing-ms: 1\r\n\r\n"
    )
    return head.encode() + body


OK = _whole("200 OK", _ANSWER)
FAILED = _whole("500 Internal Server Error", _FAILED)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    b"x-request-id: req_bench\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STAMP_DIGITS = 19
_NO_STAMP = b"0" * STAMP_DIGITS


def stream_events(count: int, *, usage: bool) -> list[bytes]:
    """Return the events of a stream with stamps of zeros, the terminal event included."""
    events = [
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"gpt-4.1-mini-2025-04-14",'
        b'"sent":"%b","choices":[{"index":0,"delta":{"content":"word%d "},"finish_reason":null}]}\n\n'
        % (_NO_STAMP, number)
        for number in range(count)
    ]
    if usage:
        events.append(
            b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,'
            b'"model":"gpt-4.1-mini-2025-04-14","choices":[],'
            b'"usage":{"prompt_tokens":200,"completion_tokens":%d,"total_tokens":%d}}\n\n' % (count, count + 200)
        )
    return [*events, b"data: [DONE]\n\n"]


def stamped(event: bytes) -> bytes:
    """Return the event with the present moment in it."""
    return event.replace(_NO_STAMP, b"%019d" % time.monotonic_ns(), 1)


class Upstream(asyncio.Protocol):
    """One connection. Requests come one after the other, as from a pooled client."""

    events: dict[bool, list[bytes]]
    gap_seconds: float
    _turn = itertools.count()

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._missing = 0
        self._transport: asyncio.Transport | None = None
        self._stream: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop a stream that nobody reads."""
        del exc
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        buffer = b"".join(self._parts) if len(self._parts) > 1 else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            total = end + 4 + _content_length(buffer[:end])
            if len(buffer) < total:
                self._missing = total - len(buffer)
                break
            self._answer(buffer[end + 4 : total])
            buffer = buffer[total:]
        self._parts = [buffer] if buffer else []

    def _answer(self, body: bytes) -> None:
        assert self._transport is not None
        head = body if len(body) < 4096 else body[:2048] + body[-2048:]
        if b'"model":"fail-' in head or b'"model": "fail-' in head:
            self._transport.write(FAILED)
        elif b'"model":"mostly-' in head or b'"model": "mostly-' in head:
            self._transport.write(FAILED if next(self._turn) % 10 else OK)
        elif b'"stream":true' in head or b'"stream": true' in head:
            usage = b'"include_usage":true' in head or b'"include_usage": true' in head
            self._stream = asyncio.create_task(self._send_stream(self._transport, self.events[usage]))
        else:
            self._transport.write(OK)

    async def _send_stream(self, transport: asyncio.Transport, events: list[bytes]) -> None:
        transport.write(STREAM_HEAD)
        for event in events:
            transport.write(_chunk(stamped(event)))
            if self.gap_seconds:
                await asyncio.sleep(self.gap_seconds)
        transport.write(b"0\r\n\r\n")


def _content_length(head: bytes) -> int:
    position = head.lower().find(b"content-length:")
    if position < 0:
        return 0
    return int(head[position + 15 :].split(b"\r\n", 1)[0])


async def serve(port: int, events: int, gap_seconds: float) -> None:
    """Serve until cancelled; print the port."""
    Upstream.events = {usage: stream_events(events, usage=usage) for usage in (False, True)}
    Upstream.gap_seconds = gap_seconds
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--gap", type=float, default=0.0)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.events, arguments.gap))


if __name__ == "__main__":
    main()
