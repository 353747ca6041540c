"""The sync channel over TLS: token and authority are files that change under it, and the process goes on."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from sluice_core.sync import SyncRequest, SyncResponse

from .certificates import self_signed


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


class Authority:
    """A self-signed certificate for the loopback address."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.key, self.certificate = self_signed(folder)


class SecureControl:
    """A control plane behind TLS that accepts one token at a time and presents one certificate at a time."""

    def __init__(self) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.token = "first"
        self.accepted: list[tuple[str, int]] = []
        self.refused: list[str] = []
        self.url = ""

    def present(self, authority: Authority) -> None:
        """Show this certificate to whoever connects from now on."""
        self.context.load_cert_chain(authority.certificate, authority.key)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the channel; policies are never pushed."""
        if request.path == "/v1/policy":
            return web.Response(status=503)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != self.token:
            self.refused.append(token)
            return web.Response(status=401)
        assert request.transport is not None
        self.accepted.append((token, request.transport.get_extra_info("peername")[1]))
        report = msgspec.json.decode(await request.read(), type=SyncRequest)
        return web.Response(body=msgspec.json.encode(SyncResponse(sequence=report.sequence, interval_seconds=0.5)))


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[str], Authority]:
    """Make authorities by name."""
    return lambda name: Authority(tmp_path / name)


@pytest.fixture
def control(loop_thread: Any, authority: Callable[[str], Authority]) -> Iterator[SecureControl]:
    """A running control plane, without a certificate that anybody trusts yet."""

    async def start() -> Any:
        plane = SecureControl()
        plane.present(authority("unknown"))
        runner = web.ServerRunner(web.Server(plane.handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=plane.context).start()
        plane.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        return plane, runner

    plane, runner = loop_thread.run(start())
    yield plane
    loop_thread.run(runner.cleanup())


@pytest.fixture
def identity(tmp_path: Path) -> Any:
    """The mounted files that the sidecar speaks for itself with, replaced as the kubelet replaces them."""
    return sys.modules["sidecars"].Mount(tmp_path / "identity")


def connect(start: Any, snapshot: Any, control: SecureControl, identity: Any) -> Any:
    """Start a sidecar whose token and authority are the mounted ones."""
    return start(
        snapshot,
        SLUICE_SYNC_URL=control.url,
        SLUICE_SYNC_TOKEN_FILE=str(identity.path / "token"),
        SLUICE_SYNC_CA_FILE=str(identity.path / "ca.crt"),
    )


def test_a_new_token_is_sent_as_soon_as_it_is_there(
    start: Any, mock: Any, policies: Any, control: Any, authority: Any, identity: Any
) -> None:
    """The kubelet replaces the token long before it ends; the next report carries the new one, without a restart."""
    first = authority("first")
    control.present(first)
    identity.write(token="first", ca__crt=first.certificate.read_text())
    sidecar = connect(start, policies.plain(mock.base_url), control, identity)
    sidecar.wait_until(lambda: bool(control.accepted))

    control.token = "tok-2b7e"
    sidecar.wait_until(lambda: "first" in control.refused and sidecar.metric("sluice_sync_healthy") == 0)
    identity.write(token="tok-2b7e", ca__crt=first.certificate.read_text())
    sidecar.wait_until(lambda: control.accepted[-1][0] == "tok-2b7e" and sidecar.metric("sluice_sync_healthy") == 1)
    assert b"tok-2b7e" not in sidecar.output()


def test_a_new_authority_is_trusted_as_soon_as_it_is_there(
    start: Any, mock: Any, policies: Any, control: Any, authority: Any, identity: Any
) -> None:
    """With certificate and authority replaced the channel goes on over new connections, and trusts the old no more."""
    first, second = authority("first"), authority("second")
    control.present(first)
    identity.write(token="first", ca__crt=first.certificate.read_text())
    sidecar = connect(start, policies.plain(mock.base_url), control, identity)
    sidecar.wait_until(lambda: bool(control.accepted))

    identity.write(token="first", ca__crt=second.certificate.read_text())
    sidecar.wait_until(lambda: sidecar.metric("sluice_sync_healthy") == 0)
    seen = len(control.accepted)
    ports = {port for _, port in control.accepted}
    control.present(second)
    sidecar.wait_until(lambda: len(control.accepted) > seen and sidecar.metric("sluice_sync_healthy") == 1)
    assert control.accepted[-1][1] not in ports
