"""The server around the API: admin endpoints, ledger, load, large files, the command."""

import argparse
import asyncio
import json
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from sluice_cli.mock import MockOpenAI, ModelLimit
from sluice_cli.mock.command import add_arguments, parse_limit, read_faults, run

HELLO: Any = [{"role": "user", "content": "Say hello"}]
HEADERS = {"Authorization": "Bearer sk-test"}


async def admin(mock: MockOpenAI, method: str, path: str, payload: Any = None) -> tuple[int, Any]:
    """Call an admin endpoint; return status and body."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, mock.origin + path, json=payload) as response,
    ):
        return response.status, await response.json()


async def test_faults_by_admin_call(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """Faults can be added, listed with how often they struck, lifted and replaced while the server runs."""
    _, added = await admin(mock, "POST", "/mock/faults", {"model": "gpt-4.1", "error": "server_error"})
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="gpt-4.1", messages=HELLO)
    _, listed = await admin(mock, "GET", "/mock/faults")
    assert listed["faults"][0]["id"] == added["id"]
    assert listed["faults"][0]["struck"] == 1

    await admin(mock, "DELETE", f"/mock/faults/{added['id']}")
    await client.chat.completions.create(model="gpt-4.1", messages=HELLO)
    _, replaced = await admin(mock, "PUT", "/mock/faults", [{"id": "a", "no_done": True}, {"latency_seconds": 1}])
    assert [fault["id"] for fault in replaced["faults"]] == ["a", "fault-2"]
    await admin(mock, "DELETE", "/mock/faults")
    assert len(mock.faults) == 0


@pytest.mark.parametrize(
    ("method", "path", "payload", "status"),
    [
        ("POST", "/mock/faults", {"nonsense": 1}, 400),
        ("POST", "/mock/faults", {"error": "no_such_error"}, 400),
        ("PUT", "/mock/faults", "text", 400),
        ("DELETE", "/mock/faults/none", None, 404),
        ("GET", "/mock/nothing", None, 404),
        ("PUT", "/mock/limits", [{"model": 1}], 400),
    ],
)
async def test_bad_admin_calls(mock: MockOpenAI, method: str, path: str, payload: Any, status: int) -> None:
    """What the admin endpoints cannot read they refuse."""
    assert (await admin(mock, method, path, payload))[0] == status


async def test_ledger_limits_and_stats_by_admin_call(client: openai.AsyncOpenAI, mock: MockOpenAI) -> None:
    """The ledger is found by request id, the limiter's counts are in the statistics, a reset forgets both."""
    await admin(mock, "PUT", "/mock/limits", [{"model": "gpt-4.1", "requests_per_minute": 1}])
    raw = await client.chat.completions.with_raw_response.create(
        model="gpt-4.1", messages=HELLO, extra_headers={"x-client-request-id": "mine"}
    )
    with pytest.raises(openai.RateLimitError):
        await client.chat.completions.create(model="gpt-4.1", messages=HELLO)
    _, found = await admin(mock, "GET", f"/mock/ledger?request_id={raw.headers['x-request-id']}")
    _, narrowed = await admin(mock, "GET", "/mock/ledger?model=gpt-4.1&limit=1")
    _, stats = await admin(mock, "GET", "/mock/stats")

    assert found["entries"][0]["client_request_id"] == "mine"
    assert found["entries"][0]["usage"]["input_tokens"] == 9
    assert narrowed["total"] == 2
    assert len(narrowed["entries"]) == 1
    assert narrowed["entries"][0]["error_code"] == "rate_limit_exceeded"
    assert stats["limiter"] == {"admitted": {"gpt-4.1": 1}, "refused": {"gpt-4.1": 1}}
    assert stats["outcomes"] == {"completed": 1, "error": 1}
    assert stats["in_flight"] == 0
    await admin(mock, "POST", "/mock/reset")
    assert len(mock.ledger) == 0
    await client.chat.completions.create(model="gpt-4.1", messages=HELLO)


async def test_the_ledger_is_bounded() -> None:
    """The oldest entries make room; the counts go on."""
    async with (
        MockOpenAI(ledger_capacity=3) as mock,
        openai.AsyncOpenAI(base_url=mock.base_url, api_key="sk-x") as sdk,
    ):
        for _ in range(5):
            await sdk.models.list()

        assert len(mock.ledger) == 3
        assert mock.ledger.outcomes["completed"] == 5


@pytest.mark.parametrize("given", ["x" * 513, "naïve"])
async def test_client_request_ids_that_are_refused(mock: MockOpenAI, given: str) -> None:
    """A client request id is ASCII of at most 512 characters."""
    async with (
        aiohttp.ClientSession(headers=HEADERS | {"x-client-request-id": given}) as session,
        session.get(mock.base_url + "/models") as response,
    ):
        assert response.status == 400


async def test_models_that_do_not_exist() -> None:
    """With a list of models, any other is a 404."""
    async with (
        MockOpenAI(models={"gpt-4.1"}) as mock,
        openai.AsyncOpenAI(base_url=mock.base_url, api_key="sk-x") as sdk,
    ):
        await sdk.chat.completions.create(model="gpt-4.1", messages=HELLO)
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.chat.completions.create(model="gpt-4.2", messages=HELLO)
        assert caught.value.code == "model_not_found"


async def test_many_connections_at_once(mock: MockOpenAI) -> None:
    """A thousand calls are in flight together and all are answered and booked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    mock.faults.add(latency_seconds=1.5)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=HEADERS, connector=connector) as session:

        async def call() -> int:
            async with session.post(
                mock.base_url + "/chat/completions", json={"model": "gpt-4.1", "messages": HELLO}
            ) as response:
                await response.read()
                return response.status

        statuses = await asyncio.gather(*(call() for _ in range(1000)))

    assert set(statuses) == {200}
    assert mock.ledger.peak_in_flight > 500
    assert mock.ledger.in_flight == 0


async def test_large_files_need_little_memory() -> None:
    """100 MB go up and come down through a server whose memory stays flat."""
    size, piece = 100_000_000, b"0123456789" * 100_000
    command = [sys.executable, "-m", "sluice_cli.main", "mock-openai"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    base_url = (await process.stdout.readline()).decode().strip()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    async with aiohttp.ClientSession(headers=HEADERS) as session:
        form = aiohttp.FormData({"purpose": "user_data"})
        form.add_field("file", aiohttp.AsyncIterablePayload(pieces()), filename="large.bin")
        async with session.post(base_url + "/files", data=form) as response:
            made = await response.json()
        before = _peak_kilobytes(process.pid)
        received = 0
        async with session.get(f"{base_url}/files/{made['id']}/content") as response:
            async for chunk in response.content.iter_chunked(1 << 16):
                received += len(chunk)
        after = _peak_kilobytes(process.pid)
    process.send_signal(signal.SIGTERM)

    assert await process.wait() == 0
    assert made["bytes"] == received == size
    assert before < 90_000
    assert after - before < 10_000


def _peak_kilobytes(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def _parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_serves_until_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    """The first line is the base URL; faults and keys given hold; a signal ends it with status 0."""
    faults = tmp_path / "faults.yaml"
    faults.write_text("faults:\n  - {model: gpt-4.1, error: slow_down}\n")
    arguments = ["--faults", str(faults), "--key", "app=sk-app", "--limits", "o3:rpm=1"]
    command = [sys.executable, "-m", "sluice_cli.main", "mock-openai", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    base_url = (await process.stdout.readline()).decode().strip()
    async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-app", max_retries=0) as sdk:
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat.completions.create(model="gpt-4.1", messages=HELLO)
        await sdk.chat.completions.create(model="o3", messages=HELLO)
        with pytest.raises(openai.RateLimitError):
            await sdk.chat.completions.create(model="o3", messages=HELLO)
    process.send_signal(number)
    _, errors = await process.communicate()

    assert caught.value.code == "slow_down"
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("gpt-4.1*:rpm=500,tpm=30000", ModelLimit(model="gpt-4.1*", requests_per_minute=500, tokens_per_minute=30000)),
        ("ft:gpt-4o:rpd=9", ModelLimit(model="ft:gpt-4o", requests_per_day=9)),
        ("m:project-tpm=7", ModelLimit(model="m", project_tokens_per_minute=7)),
    ],
)
def test_limits_on_the_command_line(written: str, expected: ModelLimit) -> None:
    """A limit is a glob of models and the limits by their short names."""
    assert parse_limit(written) == expected


@pytest.mark.parametrize(
    "arguments", [["--key", "secret"], ["--limits", "rpm=1"], ["--limits", "m:rps=1"], ["--faults", "/no/such/file"]]
)
def test_command_lines_that_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that cannot be served ends with status 2 and one line that says why."""
    assert run(_parsed(*arguments)) == 2
    assert capsys.readouterr().err.startswith("sluice mock-openai: ")


@pytest.mark.parametrize(("name", "text"), [("f.yaml", "- {percent: often}"), ("f.json", "[{]"), ("f.yaml", "a: [")])
def test_fault_files_that_are_refused(tmp_path: Path, name: str, text: str) -> None:
    """A file that holds no faults is refused."""
    (tmp_path / name).write_text(text)

    with pytest.raises(ValueError):
        read_faults(tmp_path / name)


def test_fault_files_in_json(tmp_path: Path) -> None:
    """JSON is read as well as YAML."""
    (tmp_path / "f.json").write_text(json.dumps([{"id": "a", "cut_at_byte": 3}]))

    assert [(fault.id, fault.cut_at_byte) for fault in read_faults(tmp_path / "f.json")] == [("a", 3)]


async def test_a_client_that_waits_to_be_asked_for_its_body(mock: MockOpenAI) -> None:
    """`Expect: 100-continue` is answered before the body is read."""
    async with (
        aiohttp.ClientSession(headers=HEADERS) as session,
        session.post(mock.base_url + "/embeddings", json={"model": "m", "input": "x"}, expect100=True) as response,
    ):
        assert response.status == 200


async def test_an_upload_broken_off_leaves_nothing(mock: MockOpenAI) -> None:
    """A client that goes away in the middle of an upload is booked so, and its part is not kept."""
    _, writer = await asyncio.open_connection("127.0.0.1", mock.port)
    head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-x\r\nContent-Length: 5000000\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    writer.write(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n{part}".encode() + b"x" * 400_000)
    await writer.drain()
    while not mock.ledger.in_flight:  # noqa: ASYNC110 - nothing tells when a call arrives
        await asyncio.sleep(0)
    writer.transport.abort()
    await mock.ledger.settled()

    assert mock.ledger.last.outcome == "client_closed"
    assert list(mock._state.folder.iterdir()) == []


async def test_a_port_that_is_taken(mock: MockOpenAI) -> None:
    """A second server on the port fails at once and leaves nothing open."""
    with pytest.raises(OSError):
        await MockOpenAI(port=mock.port).start()


@pytest.mark.parametrize(
    "payload",
    [
        {"model": "m", "messages": [1]},
        {"model": "m", "messages": HELLO, "tools": [1]},
        {"model": "m", "messages": HELLO, "tools": [{"type": "function", "function": {}}]},
        {"model": "m", "messages": HELLO, "response_format": 5},
        {"model": "m", "messages": HELLO, "stream_options": "x", "stream": True},
        {"model": 5, "messages": HELLO},
        {"model": "m", "messages": HELLO, "max_tokens": "many"},
    ],
)
async def test_bodies_of_the_wrong_shape(client: openai.AsyncOpenAI, mock: MockOpenAI, payload: Any) -> None:
    """Wrong types anywhere in a body are a 400, never a crash."""
    with pytest.raises(openai.BadRequestError):
        await client.post("/chat/completions", cast_to=object, body=payload)

    assert mock.ledger.last.outcome == "error"
