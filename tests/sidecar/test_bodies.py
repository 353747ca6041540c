"""Large bodies and slow readers: memory stays flat, others are not held up, each side is slowed by the other alone."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MEGABYTE = 1024 * 1024
SIZE = 100 * MEGABYTE


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


@pytest.fixture
def sink(loop_thread: Any) -> Iterator[Any]:
    """An upstream that swallows uploads and sends 100 MB, no faster than it is read."""
    from aiohttp import web

    state: dict[str, int] = {"received": 0, "sent": 0}

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            async for chunk in request.content.iter_any():
                state["received"] += len(chunk)
            return web.json_response({"id": "file-1", "bytes": state["received"]})
        response = web.StreamResponse(headers={"Content-Length": str(SIZE)})
        await response.prepare(request)
        block = bytes(64 * 1024)
        for _ in range(SIZE // len(block)):
            await response.write(block)
            state["sent"] += len(block)
        return response

    async def start() -> Any:
        runner = web.ServerRunner(web.Server(serve), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = loop_thread.run(start())
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", state
    loop_thread.run(runner.cleanup())


def peak_megabytes(sidecar: Any) -> float:
    """Return the most memory that the process has had resident."""
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def upload(port: int) -> int:
    """Send 100 MB in pieces; return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    block = bytes(256 * 1024)
    fields = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(SIZE)}
    connection.request("POST", "/v1/files", (block for _ in range(SIZE // len(block))), fields, encode_chunked=False)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def download(port: int) -> int:
    """Read 100 MB; return how much came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/v1/files/f/content")
    answer = connection.getresponse()
    size = 0
    while chunk := answer.read(256 * 1024):
        size += len(chunk)
    connection.close()
    return size


def test_uploads_and_downloads_of_100_mb_keep_memory_flat(start: Any, policies: Any, sink: Any) -> None:
    """What passes through is never held as a whole, in neither direction."""
    base_url, state = sink
    sidecar = start(policies.plain(base_url))
    before = peak_megabytes(sidecar)
    assert upload(sidecar.port) == 200
    assert state["received"] == SIZE
    assert download(sidecar.port) == SIZE
    assert peak_megabytes(sidecar) - before < 12


def test_a_slow_reader_slows_its_own_upstream_only(start: Any, policies: Any, sink: Any, mock: Any) -> None:
    """An application that stops reading makes the upstream stop sending, while others are served."""
    base_url, state = sink
    sidecar = start(policies.plain(base_url))
    before = peak_megabytes(sidecar)
    with socket.create_connection(("127.0.0.1", sidecar.port), timeout=5) as reader:
        reader.sendall(b"GET /v1/files/f/content HTTP/1.1\r\nHost: x\r\n\r\n")
        sidecar.wait_until(lambda: state["sent"] > 0)
        seen = -1
        while seen != state["sent"]:  # until the buffers in between are full
            seen = state["sent"]
            threading.Event().wait(0.2)
        assert seen < SIZE / 2
        assert download(sidecar.port) == SIZE
    assert peak_megabytes(sidecar) - before < 12


def test_probes_are_answered_while_large_bodies_are_in_flight(plain: Any, mock: Any) -> None:
    """Ten megabytes of JSON do not hold up the liveness probe."""
    text = "All work and no play makes Jack a dull boy. " * (10 * MEGABYTE // 44)
    body = json.dumps({"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": text}], "max_tokens": 5})
    data = body.encode()
    stop = threading.Event()
    statuses: set[int] = set()

    def call() -> None:
        while not stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", plain.port, timeout=30)
            connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
            statuses.add(connection.getresponse().status)
            connection.close()

    thread = threading.Thread(target=call)
    thread.start()
    delays = []
    for _ in range(30):
        began = time.perf_counter()
        assert plain.admin("/livez")[0] == 200
        delays.append(time.perf_counter() - began)
    stop.set()
    thread.join()
    assert statuses == {200}
    assert sorted(delays)[len(delays) * 3 // 4] < 0.05
