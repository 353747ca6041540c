"""Raw clients that break the rules, and secrets that must not be seen: nothing gets out, nothing gets in."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

KEY = "sk-planted-primary-5f1c9a"


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


def exchange(port: int, request: bytes, *, timeout: float = 5.0) -> bytes:
    """Send bytes as they are and return all that comes back until the connection closes or falls silent."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(request)
        connection.settimeout(timeout)
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except (TimeoutError, ConnectionResetError):
            pass
    return answer


def get(target: str, *fields: str) -> bytes:
    """One GET request that closes its connection."""
    lines = [f"GET {target} HTTP/1.1", "Host: api.openai.com", "Connection: close", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


ESCAPES = [
    "//evil.example/v1/models",
    "http://evil.example/v1/models",
    "https://evil.example:443/v1/models",
    "/v1/../admin",
    "/v1/models/../../admin",
    "/v1/./models",
    "/v1/%2e%2e/admin",
    "/v1/%2E%2E%2Fadmin",
    "/v1/%252e%252e/admin",
    "/v1/..%2f..%2fadmin",
    "/v1/..;/admin",
    "/v1/models\\..\\..\\admin",
    "/v1/models%5c..%5cadmin",
    "/v1//chat/completions",
    "/v1/models%00",
    "/v1/models%0d%0aX-Injected:%20yes",
    "*",
    "/v1@evil.example/models",
    "/v1.evil.example/models",
    "evil.example:443",
]


@pytest.mark.parametrize("target", ESCAPES)
def test_no_target_leaves_the_api(plain: Any, mock: Any, target: str) -> None:
    """A path trick is refused here; the upstream never sees it."""
    answer = exchange(plain.port, get(target))
    assert answer.split(b" ", 2)[1] in (b"400", b"404")
    assert b"evil.example" not in answer.partition(b"\r\n\r\n")[2]
    assert len(mock.ledger) == 0


def test_an_encoded_slash_in_a_name_is_no_escape(plain: Any, mock: Any) -> None:
    """Names with a slash are written as %2F by the SDK and reach the upstream as they are."""
    exchange(plain.port, get("/v1/models/org%2Fmodel"))
    assert mock.ledger.last.path.endswith(("/models/org%2Fmodel", "/models/org/model"))


SMUGGLED = {
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "length and chunks": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/x HTTP/1.1\r\n\r\n",
    "chunks twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a negative length": "Content-Length: -5\r\n\r\nhello",
    "a signed length": "Content-Length: +5\r\n\r\nhello",
    "a space before the colon": "Content-Length : 5\r\n\r\nhello",
    "a folded field": "X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a bare line feed": "X-A: b\nContent-Length: 5\r\n\r\nhello",
    "a bad chunk": "Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a nul in a field": "X-A: a\0b\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("trick", SMUGGLED)
def test_no_second_request_is_smuggled(plain: Any, mock: Any, trick: str) -> None:
    """A message that is framed ambiguously is refused, or carries exactly one request."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = exchange(plain.port, (head + SMUGGLED[trick]).encode("latin-1"))
    assert answer.split(b" ", 2)[1] == b"400"
    assert answer.count(b"HTTP/1.") == 1
    assert len(mock.ledger) == 0


@pytest.fixture
def echo(loop_thread: Any) -> Iterator[str]:
    """An upstream that answers with the head of the request as it came, and odd fields of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = (
            b"Connection: close, X-Listed\r\nX-Listed: 1\r\nKeep-Alive: timeout=5\r\nX-Sluice-Arm: forged\r\n"
            b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Odd: caf\xe9\r\n"
        )
        writer.write(b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: %d\r\n\r\n" % len(head) + head)
        writer.close()

    server = loop_thread.run(_listen(answer))
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    loop_thread.loop.call_soon_threadsafe(server.close)


async def _listen(answer: Any) -> Any:
    return await asyncio.start_server(answer, "127.0.0.1", 0)


def test_fields_of_one_hop_stay_on_it(start: Any, policies: Any, echo: str) -> None:
    """Hop-by-hop fields, those that Connection lists and Sluice's own pass in neither direction; repeated ones do."""
    sidecar = start(policies.plain(echo))
    fields = (
        "Connection: close, X-Hop",
        "X-Hop: 1",
        "TE: trailers",
        "Proxy-Authorization: Basic eA==",
        "X-Sluice-Arm: candidate",
        "Authorization: Bearer sk-of-the-application",
        "X-Twice: 1",
        "X-Twice: 2",
    )
    answer = exchange(sidecar.port, get("/v1/models?a=%20b&a=c", *fields))
    head, _, seen = answer.decode("latin-1").partition("\r\n\r\n")
    sent = seen.lower().split("\r\n")
    assert sent[0] == "get /v1/models?a=%20b&a=c http/1.1"
    assert sum(line.startswith("host:") for line in sent) == 1
    assert not any("api.openai.com" in line for line in sent)
    assert f"authorization: bearer {KEY}" in sent
    assert [line for line in sent if line.startswith("x-twice")] == ["x-twice: 1", "x-twice: 2"]
    assert not any(line.startswith(("x-hop", "te:", "proxy-", "x-sluice", "connection: close")) for line in sent)
    received = head.lower().split("\r\n")
    assert {"set-cookie: a=1", "set-cookie: b=2", "x-odd: caf\xe9"} <= set(received)
    assert not any(line.startswith(("x-listed", "keep-alive", "x-sluice-arm")) for line in received)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_methods_that_tunnel_or_echo_are_not_passed_on(plain: Any, mock: Any, method: str) -> None:
    """No tunnel through the upstream's connection, and no echo of a request that carries our key."""
    answer = exchange(plain.port, get("/v1/models").replace(b"GET", method.encode(), 1))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"is not passed on" in answer
    assert len(mock.ledger) == 0


@pytest.mark.parametrize("size", [40_000, 400_000])
def test_huge_headers_are_refused(plain: Any, mock: Any, size: int) -> None:
    """A field beyond the bound gets a 400, and the process goes on."""
    answer = exchange(plain.port, get("/v1/models", "X-Big: " + "a" * size))
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")) or not answer
    assert b" 200 " in exchange(plain.port, get("/v1/models"))


BAD_BODIES = {
    "no JSON": b"this is not json",
    "a list": b"[]",
    "cut off": b'{"model": "m", "messages": [',
    "no UTF-8": b'{"model": "\xff\xfe", "messages": []}',
    "too deep": b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "empty": b"",
}


@pytest.mark.parametrize("kind", BAD_BODIES)
def test_a_bad_body_is_refused_in_the_apis_own_shape(plain: Any, kind: str) -> None:
    """The error is a 400 that SDKs understand, and quotes nothing."""
    body = BAD_BODIES[kind]
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    answer = exchange(plain.port, head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    status = answer.split(b" ", 2)[1]
    assert status in (b"400", b"200", b"422")
    if status == b"400":
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert set(error) == {"message", "type", "param", "code"}


def test_a_body_beyond_the_bound_is_refused(plain: Any, mock: Any) -> None:
    """A JSON body of more than 64 MiB gets a 413, before it is read."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    answer = exchange(plain.port, f"{head}Content-Length: {65 * 1024 * 1024}\r\n\r\n".encode(), timeout=1.0)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer
    assert len(mock.ledger) == 0


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(plain: Any) -> None:
    """`Expect: 100-continue` is answered, then the call."""
    body = b'{"model":"gpt-4.1-mini","messages":[{"role":"user","content":"hi"}]}'
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", plain.port), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_requests_on_one_connection_are_answered_in_order(plain: Any) -> None:
    """Pipelined requests get their answers one after the other."""
    first = get("/v1/models").replace(b"Connection: close\r\n", b"")
    answer = exchange(plain.port, first + first + get("/v1/models/gpt-4.1-mini"))
    assert answer.count(b"HTTP/1.1 200 ") == 3


def test_the_old_protocol_is_served_without_chunks(plain: Any) -> None:
    """An HTTP/1.0 client gets a body that ends with the connection."""
    body = b'{"model":"gpt-4.1-mini","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    head = (
        f"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    answer = exchange(plain.port, head.encode() + body)
    assert b"chunked" not in answer.partition(b"\r\n\r\n")[0].lower()
    assert answer.endswith(b"data: [DONE]\n\n")


def test_the_proxy_listens_on_loopback_only(start: Any, mock: Any, policies: Any) -> None:
    """Another address is refused at start, by the name of the variable."""
    with pytest.raises(AssertionError, match=r"SLUICE_LISTEN.*loopback"):
        start(policies.plain(mock.base_url), SLUICE_LISTEN="0.0.0.0:0")


def test_no_redirect_is_followed_with_a_key(start: Any, mock: Any, policies: Any, loop_thread: Any) -> None:
    """A redirect of the upstream is passed on as it is; the key goes nowhere else."""
    from aiohttp import web

    asked: list[str] = []

    async def serve() -> Any:
        async def redirect(request: web.BaseRequest) -> web.Response:
            asked.append(request.path)
            return web.Response(status=307, headers={"Location": "/elsewhere"})

        runner = web.ServerRunner(web.Server(redirect))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner

    runner = loop_thread.run(serve())
    sidecar = start(policies.plain(f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
    answer = exchange(sidecar.port, get("/v1/files/f/content"))
    loop_thread.run(runner.cleanup())
    assert answer.startswith(b"HTTP/1.1 307")
    assert asked == ["/v1/files/f/content"]


def test_a_wrong_content_type_is_no_way_around_a_rule(start: Any, mock: Any, policies: Any) -> None:
    """A JSON body is looked into whatever it claims to be."""
    from sluice_core.api.modelroute import RuleMatch
    from sluice_core.snapshot import TargetPolicy

    cheap = policies.rule(
        name="cheap",
        match=(RuleMatch(models=("gpt-4.1",)),),
        targets=(TargetPolicy(name="main", upstream="team/openai", model="gpt-4.1-nano"),),
    )
    sidecar = start(policies.snapshot(policies.upstream(mock.base_url), rules=(cheap, policies.rule())))
    body = b'{"model":"gpt-4.1","messages":[{"role":"user","content":"hi"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    exchange(sidecar.port, head.encode() + b"Content-Type: text/plain\r\n\r\n" + body)
    assert mock.ledger.last.model_requested == "gpt-4.1-nano"


def test_an_upload_that_is_not_finished_is_the_clients_end(plain: Any, mock: Any) -> None:
    """The upstream is closed, and the record says who left."""
    head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    before = len(plain.stdout)
    with socket.create_connection(("127.0.0.1", plain.port), timeout=5) as connection:
        connection.sendall(f"{head}Content-Length: 5000000\r\n\r\n".encode() + bytes(200_000))
        plain.wait_until(lambda: plain.status()["inFlight"] == 1)
    plain.wait_until(lambda: plain.status()["inFlight"] == 0)
    plain.wait_until(lambda: len(plain.stdout) > before)
    assert json.loads(plain.stdout[-1])["outcome"] == "ClientClosed"
    assert b"fault in a call" not in b"".join(plain.stderr)
