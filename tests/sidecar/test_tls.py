"""The upstream's certificate is verified, against a private authority where one is named."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@pytest.fixture
def policies() -> Any:
    """The snapshots of this folder."""
    return sys.modules["policies"]


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a key and a certificate for 127.0.0.1 that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file


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
