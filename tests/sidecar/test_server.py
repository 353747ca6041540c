"""The proxy port's server, below the pipeline: where it leaves aiohttp's own loop, it must behave as that does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluice_sidecar.downstream import BodyTooLargeError, BrokenBodyError, Downstream
from sluice_sidecar.incoming import Handshake, Incoming
from sluice_sidecar.incoming_connection import HEAD_SECONDS, IDLE_SECONDS, MAX_HEAD_BYTES
from sluice_sidecar.server import ProxyServer, silent_logger

Handler = Callable[[Incoming], Coroutine[None, None, web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[int, ProxyServer]]:
    """Serve on a free loopback port."""
    server = ProxyServer(handler)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1], server
    finally:
        listener.close()
        await server.shutdown(0.1)


async def echo(request: Incoming) -> web.StreamResponse:
    """Answer with the path and the body that came."""
    downstream = Downstream(request, closing=False)
    body = await downstream.read_body()
    await downstream.send(200, "OK", [], request.raw_path.encode() + b":" + body)
    return downstream.reply


async def drop(request: Incoming) -> web.StreamResponse:
    """Answer without a look at the body."""
    downstream = Downstream(request, closing=False)
    await downstream.send(200, "OK", [], request.raw_path.encode())
    return downstream.reply


async def talk(port: int, *pieces: bytes, until: bytes = b"") -> bytes:
    """Send pieces, each in a segment of its own; return all that comes until the server closes, or until `until`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return await (reader.readuntil(until) if until else reader.read())
    finally:
        writer.close()


def post(path: str, body: bytes, *fields: str, chunks: int = 0) -> bytes:
    """Return a request; with `chunks`, its body in chunks of that size."""
    if chunks:
        parts = [body[at : at + chunks] for at in range(0, len(body), chunks)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        length = "Transfer-Encoding: chunked"
    else:
        framed, length = body, f"Content-Length: {len(body)}"
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", length, *fields, "", ""]).encode() + framed


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 2000), max_size=12),
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    chunks=st.sampled_from([0, 1, 7, 100]),
)
def test_requests_in_a_row_are_answered_in_order_however_they_are_cut(
    cuts: list[int], bodies: list[bytes], chunks: int
) -> None:
    """Pipelined or one by one, in one segment or in many, each request gets its own answer, and in turn."""
    requests = [post(f"/{number}", body, chunks=chunks) for number, body in enumerate(bodies)]
    text = b"".join(requests) + b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    edges = sorted({cut for cut in cuts if cut < len(text)})
    pieces = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]

    async def scenario() -> bytes:
        async with serving(echo) as (port, _):
            return await talk(port, *pieces)

    expected = b""
    for number, body in enumerate(bodies):
        answer = b"/%d:" % number + body
        expected += b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer
    expected += b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n/last:"
    assert asyncio.run(scenario()) == expected


async def test_many_requests_at_once_wait_in_a_line_that_is_bounded() -> None:
    """More requests than the parser puts in line are all answered."""
    async with serving(echo) as (port, _):
        last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answers = await talk(port, b"".join(post(f"/{n}", b"b" * 50) for n in range(500)) + last)
    assert [part.split(b"\r\n\r\n")[1] for part in answers.split(b"HTTP/1.1 200 OK\r\n")[1:-1]] == [
        b"/%d:" % n + b"b" * 50 for n in range(500)
    ]


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
@pytest.mark.parametrize("chunks", [0, 65_536])
async def test_a_body_of_any_size_arrives_whole(size: int, chunks: int) -> None:
    """A body that is larger than what the server holds back is read on as soon as it is taken."""
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    async with serving(echo) as (port, _):
        answer = await talk(port, post("/", body, "Connection: close", chunks=chunks))
    assert answer.endswith(b"/:" + body)


async def test_a_body_that_nobody_wants_is_read_after_the_answer() -> None:
    """A client that sends everything before it reads gets its answer, and the connection goes on."""
    async with serving(drop) as (port, _):
        body = b"x" * 2_000_000
        answers = await talk(port, post("/1", body), b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n", until=b"/2")
    assert answers.count(b"HTTP/1.1 200 OK") == 2


async def test_a_body_above_the_limit_is_refused_before_it_has_all_come() -> None:
    """At most the limit is read into memory, whether the length is declared or not."""
    refused: list[str] = []

    async def bounded(request: Incoming) -> web.StreamResponse:
        downstream = Downstream(request, closing=True)
        try:
            await downstream.read_body(limit=1000)
        except BodyTooLargeError:
            refused.append(request.raw_path)
        await downstream.send(413, "", [], b"")
        return downstream.reply

    async with serving(bounded) as (port, _):
        await talk(port, post("/length", b"x" * 5000))
        await talk(port, post("/chunks", b"x" * 5000, chunks=100))
    assert refused == ["/length", "/chunks"]


async def test_what_is_no_http_is_answered_without_a_quotation() -> None:
    """The answer has the API's shape, and the connection ends."""
    async with serving(echo) as (port, _):
        answer = await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\nsk-secret\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Connection: close" in head
    assert b'"code":"invalid_request"' in body.replace(b" ", b"") or b"invalid" in body
    assert b"sk-secret" not in answer


async def test_a_fault_of_the_handler_is_answered_and_ends_the_connection() -> None:
    """Its text is in no answer."""

    async def faulty(request: Incoming) -> web.StreamResponse:
        raise ValueError("sk-secret")

    async with serving(faulty) as (port, _):
        answer = await talk(port, post("/", b"x"))
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"sk-secret" not in answer


async def greet(request: Incoming) -> web.StreamResponse:
    """Open a WebSocket and send one message."""
    assert request.handshake is not None
    socket = web.WebSocketResponse()
    await socket.prepare(request.handshake)
    await socket.send_str("hello")
    await socket.close()
    return socket


HANDSHAKE = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        pytest.param(HANDSHAKE + KEY + b"Connection: Upgrade\r\n\r\n", b"101", id="whole"),
        pytest.param(HANDSHAKE + b"Connection: Upgrade, close\r\n\r\n", b"400", id="without-a-key"),
    ],
)
async def test_an_upgrade_is_granted_or_refused_as_aiohttp_does(request_head: bytes, status: bytes) -> None:
    """A handshake with something missing is the client's fault, not the server's."""
    async with serving(greet) as (port, _):
        answer = await talk(port, request_head, until=b"hello" if status == b"101" else b"\r\n\r\n")
    assert answer.split(b" ")[1] == status


async def test_what_follows_a_declined_upgrade_is_the_next_request() -> None:
    """The client may have sent it already."""
    async with serving(echo) as (port, _):
        answers = await talk(
            port, HANDSHAKE + KEY + b"Connection: Upgrade\r\n\r\n" + post("/2", b"x", "Connection: close")
        )
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.endswith(b"/2:x")


async def test_a_handler_is_cancelled_when_its_client_goes() -> None:
    """Nobody works for an answer that cannot be delivered."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(request: Incoming) -> web.StreamResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async with serving(slow) as (port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/", b""))
        await begun.wait()
        writer.close()
        async with asyncio.timeout(5):
            await cancelled.wait()


async def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing_behind() -> None:
    """The handler's reading ends at once."""
    ended = asyncio.Event()

    async def reading(request: Incoming) -> web.StreamResponse:
        try:
            return await echo(request)
        finally:
            ended.set()

    async with serving(reading) as (port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        await writer.drain()
        writer.close()
        async with asyncio.timeout(5):
            await ended.wait()


async def test_shutting_down_waits_for_the_call_under_way() -> None:
    """An answer that is being made is still delivered; idle connections are closed."""
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def slow(request: Incoming) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        return await echo(request)

    async with serving(slow) as (port, server):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        call = asyncio.create_task(talk(port, post("/", b"x")))
        await begun.wait()
        stopping = asyncio.create_task(server.shutdown(5))
        await asyncio.sleep(0)
        go_on.set()
        assert (await call).endswith(b"/:x")
        await stopping
        assert await idle.read() == b""
        idle_writer.close()


async def test_an_idle_connection_is_closed_in_the_end() -> None:
    """What neither speaks nor leaves holds no connection for ever."""
    async with serving(echo) as (port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post("/", b"x"))
        await reader.readuntil(b"/:x")
        [connection] = server.connections
        now = asyncio.get_running_loop().time()
        connection.look_at_clock(now)
        connection.look_at_clock(now + IDLE_SECONDS + 1)
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("mark", [b"\r", b"\n", b"\0", b"\x7f", b"\x01"])
async def test_no_control_character_comes_in_by_a_field(mark: bytes) -> None:
    """Fields are passed on as they came, so that what could end a line must not have come."""
    seen: list[bytes] = []

    async def look(request: Incoming) -> web.StreamResponse:
        seen.extend(part.encode("latin-1") for field in request.fields.pairs() for part in field)
        return await echo(request)

    async with serving(look) as (port, _):
        for field in (b"X: a%bb", b"X%b: a", b"X: a\r\n%bEvil: 1"):
            head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + field % mark
            await talk(port, head + b"\r\n\r\n")
    assert not [part for part in seen if set(part) & set(b"\r\n\0")]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no-host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", id="two-hosts"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: a\r\ncontent-type: b\r\n\r\n", id="two-types"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", id="later-version"),
        pytest.param(b"GET / HTTP/0.9\r\nHost: x\r\n\r\n", id="earlier-version"),
        pytest.param(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long-target"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", id="long-field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 300 + b"\r\n", id="many-fields"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (MAX_HEAD_BYTES + 100_000), id="endless-field"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", id="2"),
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", id="lengths"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n folded\r\n\r\n", id="folded-field"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", id="space-before-colon"),
        pytest.param(b"GET / HTTP/1.1\nHost: x\n\n", id="bare-line-feeds"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="tls"),
    ],
)
async def test_a_head_that_is_wrong_ambiguous_or_too_large_is_refused(head: bytes) -> None:
    """It reaches no handler, and nothing that follows it is read as a request."""
    seen: list[str] = []

    async def note(request: Incoming) -> web.StreamResponse:
        seen.append(request.raw_path)
        return await echo(request)

    async with serving(note) as (port, _):
        answer = await talk(port, head + b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert not seen


@pytest.mark.parametrize("rest", [b"zz\r\n", b"5\r\nabcdeX", b"0\r\nBad Trailer\r\n\r\n", b"1;" + b"x" * 400_000])
async def test_a_body_that_is_framed_wrongly_ends_its_call_and_the_connection(rest: bytes) -> None:
    """The handler learns of it; what follows is not read as a request."""
    seen: list[str] = []

    async def bounded(request: Incoming) -> web.StreamResponse:
        downstream = Downstream(request, closing=False)
        try:
            await downstream.read_body()
        except BrokenBodyError:
            seen.append(request.raw_path)
        await downstream.send(400, "", [], b"broken")
        return downstream.reply

    head = b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(bounded) as (port, _):
        answer = await talk(port, head + rest + b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"broken")
    assert seen == ["/1"]


async def test_a_body_before_another_protocol_is_no_request() -> None:
    """A client that offers HTTP/2 with its call is served by the protocol that it speaks."""
    fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(echo) as (port, _):
        answers = await talk(port, post("/1", smuggled, *fields), post("/2", b"x", "Connection: close"))
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert b"/1:" + smuggled in answers
    assert answers.endswith(b"/2:x")


async def test_an_upgrade_waits_for_the_answers_before_it() -> None:
    """It may have been sent along with other requests, and messages of the new protocol along with it."""
    async with serving(lambda request: (echo if request.handshake is None else greet)(request)) as (port, server):
        answers = await talk(port, post("/1", b"x") + HANDSHAKE + KEY + b"Connection: Upgrade\r\n\r\n", until=b"hello")
        assert not server.connections
    assert answers.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"/1:xHTTP/1.1 101 " in answers


async def test_an_upgrade_that_the_connection_field_does_not_name_is_none() -> None:
    """Such a field concerns no one."""
    async with serving(echo) as (port, _):
        answer = await talk(port, HANDSHAKE + KEY + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_head_that_does_not_come_to_its_end_holds_no_connection() -> None:
    """A connection may wait for long between two requests, but not within one."""
    async with serving(echo) as (port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        await writer.drain()
        async with asyncio.timeout(5):
            while not server.connections or not (connection := next(iter(server.connections)))._head_since:  # noqa: ASYNC110 - the server tells nobody of this
                await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        connection.look_at_clock(now + HEAD_SECONDS / 2)
        assert connection.transport is not None
        assert not connection.transport.is_closing()
        connection.look_at_clock(now + HEAD_SECONDS + 1)
        assert await reader.read() == b""
        writer.close()


async def test_a_client_is_read_no_faster_than_its_body_is_taken() -> None:
    """What is held of a body that nobody reads is bounded; once it is read, all of it comes."""
    go_on = asyncio.Event()
    body = b"x" * 20_000_000

    async def late(request: Incoming) -> web.StreamResponse:
        await go_on.wait()
        return await echo(request)

    async with serving(late) as (port, server):
        call = asyncio.create_task(talk(port, post("/", body, "Connection: close")))
        async with asyncio.timeout(5):
            while not server.connections or not (connection := next(iter(server.connections)))._paused:  # noqa: ASYNC110 - the server tells nobody of this
                await asyncio.sleep(0)
        assert connection._held < 1_000_000
        go_on.set()
        assert (await call).endswith(b"/:" + body)


async def test_a_flood_of_requests_is_bounded() -> None:
    """Nobody sends thousands of requests before reading an answer."""
    async with serving(drop) as (port, _):
        answers = await talk(port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 100_000, until=b"\r\n\r\n/")
    assert answers.startswith(b"HTTP/1.1 200 OK\r\n")


_FRAGMENTS = st.sampled_from(
    [
        *(b"GET / HTTP/1.1\r\n", b"POST /a HTTP/1.1\r\n", b"HEAD /h HTTP/1.0\r\n", b"OPTIONS * HTTP/1.1\r\n"),
        *(b"Host: x\r\n", b"Host: y\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length:+5\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: x\r\n"),
        *(
            b"Connection: close\r\n",
            b"Connection: keep-alive\r\n",
            b"Expect: 100-continue\r\n",
            b"X:\r\n",
            b"X:a \r\n",
        ),
        *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b"hello", b"5\r\nhello\r\n", b"0\r\n\r\n"),
        *(b"5;x=y\r\nhello\r\n", b"0\r\nT: v\r\n\r\n", b"A\r\n0123456789\r\n", b"\xc3\xa9", b"PRI * HTTP/2.0\r\n\r\n"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_FRAGMENTS, min_size=1, max_size=14), st.integers(1, 80))
@example([b"HEAD /h HTTP/1.0\r\n", b"\r\n", b"GET / HTTP/1.1\r\n"], 1)
def test_bytes_are_taken_for_the_requests_that_aiohttp_takes_them_for(fragments: list[bytes], cut: int) -> None:
    """Another parser beside it, as strict: whatever is sent, the same calls are answered, up to the first doubt."""
    text = b"".join(fragments)

    async def calls(ours: bool) -> list[tuple[str, str, bytes]]:
        seen: list[tuple[str, str, bytes]] = []

        async def note(request: Incoming) -> web.StreamResponse:
            downstream = Downstream(request, closing=False)
            with contextlib.suppress(BrokenBodyError):
                seen.append((request.method, request.raw_path, await downstream.read_body()))
            await downstream.send(200, "OK", [], b"")
            return downstream.reply

        async def reference(request: web.BaseRequest) -> web.StreamResponse:
            return await note(Handshake(request))

        server: Any = ProxyServer(note) if ours else web.Server(reference, access_log=None, logger=silent_logger())
        protocol = server()
        transport = _Transport()
        protocol.connection_made(transport)
        # aiohttp drops a request with which something doubtful has come, so it is given one byte after the other.
        pieces = (text[:cut], text[cut:]) if ours else tuple(text[at : at + 1] for at in range(len(text)))
        for piece in pieces:
            if piece and not transport.closed and not transport.paused:
                protocol.data_received(piece)
            for _ in range(30):
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        await server.shutdown(0.1)
        return seen

    assert asyncio.run(calls(True)) == asyncio.run(calls(False))


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        del data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
