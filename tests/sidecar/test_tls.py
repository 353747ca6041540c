"""The upstream's certificate is verified, against a private authority where one is named."""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from .certificates import self_signed


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


@pytest.fixture
def secure(loop_thread: Any, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """An upstream behind TLS; its address and its authority."""
    key, certificate = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def answer(_request: web.BaseRequest) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def start() -> Any:
        runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        return runner

    runner = loop_thread.run(start())
    yield f"https://127.0.0.1:{runner.addresses[0][1]}/v1", certificate.read_text()
    loop_thread.run(runner.cleanup())


def status_of(port: int) -> tuple[int, bytes]:
    """Return status and body of a list of models."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_certificate_of_nobody_is_refused(start: Any, policies: Any, secure: tuple[str, str]) -> None:
    """The call fails before the key is sent."""
    status, body = status_of(start(policies.plain(secure[0])).port)
    assert status == 502
    assert b"certificate_invalid" in body


def test_a_private_authority_can_be_trusted(start: Any, policies: Any, secure: tuple[str, str]) -> None:
    """With the authority in the policy, calls go through."""
    base_url, authority = secure
    sidecar = start(policies.snapshot(policies.upstream(base_url, ca_bundle=authority)))
    assert status_of(sidecar.port)[0] == 200
