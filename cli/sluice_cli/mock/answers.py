"""What an endpoint decides to answer: values that the server then sends as the faults of the call say."""

from collections.abc import AsyncIterable, Iterable, Mapping

import msgspec
from aiohttp import web

from sluice_cli.mock.ledger import Usage


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """
    One event of a stream.

    `output_tokens` is what has been generated once it is sent; `due_seconds` when it exists at the earliest
    (event loop time), for a stream that follows a response running in the background.
    """

    data: bytes
    output_tokens: int = 0
    due_seconds: float | None = None


class JsonAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole JSON body. `events` is how many gaps of generation it takes to make."""

    payload: object
    usage: Usage | None = None
    usage_sent: bool = True
    events: int = 0
    failure: str | None = None  # the error code of a failure inside a 200


class StreamAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """
    A stream of events, and what it costs when it runs to its end.

    A `detached` stream only follows work that goes on, and is billed whole, when nobody listens.
    """

    frames: Iterable[Frame]
    usage: Usage | None = None
    usage_sent: bool = True
    failure: str | None = None
    detached: bool = False


class BytesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A body of bytes, known whole or made as it goes."""

    content_type: str
    chunks: AsyncIterable[bytes] | bytes
    length_bytes: int | None = None
    headers: Mapping[str, str] = {}
    usage: Usage | None = None
    usage_sent: bool = False


class SentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoint has spoken for itself, as one over a WebSocket does."""

    response: web.StreamResponse
    usage: Usage | None = None


Answer = JsonAnswer | StreamAnswer | BytesAnswer | SentAnswer
