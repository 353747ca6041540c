"""An application cannot tell the sidecar from the API: the same bytes, status and headers for the same request."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

PROMPT = "planted prompt about the purple submarine"
KEY = "sk-planted-primary-5f1c9a"
ADDED = {"x-sluice-call-id"}
PER_CALL = {"x-request-id", "date", "openai-processing-ms", "transfer-encoding", "content-length", "connection"}
RATE = "x-ratelimit-"


def ask(port: int, path: str, body: Any = None, *, method: str = "", fault: Any = None, **headers: str) -> Any:
    """Send one request with a plain HTTP client; return (status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    fields = {"Authorization": f"Bearer {KEY}", **headers}
    data = None
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        fields.setdefault("Content-Type", "application/json")
    if fault is not None:
        fields["x-mock-fault"] = json.dumps(fault)
    try:
        connection.request(method or ("POST" if data is not None else "GET"), f"/v1{path}", data, fields)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": PROMPT}], **fields}


def respond(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1-mini", "input": PROMPT, **fields}


REQUESTS = {
    "chat": ("/chat/completions", chat()),
    "chat with several choices": ("/chat/completions", chat(n=3, logprobs=True)),
    "chat with tools": ("/chat/completions", chat(tools=[{"type": "function", "function": {"name": "f"}}])),
    "chat stream": ("/chat/completions", chat(stream=True)),
    "chat stream of tools": (
        "/chat/completions",
        chat(stream=True, tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="required"),
    ),
    "chat stream of several choices": ("/chat/completions", chat(stream=True, n=2)),
    "chat stream with usage": ("/chat/completions", chat(stream=True, stream_options={"include_usage": True})),
    "chat stream without obfuscation": (
        "/chat/completions",
        chat(stream=True, stream_options={"include_obfuscation": False}),
    ),
    "responses": ("/responses", respond()),
    "responses stream": ("/responses", respond(stream=True)),
    "completions": ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": PROMPT}),
    "completions stream": ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": PROMPT, "stream": True}),
    "embeddings": ("/embeddings", {"model": "text-embedding-3-small", "input": [PROMPT, "b"]}),
    "moderations": ("/moderations", {"model": "omni-moderation-latest", "input": PROMPT}),
    "images": ("/images/generations", {"model": "gpt-image-1", "prompt": PROMPT}),
    "speech": ("/audio/speech", {"model": "gpt-4o-mini-tts", "input": PROMPT, "voice": "alloy"}),
    "input tokens": ("/responses/input_tokens", respond()),
    "models": ("/models", None),
    "one model": ("/models/gpt-4.1-mini", None),
    "an unknown path": ("/no/such/thing?a=1&b=%2F", None),
    "an unknown model": ("/chat/completions", {"model": None, "messages": []}),
    "no messages": ("/chat/completions", {"model": "gpt-4.1-mini"}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_gets_the_same_answer_as_directly(plain: Any, mock: Any, name: str) -> None:
    """Status, headers and body are those of the API, but for the headers that Sluice declares."""
    path, body = REQUESTS[name]
    direct = ask(mock.port, path, body)
    mock.reset()
    proxied = ask(plain.port, path, body)
    assert proxied[0] == direct[0]
    assert proxied[2] == direct[2]
    assert _comparable(proxied[1]) == _comparable(direct[1])
    assert {key.lower() for key, _ in proxied[1]} >= ADDED


def _comparable(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    lower = [(key.lower(), value) for key, value in headers]
    return sorted(
        (key, "" if key.startswith(RATE) else value) for key, value in lower if key not in PER_CALL and key not in ADDED
    )


FRAMINGS = {
    "as sent": {},
    "byte by byte": {"chunking": "bytes"},
    "at random": {"chunking": "random"},
    "all at once": {"chunking": "coalesced"},
    "in the middle of characters": {"chunking": "utf8"},
    "with CRLF": {"crlf": True, "chunking": "random"},
    "with comments": {"comments": True},
    "without the space": {"no_space": True},
    "with a line of 20 MB": {"line_bytes": 20_000_000},
    "with usage beside choices": {"usage": "with_choices"},
    "without usage": {"usage": "omit"},
    "compressed": {"gzip_body": True},
    "closed at the end": {"http10": True},
}


@pytest.mark.parametrize("kind", ["chat stream", "chat stream with usage", "responses stream", "completions stream"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_stream_has_the_same_bytes_however_it_is_framed(plain: Any, mock: Any, kind: str, framing: str) -> None:
    """A stream's bytes do not depend on how it was cut, and hold no usage that the client did not ask for."""
    path, body = REQUESTS[kind]
    fault = FRAMINGS[framing]
    if fault.get("usage") == "with_choices" and kind in ("chat stream", "completions stream"):
        pytest.skip("a server that reports usage beside choices reports it unasked")
    direct = ask(mock.port, path, body, fault=fault)
    mock.reset()
    proxied = ask(plain.port, path, body, fault=fault)
    assert proxied[0] == direct[0] == 200
    if framing == "with comments":  # the one before the usage event that we asked for cannot be told from others
        assert _without_comments(proxied) == _without_comments(direct)
    else:
        assert _plain(proxied) == _plain(direct)
    record = plain.record(dict(proxied[1])["x-sluice-call-id"])
    entry = mock.ledger.last
    if fault.get("usage") != "omit":
        assert record["usage"]["inputTokens"] == entry.usage.input_tokens
        assert record["usage"].get("outputTokens", 0) == entry.usage.output_tokens
        assert not record.get("usageEstimated")


def _plain(answer: Any) -> bytes:
    """The body with its content coding undone: Sluice may decode, but must then say so."""
    import gzip

    coding = {key.lower(): value for key, value in answer[1]}.get("content-encoding")
    return gzip.decompress(answer[2]) if coding == "gzip" else answer[2]


def _without_comments(answer: Any) -> list[bytes]:
    return [line for line in _plain(answer).splitlines() if line and not line.startswith(b":")]


def test_usage_is_asked_for_where_the_client_did_not(plain: Any, mock: Any) -> None:
    """The upstream is asked for usage in every chat stream, and only there."""
    ask(plain.port, *REQUESTS["chat stream"])
    assert mock.ledger.last.usage_asked
    ask(plain.port, *REQUESTS["responses stream"])
    assert not mock.ledger.last.usage_asked


def test_the_application_never_holds_the_key(plain: Any, mock: Any) -> None:
    """Whatever key the application sends, the upstream sees ours."""
    status, headers, _ = ask(plain.port, *REQUESTS["chat"], Authorization="Bearer sk-placeholder-of-the-application")
    assert status == 200
    assert mock.ledger.last.key_name == "primary"
    assert mock.ledger.last.client_request_id == dict(headers)["x-sluice-call-id"]


def test_the_clients_own_request_id_is_kept(plain: Any, mock: Any) -> None:
    """A request id that the client sets reaches the upstream unchanged."""
    ask(plain.port, *REQUESTS["chat"], **{"X-Client-Request-Id": "mine-1"})
    assert mock.ledger.last.client_request_id == "mine-1"


def test_organization_and_project_of_the_application_are_dropped(plain: Any, mock: Any) -> None:
    """An application cannot spend another project's money with the platform's key."""
    ask(plain.port, *REQUESTS["chat"], **{"OpenAI-Project": "proj_other", "OpenAI-Organization": "org-other"})
    assert mock.ledger.last.project is None
    assert mock.ledger.last.organization is None


def test_head_has_headers_and_no_body(plain: Any) -> None:
    """HEAD is answered without a body, and the connection goes on."""
    connection = http.client.HTTPConnection("127.0.0.1", plain.port, timeout=20)
    connection.request("HEAD", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    assert answer.read() == b""
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    again = connection.getresponse()
    assert again.status == 200
    assert json.loads(again.read())["object"] == "list"
    connection.close()
