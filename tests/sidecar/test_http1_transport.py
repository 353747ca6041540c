"""The upstream client of our own, against servers that answer with scripted bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice_core.api.upstream import Timeouts
from sluice_core.records import Outcome
from sluice_sidecar.http1_transport import Http1Response, Http1Transport
from sluice_sidecar.transport import TransportError, UpstreamRequest

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve raw bytes on a free loopback port."""
    tasks = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def scripted(*pieces: bytes, requests: int = 1, close: bool = False) -> Handler:
    """Answer each of `requests` requests with these pieces, each in a segment of its own."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(requests):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        if not close:
            await reader.read()

    return handler


def a_request(base: str, **changes: object) -> UpstreamRequest:
    values: dict[str, object] = {
        "method": "GET",
        "url": f"{base}/v1/models",
        "lines": b"accept: */*\r\n",
        "body": None,
        "timeouts": Timeouts(connect_seconds=5, first_byte_seconds=5, idle_seconds=5),
    }
    return UpstreamRequest(**(values | changes))  # type: ignore[arg-type]


async def exchange(transport: Http1Transport, request: UpstreamRequest) -> tuple[int, list[tuple[str, str]], bytes]:
    response = await transport.send(request)
    body = b""
    while chunk := await response.next_chunk():
        body += chunk
    response.release()
    return response.status, response.fields.pairs(), body


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nX-A: 2\r\n\r\nhello"


async def test_status_fields_and_body_arrive_as_sent() -> None:
    """Repeated fields keep their order and their case."""
    async with serving(scripted(OK)) as base:
        transport = Http1Transport()

        assert await exchange(transport, a_request(base)) == (
            200,
            [("Content-Length", "5"), ("X-A", "1"), ("X-A", "2")],
            b"hello",
        )
        await transport.close()


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 120), max_size=12), chunked=st.booleans())
def test_any_segmentation_of_an_answer_gives_the_same_answer(cuts: list[int], chunked: bool) -> None:
    """Where the network cuts an answer makes no difference."""
    head = b"HTTP/1.1 200 OK\r\nX-A: b\r\n"
    if chunked:
        text = head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n"
    else:
        text = head + b"Content-Length: 11\r\n\r\nhello world"
    edges = sorted({cut for cut in cuts if cut < len(text)})
    pieces = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]

    async def scenario() -> bytes:
        async with serving(scripted(*pieces)) as base:
            transport = Http1Transport()
            _, _, body = await exchange(transport, a_request(base))
            await transport.close()
            return body

    assert asyncio.run(scenario()) == b"hello world"


async def test_a_connection_is_used_again() -> None:
    """Two exchanges in a row share a connection."""
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await scripted(OK, requests=2)(reader, writer)

    async with serving(handler) as base:
        transport = Http1Transport()
        await exchange(transport, a_request(base))
        await exchange(transport, a_request(base))
        await transport.close()

    assert connections == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end", id="framed-by-close"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nold", b"old", id="http-1.0"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", b"ok", id="close"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", id="no-content"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"hello", id="interim-answer-first"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"hello", id="early-hints-first"),
    ],
)
async def test_every_framing_is_understood(answer: bytes, body: bytes) -> None:
    """A body ends by length, by chunks, by the connection's end, or is not there."""
    async with serving(scripted(answer, close=True)) as base:
        transport = Http1Transport()
        assert (await exchange(transport, a_request(base)))[2] == body
        await transport.close()


async def test_an_answer_to_head_has_no_body() -> None:
    """The length that it names is that of a body which does not come."""
    async with serving(scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")) as base:
        transport = Http1Transport()
        assert (await exchange(transport, a_request(base, method="HEAD")))[2] == b""
        await transport.close()


@pytest.mark.parametrize(
    ("answer", "outcome", "code"),
    [
        pytest.param(b"", Outcome.CONNECTION_ERROR, "connection_closed", id="nothing"),
        pytest.param(b"HTTP/1.1 2", Outcome.CONNECTION_ERROR, "connection_closed", id="half-a-head"),
        pytest.param(b"hello\r\n\r\n", Outcome.CONNECTION_ERROR, "malformed_response", id="no-http"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
            Outcome.CONNECTION_ERROR,
            "malformed_response",
            id="framed-twice",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
            Outcome.CONNECTION_ERROR,
            "malformed_response",
            id="huge-head",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", Outcome.TRUNCATED, "body_truncated", id="cut"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
            Outcome.TRUNCATED,
            "malformed_response",
            id="bad-chunk",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            Outcome.TRUNCATED,
            "body_truncated",
            id="chunks-without-end",
        ),
        pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", None, None, id="upgrade"),
    ],
)
async def test_a_broken_answer_has_a_name(answer: bytes, outcome: Outcome | None, code: str | None) -> None:
    """Faults before the head differ from a body that ends too early; none is taken for an answer."""
    async with serving(scripted(answer, close=True)) as base:
        transport = Http1Transport()
        with pytest.raises(TransportError) as caught:
            await exchange(transport, a_request(base))
        await transport.close()

    if outcome is not None:
        assert (caught.value.outcome, caught.value.code) == (outcome, code)


async def test_nothing_is_reused_after_bytes_that_nobody_asked_for() -> None:
    """What follows an answer unasked may not become the answer to the next request."""
    async with serving(scripted(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")) as base:
        transport = Http1Transport()
        await exchange(transport, a_request(base))
        assert (await exchange(transport, a_request(base)))[2] == b"hello"
        await transport.close()


@pytest.mark.parametrize("target", ["/a\r\nEvil: 1", "/a\nb", "/\0", "/\u20ac"])
async def test_a_target_cannot_break_out_of_its_line(target: str) -> None:
    """Such a request is not sent at all."""
    transport = Http1Transport()
    with pytest.raises(TransportError, match="invalid_request"):
        await transport.send(a_request("http://127.0.0.1:9", url=f"http://127.0.0.1:9{target}"))
    await transport.close()


async def test_a_silent_upstream_is_given_up() -> None:
    """The time to the first byte is bounded."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as base:
        transport = Http1Transport()
        timeouts = Timeouts(connect_seconds=1, first_byte_seconds=1, idle_seconds=1)
        with pytest.raises(TransportError) as caught:
            await transport.send(a_request(base, timeouts=timeouts))
        await transport.close()

    assert (caught.value.outcome, caught.value.code) == (Outcome.TIMEOUT, "read_timeout")


async def test_a_refused_connection_has_a_name() -> None:
    """Nobody listens there."""
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    transport = Http1Transport()
    with pytest.raises(TransportError, match="connection_refused"):
        await transport.send(a_request(f"http://127.0.0.1:{port}"))
    await transport.close()


async def test_a_streamed_body_arrives_in_chunks_with_back_pressure() -> None:
    """A body of unknown length is sent as it comes."""
    received = b""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        while not received.endswith(b"0\r\n\r\n"):
            received += await reader.read(65536)
        writer.write(OK)
        await reader.read()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 100_000

    async with serving(handler) as base:
        transport = Http1Transport()
        status, _, _ = await exchange(transport, a_request(base, method="POST", body=body()))
        await transport.close()

    assert status == 200
    assert received.count(b"x") == 5_000_000


async def test_connections_are_bounded_and_given_back_on_every_path() -> None:
    """With one connection allowed, a cancelled, an aborted and a failed exchange each leave it to the next."""
    hold = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        if line == b"/hang":
            hold.set()
            await reader.read()
        elif line == b"/bad":
            writer.write(b"nonsense\r\n\r\n")
        else:
            writer.write(OK)
            await reader.read()

    async with serving(handler) as base:
        transport = Http1Transport(max_connections=1)
        task = asyncio.create_task(transport.send(a_request(base, url=f"{base}/hang")))
        await hold.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TransportError):
            await transport.send(a_request(base, url=f"{base}/bad"))
        (await transport.send(a_request(base))).abort()

        assert (await exchange(transport, a_request(base)))[0] == 200
        await transport.close()


async def test_a_slow_reader_stops_its_upstream() -> None:
    """What waits in memory for a reader that does not read stays within a bound."""
    sent = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"z" * 100_000)
            await writer.drain()
            sent += 100_000

    async with serving(handler) as base:
        transport = Http1Transport()
        response = await transport.send(a_request(base))
        previous = -1
        while previous != sent:  # until the upstream makes no progress over many turns of the loop
            previous = sent
            for _ in range(200):
                await asyncio.sleep(0)
        assert sent < 60_000_000

        read = 0
        while chunk := await response.next_chunk():
            read += len(chunk)
        response.release()
        await transport.close()

    assert read == 100_000_000


async def test_those_who_wait_for_a_connection_get_one_in_turn() -> None:
    """Never more than allowed at once; whoever gives up while waiting leaves the others their turn."""
    under_way = most = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        while await reader.readuntil(b"\r\n\r\n"):
            under_way += 1
            most = max(most, under_way)
            for _ in range(20):
                await asyncio.sleep(0)
            under_way -= 1
            writer.write(OK)

    async with serving(handler) as base:
        transport = Http1Transport(max_connections=2)
        tasks = [asyncio.create_task(exchange(transport, a_request(base))) for _ in range(20)]
        await asyncio.sleep(0)
        for task in tasks[5:15:2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert (await exchange(transport, a_request(base)))[0] == 200
        await transport.close()

    assert most == 2
    assert sum(isinstance(answer, asyncio.CancelledError) for answer in answers) == 5
    assert all(answer[0] == 200 for answer in answers if isinstance(answer, tuple))


async def test_waiting_for_a_connection_has_an_end() -> None:
    """The time to connect covers it, and the place in the line is given up."""
    async with serving(scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", OK[-5:])) as base:
        transport = Http1Transport(max_connections=1)
        held = await transport.send(a_request(base))
        timeouts = Timeouts(connect_seconds=1, first_byte_seconds=5, idle_seconds=5)
        with pytest.raises(TransportError, match="pool_timeout"):
            await transport.send(a_request(base, timeouts=timeouts))
        held.abort()
        (await transport.send(a_request(base))).abort()
        await transport.close()


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param((b"HTTP/1.1 200 OK\r\nX: ", b"y" * 10_000), id="head"),
        pytest.param((b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 400), id="interim-answers"),
        pytest.param(
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ", b"y" * 10_000), id="trailer"
        ),
    ],
)
async def test_what_is_no_body_is_bounded(endless: tuple[bytes, bytes]) -> None:
    """An upstream that never comes to the point is given up before it fills the memory."""
    begin, more = endless

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begin)
        while True:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(handler) as base:
        transport = Http1Transport()
        async with asyncio.timeout(10):
            with pytest.raises(TransportError, match="malformed_response"):
                await exchange(transport, a_request(base))
        await transport.close()


@pytest.mark.parametrize("mark", [b"\r", b"\n", b"\0", b"\x7f", b"\x01"])
async def test_no_control_character_comes_in_by_a_field(mark: bytes) -> None:
    """Fields are passed on as they came, so that what could end a line must not have come."""
    for field in (b"X: a%bb", b"X%b: a", b"X: a\r\n%bEvil: 1"):
        async with serving(scripted(b"HTTP/1.1 200 OK\r\n" + field % mark + b"\r\nContent-Length: 0\r\n\r\n")) as base:
            transport = Http1Transport()
            try:
                _, fields, _ = await exchange(transport, a_request(base))
            except TransportError:
                fields = []
            await transport.close()
            assert not [value for _, value in fields if set(value) & set("\r\n\0")]


async def poured(transport: Http1Transport, request: UpstreamRequest, full_every: int) -> list[bytes]:
    """Return the pieces of an answer, poured into what is full again and again."""
    pieces: list[bytes] = []

    def sink(piece: bytes) -> bool:
        pieces.append(piece)
        return len(pieces) % full_every == 0

    response = await transport.send(request)
    try:
        while (taken := response.take()) != b"":
            if taken is None:
                await response.pour(sink)
            else:
                pieces.append(taken)
        response.release()
    finally:
        response.abort()
    return pieces


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 200), max_size=12), full_every=st.integers(1, 5))
def test_what_is_poured_out_is_what_came(cuts: list[int], full_every: int) -> None:
    """However an answer is cut and however often its reader is full, all of it arrives once and in order."""
    parts = [b"piece %d " % number for number in range(10)]
    text = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    text += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    edges = sorted({cut for cut in cuts if cut < len(text)})
    pieces = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]

    async def scenario() -> list[bytes]:
        async with serving(scripted(*pieces)) as base:
            transport = Http1Transport()
            found = await poured(transport, a_request(base), full_every)
            await transport.close()
            return found

    assert b"".join(asyncio.run(scenario())) == b"".join(parts)


@asynccontextmanager
async def begun(rest: bytes) -> AsyncIterator[Http1Response]:
    """Yield an answer whose first piece has been taken; the rest comes in one segment once somebody waits for it."""
    go_on = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        await scripted(head, b"1\r\na\r\n", close=True)(reader, writer)
        await go_on.wait()
        writer.write(rest)
        await reader.read()

    async with serving(handler) as base:
        transport = Http1Transport()
        response = await transport.send(a_request(base))
        assert await response.next_chunk() == b"a"
        asyncio.get_running_loop().call_soon(go_on.set)
        yield response
        response.abort()
        await transport.close()


async def test_pieces_that_come_together_are_poured_out_one_by_one() -> None:
    """Events stay apart, even if the network or a busy moment has joined them."""
    pieces: list[bytes] = []

    def sink(piece: bytes) -> bool:
        pieces.append(piece)
        return False

    async with begun(b"1\r\nb\r\n1\r\nc\r\n0\r\n\r\n") as response:
        await response.pour(sink)
        assert response.ended
    assert pieces == [b"b", b"c"]


async def test_what_comes_behind_a_full_sink_is_kept() -> None:
    """It is there to be taken."""
    async with begun(b"1\r\nb\r\n1\r\nc\r\n0\r\n\r\n") as response:
        await response.pour(lambda piece: piece == b"b")
        assert response.take() == b"c"


@pytest.mark.parametrize(
    ("rest", "outcome"), [(b"", Outcome.TIMEOUT), (b"zz\r\n", Outcome.TRUNCATED), (b"1\r\nb\r\n", Outcome.TIMEOUT)]
)
async def test_an_answer_that_breaks_off_while_it_is_poured_out_has_a_name(rest: bytes, outcome: Outcome) -> None:
    """The same faults as of one that is read piece by piece."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    timeouts = Timeouts(connect_seconds=5, first_byte_seconds=5, idle_seconds=1)
    async with serving(scripted(head, rest)) as base:
        transport = Http1Transport()
        with pytest.raises(TransportError) as caught:
            await poured(transport, a_request(base, timeouts=timeouts), 100)
        await transport.close()
    assert caught.value.outcome is outcome


async def test_what_the_sink_raises_is_raised_where_the_body_is_read() -> None:
    """It is the reader's fault, not the upstream's."""

    def sink(piece: bytes) -> bool:
        raise ValueError(piece.decode())

    async with begun(b"1\r\nb\r\n1\r\nc\r\n") as response:
        with pytest.raises(ValueError, match="b"):
            await response.pour(sink)
