"""Faults: which calls they strike, and what the official SDK and raw clients then see."""

import asyncio
import gzip
import json
import random
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import openai
import pytest

from sluice_cli.mock import Delay, Fault, FaultBook, MockOpenAI, Outcome
from sluice_cli.mock.errors import ERRORS
from sluice_cli.mock.faults import Subject, parse_header

HELLO: Any = [{"role": "user", "content": "Say hello"}]
CHAT = {"model": "gpt-4.1", "messages": HELLO}
STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
HEADERS = {"Authorization": "Bearer sk-test"}
SDK_ERRORS = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


async def body_of(mock: MockOpenAI, payload: Any = STREAM, path: str = "/chat/completions") -> bytes:
    """Post and read the whole body, unframed."""
    async with (
        aiohttp.ClientSession(headers=HEADERS) as session,
        session.post(mock.base_url + path, json=payload) as response,
    ):
        return await response.read()


async def drain(stream: Any) -> None:
    """Read a stream of the SDK to its end."""
    async for _ in stream:
        pass


async def wire_of(mock: MockOpenAI, payload: Any = STREAM) -> bytes:
    """Post over a bare socket and read every byte until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mock.port)
    body = json.dumps(payload).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-test\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        return await reader.read()
    finally:
        writer.close()


def events_of(body: bytes) -> list[Any]:
    """Read the data of each SSE event, however it is framed."""
    lines = body.replace(b"\r\n", b"\n").split(b"\n")
    data = [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]
    return [json.loads(item) for item in data if item != b"[DONE]"]


@pytest.mark.parametrize("code", sorted(ERRORS))
async def test_every_error_of_the_taxonomy(client: openai.AsyncOpenAI, mock: MockOpenAI, code: str) -> None:
    """Each error arrives as the SDK's class for its status, with its code and type, and is booked unbilled."""
    mock.faults.add(error=code)
    shape = ERRORS[code]
    expected = SDK_ERRORS.get(
        shape.status, openai.InternalServerError if shape.status >= 500 else openai.APIStatusError
    )
    with pytest.raises(expected) as caught:
        await client.chat.completions.create(**CHAT)
    error: Any = caught.value

    assert (error.status_code, error.code, error.type) == (shape.status, shape.code, shape.type)
    assert error.request_id == mock.ledger.last.request_id
    assert mock.ledger.last.outcome is Outcome.ERROR
    assert mock.ledger.last.usage is None
    assert "retry-after" not in error.response.headers


@pytest.mark.parametrize("written", ["2", "0.25", "300"])
async def test_retry_after_as_ordered(client: openai.AsyncOpenAI, mock: MockOpenAI, written: str) -> None:
    """`Retry-After` is sent as ordered, as are `retry-after-ms` and `x-should-retry`."""
    mock.faults.add(error="rate_limit_exceeded", retry_after=written, retry_after_ms="1500", should_retry=False)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**CHAT)
    headers = caught.value.response.headers

    assert headers["retry-after"] == written
    assert headers["retry-after-ms"] == "1500"
    assert headers["x-should-retry"] == "false"


async def test_retry_after_as_a_date(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """`date:N` becomes an HTTP date N seconds after the answer's own."""
    mock.faults.add(error="slow_down", retry_after="date:90")
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**CHAT)
    headers = caught.value.response.headers
    ahead = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])

    assert 89 <= ahead.total_seconds() <= 91


async def test_the_sdk_retries_what_strikes_once(mock: MockOpenAI) -> None:
    """A fault with a count ends; the retry's attempt number is booked."""
    mock.faults.add(error="server_error", count=1, retry_after_ms="1")
    async with openai.AsyncOpenAI(base_url=mock.base_url, api_key="sk-test", max_retries=2) as sdk:
        await sdk.chat.completions.create(**CHAT)

    assert [entry.status for entry in mock.ledger] == [500, 200]
    assert [entry.retry_count for entry in mock.ledger] == [0, 1]


@pytest.mark.parametrize("chunking", ["bytes", "random", "coalesced", "utf8"])
@pytest.mark.parametrize("framing", [{}, {"crlf": True}, {"no_space": True}, {"comments": True}])
async def test_chunking_and_framing_change_no_event(mock: MockOpenAI, chunking: Any, framing: Any) -> None:
    """However a stream is cut into chunks and framed, its events are the same, and so is the bill."""
    plain = await body_of(mock)
    bill = mock.ledger.last.usage
    mock.faults.add(chunking=chunking, **framing)
    odd = await body_of(mock)
    await mock.ledger.settled()

    assert events_of(odd) == events_of(plain)
    assert mock.ledger.last.usage == bill
    if not framing:
        assert odd == plain
    else:
        assert {"crlf": b"\r\n\r\n", "no_space": b'\ndata:{"', "comments": b": keep-alive\n\n"}[
            next(iter(framing))
        ] in odd


async def test_bytes_chunking_is_one_byte_a_chunk(mock: MockOpenAI) -> None:
    """On the wire every byte is a chunk of its own."""
    mock.faults.add(chunking="bytes", events=1)
    wire = await wire_of(mock)

    assert b"\r\n1\r\nd\r\n1\r\na\r\n1\r\nt\r\n1\r\na\r\n" in wire


@pytest.mark.parametrize(
    ("fault", "usage_chunks", "with_choices", "done"),
    [
        ({}, 1, False, True),
        ({"usage": "with_choices"}, 1, True, True),
        ({"usage": "omit"}, 0, False, True),
        ({"no_done": True}, 1, False, False),
    ],
)
async def test_where_usage_and_done_are(
    mock: MockOpenAI, fault: Any, usage_chunks: int, with_choices: bool, done: bool
) -> None:
    """Usage can ride on a chunk with choices or be missing, and so can `[DONE]`."""
    mock.faults.add(**fault)
    body = await body_of(mock)
    found = [event for event in events_of(body) if event.get("usage")]

    assert len(found) == usage_chunks
    assert [bool(event["choices"]) for event in found] == [with_choices] * usage_chunks
    assert body.endswith(b"data: [DONE]\n\n") is done


async def test_error_inside_a_chat_stream(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """An error event ends the stream without `[DONE]`; the SDK raises after the content so far."""
    mock.faults.add(stream_error="server_error", fail_at_event=3)
    stream = await client.chat.completions.create(**STREAM)
    with pytest.raises(openai.APIError, match="error while processing"):
        await drain(stream)
    await mock.ledger.settled()

    assert len([event for event in events_of(await body_of(mock)) if "error" not in event]) == 1 + 3
    assert mock.ledger.last.outcome is Outcome.FAILED
    assert b"[DONE]" not in await body_of(mock)


async def test_error_event_inside_a_responses_stream(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """The responses stream ends with a flat `error` event."""
    mock.faults.add(stream_error="server_is_overloaded")
    body = await body_of(mock, {"model": "gpt-4.1", "input": "x", "stream": True}, "/responses")
    last = events_of(body)[-1]

    assert last["type"] == "error"
    assert last["code"] == "server_is_overloaded"
    assert set(last) == {"type", "code", "message", "param", "sequence_number"}


@pytest.mark.parametrize("fault", [{"cut_at_byte": 700}, {"cut_at_event": 3}, {"cut_at_byte": 700, "reset": True}])
async def test_cut_streams_are_billed_to_the_cut(client: openai.AsyncOpenAI, mock: MockOpenAI, fault: Any) -> None:
    """A stream that is cut fails at the client; the input and what was generated by then is billed."""
    mock.faults.add(**fault)
    stream = await client.chat.completions.create(**STREAM)
    with pytest.raises(openai.APIConnectionError):
        await drain(stream)
    await mock.ledger.settled()
    entry = mock.ledger.last

    assert entry.outcome is Outcome.CUT
    assert not entry.usage_sent
    assert entry.usage is not None
    assert entry.usage.input_tokens == 9
    assert entry.usage.output_tokens < 24
    if "cut_at_byte" in fault:
        assert entry.sent_bytes == 700


async def test_reset_before_the_headers(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """A reset connection is a connection error to the SDK, and nothing is billed."""
    mock.faults.add(reset=True)
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(**CHAT)
    await mock.ledger.settled()

    assert mock.ledger.last.outcome is Outcome.CUT
    assert mock.ledger.last.usage is None


async def test_client_that_leaves_is_billed_for_what_was_generated(
    client: openai.AsyncOpenAI, mock: MockOpenAI
) -> None:
    """Closing a stream stops its generation; the ledger holds the part that was made."""
    mock.faults.add(stall_seconds=3600, stall_at_event=6)
    stream = await client.chat.completions.create(**STREAM)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await mock.ledger.settled()
    entry = mock.ledger.last

    assert entry.outcome is Outcome.CLIENT_CLOSED
    assert entry.usage is not None
    assert 0 < entry.usage.output_tokens <= 6
    assert mock.ledger.in_flight == 0


@pytest.mark.parametrize("fault", [{"stall_seconds": 3600}, {"latency_seconds": 3600}])
async def test_stall_before_the_headers(client: openai.AsyncOpenAI, mock: MockOpenAI, fault: Any) -> None:
    """A server that says nothing runs into the client's timeout; an unstarted answer is not billed."""
    mock.faults.add(**fault)
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.05).chat.completions.create(**CHAT)
    await mock.ledger.settled()

    assert mock.ledger.last.outcome is Outcome.CLIENT_CLOSED
    assert mock.ledger.last.usage is None


async def test_html_instead_of_json(mock: MockOpenAI) -> None:
    """A 200 can carry a page of HTML; it counts as failed."""
    mock.faults.add(html_body=True)

    assert (await body_of(mock)).startswith(b"<html>")
    assert mock.ledger.last.outcome is Outcome.FAILED


async def test_gzip_body(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """A compressed body is declared so, and the SDK reads it."""
    mock.faults.add(gzip_body=True)
    answer = await client.chat.completions.create(**CHAT)
    wire = await wire_of(mock, CHAT)

    assert answer.choices[0].message.content
    assert b"content-encoding: gzip" in wire.lower()
    assert json.loads(gzip.decompress(wire.partition(b"\r\n\r\n")[2]))["id"] == answer.id


@pytest.mark.parametrize("payload", [CHAT, STREAM])
async def test_http10_body_ends_with_the_connection(mock: MockOpenAI, payload: Any) -> None:
    """An HTTP/1.0 answer has neither length nor chunks, and is whole."""
    plain = await body_of(mock, payload)
    mock.faults.add(http10=True)
    head, _, body = (await wire_of(mock, payload)).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.0 200 OK")
    assert b"length" not in head.lower()
    assert b"chunked" not in head.lower()
    assert body == plain


async def test_huge_line(mock: MockOpenAI) -> None:
    """One event of a stream can be as long as 20 MB."""
    mock.faults.add(line_bytes=20_000_000)
    for payload, path in ((STREAM, "/chat/completions"), ({"model": "m", "input": "x", "stream": True}, "/responses")):
        lengths = sorted(len(line) for line in (await body_of(mock, payload, path)).split(b"\n"))
        assert lengths[-1] > 20_000_000
        assert lengths[-2] < 5_000


async def test_what_is_ordered_shows_in_the_answer(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """Tier, content and every kind of token can be ordered, and are booked as sent."""
    mock.faults.add(
        service_tier="flex", content="All is well", prompt_tokens=2000, cached_tokens=1024, cache_write_tokens=300,
        reasoning_tokens=64, audio_input_tokens=10, audio_output_tokens=20, served_model="gpt-4.1-2025-09-09",
    )  # fmt: skip
    answer = await client.chat.completions.create(**CHAT, service_tier="priority")
    booked, usage = mock.ledger.last, answer.usage

    assert answer.choices[0].message.content == "All is well"
    assert (answer.service_tier, answer.model) == ("flex", "gpt-4.1-2025-09-09")
    assert (booked.tier_requested, booked.tier_served) == ("priority", "flex")
    assert booked.model_served == answer.model
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (2010, 3 + 64 + 20)
    assert booked.usage is not None
    assert (booked.usage.input_tokens, booked.usage.output_tokens) == (2010, 87)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == booked.usage.cached_tokens == 1024
    assert usage.prompt_tokens_details.cache_write_tokens == booked.usage.cache_write_tokens == 300
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == booked.usage.reasoning_tokens == 64


@pytest.mark.parametrize(
    ("fault", "finish", "refused"),
    [
        ({"finish_reason": "length"}, "length", False),
        ({"finish_reason": "content_filter"}, "content_filter", False),
        ({"refusal": True}, "stop", True),
    ],
)
async def test_other_ends_of_a_chat(
    client: openai.AsyncOpenAI, mock: MockOpenAI, fault: Any, finish: str, refused: bool
) -> None:
    """An answer can end at its maximum, at the content filter, or be a refusal."""
    mock.faults.add(**fault)
    choice = (await client.chat.completions.create(**CHAT)).choices[0]

    assert choice.finish_reason == finish
    assert (choice.message.refusal is not None) is refused


async def test_gap_paces_whole_answers_too(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """An unstreamed answer takes as long as the stream of it: a gap for each token."""
    mock.faults.add(gap_seconds=0.005)
    await client.chat.completions.create(**CHAT, max_tokens=40)

    duration = mock.ledger.last.duration_seconds
    assert duration is not None
    assert duration >= 20 * 0.005


@pytest.mark.parametrize(
    "written",
    ['{"error": "slow_down", "retry_after": "7"}', "slow_down; retry_after=7", "error=slow_down;retry_after=7"],
)
async def test_fault_by_header(client: openai.AsyncOpenAI, mock: MockOpenAI, written: str) -> None:
    """A request can order its own fault, as JSON or in short, for itself alone."""
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**CHAT, extra_headers={"x-mock-fault": written})

    assert caught.value.code == "slow_down"
    assert caught.value.response.headers["retry-after"] == "7"
    await client.chat.completions.create(**CHAT)


@pytest.mark.parametrize("written", ["nonsense=1", "no_such_error", "{", "latency_seconds=soon"])
async def test_header_that_orders_nothing_known(client: openai.AsyncOpenAI, written: str) -> None:
    """An order that cannot be read is refused, not ignored."""
    with pytest.raises(openai.BadRequestError, match="x-mock-fault"):
        await client.chat.completions.create(**CHAT, extra_headers={"x-mock-fault": written})


@pytest.mark.parametrize(
    ("fault", "struck"),
    [
        ({}, [True, True, True, True]),
        ({"model": "gpt-4.1*"}, [True, False, False, True]),
        ({"endpoint": "embeddings"}, [False, False, True, False]),
        ({"endpoint": "chat.*", "stream": True}, [False, True, False, False]),
        ({"key": "second"}, [False, False, False, True]),
        ({"after": 2}, [False, False, True, True]),
        ({"count": 1}, [True, False, False, False]),
        ({"after": 1, "count": 2}, [False, True, True, False]),
        ({"percent": 0}, [False, False, False, False]),
    ],
)
def test_matching(fault: Any, struck: list[bool]) -> None:
    """A fault strikes by model, endpoint, key and stream, after so many calls and so often."""
    book = FaultBook([Fault(error="server_error", **fault)])
    subjects = [
        Subject(endpoint="chat.completions", model="gpt-4.1-mini", key_name="first"),
        Subject(endpoint="chat.completions", model="o3", key_name="first", stream=True),
        Subject(endpoint="embeddings", model="text-embedding-3-small", key_name="first"),
        Subject(endpoint="chat.completions", model="gpt-4.1", key_name="second"),
    ]

    assert [book.strike(subject, lambda: 0.5).effect.error is not None for subject in subjects] == struck


def test_percent_is_a_share_of_the_calls() -> None:
    """Over many draws a 30 % fault strikes 30 % of the calls, the same ones for the same seed."""
    runs = []
    for _ in range(2):
        draw = random.Random(5).random
        book = FaultBook([Fault(error="server_error", percent=30)])
        runs.append([bool(book.strike(Subject(endpoint="x"), draw).fault_ids) for _ in range(5000)])

    assert runs[0] == runs[1]
    assert 0.28 < sum(runs[0]) / 5000 < 0.32


def test_later_faults_win_and_others_join() -> None:
    """Faults that strike the same call are merged field by field."""
    book = FaultBook([Fault(latency_seconds=1, error="server_error"), Fault(id="late", error="slow_down")])
    struck = book.strike(Subject(endpoint="x"), lambda: 0.0, own=parse_header("retry_after=3"))

    assert (struck.effect.latency_seconds, struck.effect.error, struck.effect.retry_after) == (1, "slow_down", "3")
    assert struck.fault_ids == ("fault-1", "late", "header")


@pytest.mark.parametrize(
    ("written", "quantile", "expected"),
    [
        (0.2, 0.9, 0.2),
        ("0.2", 0.9, 0.2),
        ("uniform(1,3)", 0.25, 1.5),
        ("lognormal(0.2,0.5)", 0.5, 0.2),
        ("lognormal(0.2,0.5)", 0.95, 0.2 * 2.718281828459045 ** (0.5 * 1.6448536269514722)),
    ],
)
def test_delay_distributions(written: Any, quantile: float, expected: float) -> None:
    """A delay is a number, uniform between two, or log-normal around its median."""
    assert Delay.parse(written).draw(quantile) == pytest.approx(expected)


async def test_keys_by_name() -> None:
    """Only configured keys are let in; one can be revoked or stopped; no key is ever in the ledger."""
    async with MockOpenAI(keys={"good": "sk-good-secret", "old": "sk-old-secret", "poor": "sk-poor-secret"}) as strict:
        strict.faults.add(key="old", error="invalid_api_key")
        strict.faults.add(key="poor", error="project_spend_limit_exceeded")
        seen: Counter[str] = Counter()
        for key in ("sk-good-secret", "sk-old-secret", "sk-poor-secret", "sk-wrong-secret"):
            async with openai.AsyncOpenAI(base_url=strict.base_url, api_key=key, max_retries=0) as sdk:
                try:
                    await sdk.chat.completions.create(**CHAT)
                    seen["ok"] += 1
                except openai.APIStatusError as exc:
                    seen[str(exc.code)] += 1

        assert seen == {"ok": 1, "invalid_api_key": 2, "project_spend_limit_exceeded": 1}
        assert [entry.key_name for entry in strict.ledger] == ["good", "old", "poor", None]
        assert "secret" not in repr(list(strict.ledger))


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic sk-x"}])
async def test_without_a_valid_key(mock: MockOpenAI, headers: Any) -> None:
    """A missing or malformed key is a 401."""
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(mock.base_url + "/models") as response,
    ):
        assert response.status == 401


async def test_refused_connections(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """The server can stop listening, so that connecting fails, and come back on the same port."""
    await mock.refuse_connections()
    with pytest.raises(openai.APIConnectionError):
        await client.models.list()
    await mock.accept_connections()

    assert (await client.models.list()).data


async def test_a_storm_leaves_nothing_behind(mock: MockOpenAI, caplog: pytest.LogCaptureFixture) -> None:
    """Under every fault at once, with clients that leave, each call is booked once and nothing stays open."""
    for fault in (
        {"error": "server_error"},
        {"error": "rate_limit_exceeded", "retry_after_ms": "1"},
        {"reset": True},
        {"cut_at_byte": 500},
        {"cut_at_event": 4, "reset": True},
        {"stall_seconds": 3600, "stall_at_event": 5},
        {"stream_error": "server_error"},
        {"html_body": True},
        {"http10": True},
        {"chunking": "random"},
        {"gap_seconds": "uniform(0,0.002)"},
    ):
        mock.faults.add(percent=12, **fault)
    ends: Counter[str] = Counter()
    async with aiohttp.ClientSession(headers=HEADERS, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(number: int) -> None:
            try:
                async with (
                    asyncio.timeout(0.05 if number % 7 == 0 else 2),
                    session.post(mock.base_url + "/chat/completions", json=STREAM if number % 3 else CHAT) as response,
                ):
                    await response.read()
                    ends[str(response.status)] += 1
            except (aiohttp.ClientError, TimeoutError) as exc:
                ends[type(exc).__name__] += 1

        await asyncio.gather(*(call(number) for number in range(400)))
    await mock.ledger.settled()

    assert sum(ends.values()) == 400
    assert len(ends) > 4
    assert mock.ledger.in_flight == 0
    # Of the impatient seventh, some give up before their call arrives.
    assert sum(mock.ledger.outcomes.values()) == len(mock.ledger) >= 300
    assert Outcome.IN_FLIGHT not in mock.ledger.outcomes
    assert all(entry.outcome is not Outcome.COMPLETED or entry.usage for entry in mock.ledger)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def chunks_of(wire: bytes) -> list[bytes]:
    """Split a chunked body on the wire into its chunks."""
    rest, chunks = wire.partition(b"\r\n\r\n")[2], []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return chunks[:-1]


def is_text(chunk: bytes) -> bool:
    """Whether a chunk is UTF-8 by itself."""
    try:
        chunk.decode()
    except UnicodeDecodeError:
        return False
    return True


async def test_chunks_can_end_inside_a_character(mock: MockOpenAI) -> None:
    """Plain chunks are whole events; `utf8` ends some inside a character; `coalesced` joins many events."""
    plain = chunks_of(await wire_of(mock))
    mock.faults.add(id="chunking", chunking="utf8")
    split = chunks_of(await wire_of(mock))
    mock.faults.add(id="chunking", chunking="coalesced")
    joined = chunks_of(await wire_of(mock))

    assert all(chunk.startswith(b"data: ") and is_text(chunk) for chunk in plain)
    assert sum(not is_text(chunk) for chunk in split) > 4
    assert len(joined) < len(plain) / 8
    assert b"".join(plain) == b"".join(split) == b"".join(joined)
