"""Keeps a server's certificates current: the Secret that stores them, who trusts them, and the running TLS context.

Every replica of operator and injector runs one keeper on the same Secret. Who writes first wins by `resourceVersion`,
the others read what it wrote. A new certificate is served only once the webhook configuration trusts its authority.
Nothing restarts: the context of a listening server is loaded anew, and connections made after that see it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from sluice_operator import certificates
from sluice_operator.certificates import Bundle
from sluice_operator.cluster import ApiError, Cluster, ConflictError, NotFoundError, RefusedError
from sluice_operator.kinds import RELEASE_LABELS, SECRETS, ResourceType

WEBHOOKS: Final = ResourceType(
    "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", namespaced=False
)
LOOK_SECONDS: Final = 5.0
_ATTEMPTS: Final = 4

_log = structlog.get_logger()
Json = dict[str, Any]


class CertificateKeeper:
    """Stores, renews and serves one bundle.

    Args:
        cluster: client of the API server.
        namespace: where the Secret lives.
        secret: its name.
        names: DNS names of the servers; all keepers of one Secret must agree on them.
        webhook: the webhook configuration to keep the authorities in, or None.
        issue: False where somebody else, such as cert-manager, writes Secret and webhook configuration.
        wall: Unix seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        secret: str,
        names: Sequence[str],
        wall: Callable[[], float],
        webhook: str | None = None,
        issue: bool = True,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._secret = secret
        self._names = tuple(names)
        self._wall = wall
        self._webhook = webhook
        self._issue = issue
        self._bundle: Bundle | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.loaded = asyncio.Event()
        self.faults = 0

    @property
    def authorities(self) -> str:
        """Return the authorities that clients must trust, as PEM; empty before the first bundle."""
        return self._bundle.trusted if self._bundle else ""

    @property
    def expires_at(self) -> float:
        """Return when the certificate that is served ends, in Unix seconds; 0 before the first."""
        return certificates.expires_at(self._bundle).timestamp() if self._bundle else 0.0

    @property
    def ready(self) -> bool:
        """Tell whether a certificate is served and has not expired."""
        return self._wall() < self.expires_at

    async def run(self) -> None:
        """Look every few seconds, for ever. A fault is logged and counted; what is served stays."""
        while True:
            try:
                await self.look()
            except ApiError as error:
                self.faults += 1
                _log.warning("certificates_not_kept", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Do one round: read, renew if due, have it trusted, serve it."""
        bundle = await self._stored_or_renewed()
        if bundle is None:
            return
        try:
            if self._webhook and self._issue:
                await self._have_trusted(self._webhook, bundle.trusted)
        except (RefusedError, NotFoundError) as error:
            # Not allowed to, or not there: a server that serves is of more use than one that does not.
            self.faults += 1
            _log.error("webhook_configuration_not_updated", error=str(error))
        if bundle != self._bundle:
            self._serve(bundle)

    async def _stored_or_renewed(self) -> Bundle | None:
        for _ in range(_ATTEMPTS):
            secret = await self._read()
            stored = certificates.from_secret_data(_decoded(secret.get("data"))) if secret else None
            if not self._issue:
                return stored
            now = datetime.fromtimestamp(self._wall(), UTC)
            renewed = certificates.renew(stored, self._names, now, also_trust=self.authorities)
            if renewed is None:
                return stored
            try:
                await self._write(secret, renewed)
            except ConflictError:
                continue  # another replica was first: take what it wrote
            _log.info("certificates_renewed", expires=certificates.expires_at(renewed).isoformat())
            return renewed
        return None

    async def _read(self) -> Json | None:
        try:
            return await self._cluster.get(SECRETS, self._namespace, self._secret)
        except NotFoundError:
            return None

    async def _write(self, secret: Json | None, bundle: Bundle) -> None:
        data = {name: base64.b64encode(value).decode() for name, value in bundle.to_secret_data().items()}
        if secret is not None:
            await self._cluster.replace(SECRETS, self._namespace, self._secret, {**secret, "data": data})
            return
        metadata = {"name": self._secret, "namespace": self._namespace, "labels": RELEASE_LABELS}
        await self._cluster.create(SECRETS, self._namespace, {"metadata": metadata, "type": "Opaque", "data": data})

    async def _have_trusted(self, webhook: str, authorities: str) -> None:
        """Write the authorities into the webhook configuration, and read back that they have arrived."""
        wanted = base64.b64encode(authorities.encode()).decode()
        for _ in range(_ATTEMPTS):
            configuration = await self._cluster.get(WEBHOOKS, None, webhook)
            clients = [entry.get("clientConfig", {}) for entry in configuration.get("webhooks", [])]
            if all(client.get("caBundle") == wanted for client in clients):
                return
            for client in clients:
                client["caBundle"] = wanted
            try:
                await self._cluster.replace(WEBHOOKS, "", webhook, configuration)
            except ConflictError:
                continue
        raise ConflictError(409, "Conflict", f"{webhook} changes faster than it can be written")

    def _serve(self, bundle: Bundle) -> None:
        if not _load(self.context, bundle):
            self.faults += 1
            _log.error("certificate_not_usable", secret=self._secret)
            return
        self._bundle = bundle
        self.loaded.set()
        _log.info("certificate_loaded", expires=certificates.expires_at(bundle).isoformat())


def _load(context: ssl.SSLContext, bundle: Bundle) -> bool:
    """Load a bundle into a live context. Python takes files only: one that nobody else can read, gone at once."""
    descriptor, name = tempfile.mkstemp(prefix="sluice-")
    path = Path(name)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(bundle.key + bundle.certificate)
        context.load_cert_chain(path)
    except ssl.SSLError:
        return False
    finally:
        path.unlink()
    return True


def _decoded(data: dict[str, str] | None) -> dict[str, bytes]:
    decoded = {}
    for name, value in (data or {}).items():
        try:
            decoded[name] = base64.b64decode(value, validate=True)
        except binascii.Error:
            continue
    return decoded
