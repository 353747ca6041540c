"""A fast upstream: fixed answers in OpenAI's shapes, chosen by the model's name. Run on a core of its own.

Models: `fail-*` answers 500, `limit-*` 429 with Retry-After, anything else 200. With `"stream":true` in the body the
answer is a chat stream of `--events` events, `--gap` seconds apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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
_LIMITED = b'{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}'


def _whole(status: str, body: bytes, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"x-request-id: req_bench\r\nopenai-processing-ms: 1\r\n{more}\r\n"
    )
    return head.encode() + body


OK = _whole("200 OK", _ANSWER)
FAILED = _whole("500 Internal Server Error", _FAILED)
LIMITED = _whole("429 Too Many Requests", _LIMITED, "Retry-After: 1\r\n")
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    b"x-request-id: req_bench\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream_events(count: int) -> list[bytes]:
    """Return the events of a stream, the terminal one included."""
    events = [
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"gpt-4.1-mini-2025-04-14",'
        b'"choices":[{"index":0,"delta":{"content":"word%d "},"finish_reason":null}],"usage":null}\n\n' % number
        for number in range(count)
    ]
    usage = (
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"gpt-4.1-mini-2025-04-14",'
        b'"choices":[],"usage":{"prompt_tokens":200,"completion_tokens":%d,"total_tokens":%d}}\n\n'
    ) % (count, count + 200)
    return [*events, usage, b"data: [DONE]\n\n"]


class Upstream(asyncio.Protocol):
    """One connection. Requests come one after the other, as from a pooled client."""

    events: list[bytes]
    gap_seconds: float

    def __init__(self) -> None:
        self._buffer = b""
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
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _content_length(self._buffer[:end])
            total = end + 4 + length
            if len(self._buffer) < total:
                return
            body, self._buffer = self._buffer[end + 4 : total], self._buffer[total:]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        assert self._transport is not None
        if b'"model":"fail-' in body or b'"model": "fail-' in body:
            self._transport.write(FAILED)
        elif b'"model":"limit-' in body or b'"model": "limit-' in body:
            self._transport.write(LIMITED)
        elif b'"stream":true' in body or b'"stream": true' in body:
            self._stream = asyncio.create_task(self._send_stream(self._transport))
        else:
            self._transport.write(OK)

    async def _send_stream(self, transport: asyncio.Transport) -> None:
        transport.write(STREAM_HEAD)
        for event in self.events:
            if self.gap_seconds:
                await asyncio.sleep(self.gap_seconds)
            transport.write(_chunk(event))
        transport.write(b"0\r\n\r\n")


def _content_length(head: bytes) -> int:
    position = head.lower().find(b"content-length:")
    if position < 0:
        return 0
    return int(head[position + 15 :].split(b"\r\n", 1)[0])


async def serve(port: int, events: int, gap_seconds: float) -> None:
    """Serve until cancelled; print the port."""
    Upstream.events = stream_events(events)
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
