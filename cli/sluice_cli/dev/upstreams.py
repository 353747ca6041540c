"""What stands in for the accounts: a mock OpenAI per `Upstream`, or the real one with a key from the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

import msgspec

from sluice_cli.dev.judges import variable_of
from sluice_cli.mock import MockOpenAI
from sluice_core.api.base import SecretKeyRef
from sluice_core.api.manifests import AnyResource
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.upstream import Credential, Upstream
from sluice_core.compile.upstreams import store_password_file
from sluice_core.snapshot import Snapshot

MOCK_KEY = "sk-mock"
MAX_UPSTREAMS = 16


class Upstreams(Protocol):
    """Where calls end up."""

    async def aim(self, resources: Iterable[AnyResource]) -> tuple[AnyResource, ...]:
        """Return the resources with the addresses that calls shall go to."""
        ...

    def keys(self, snapshot: Snapshot) -> dict[str, bytes]:
        """Return the files that stand for the Secrets, by name."""
        ...

    async def close(self) -> None:
        """Stop what was started."""
        ...


def _with_key(upstream: Upstream) -> Upstream:
    """Return the upstream with a key to its name: local mode always has one to send."""
    if upstream.spec.credentials:
        return upstream
    credential = Credential(name="local", secret_key_ref=SecretKeyRef(name="local", key="key"))
    return msgspec.structs.replace(upstream, spec=msgspec.structs.replace(upstream.spec, credentials=(credential,)))


class MockUpstreams:
    """A mock of its own for each `Upstream`, so that faults can be ordered for one and not the other."""

    def __init__(self) -> None:
        self.mocks: dict[str, MockOpenAI] = {}

    async def aim(self, resources: Iterable[AnyResource]) -> tuple[AnyResource, ...]:
        """Start the mocks that are missing and return the resources with their addresses."""
        return tuple([await self._aimed(each) if isinstance(each, Upstream) else each for each in resources])

    async def _aimed(self, upstream: Upstream) -> Upstream:
        mock = self.mocks.get(upstream.key)
        if mock is None:
            if len(self.mocks) >= MAX_UPSTREAMS:
                raise ValueError(f"local mode mocks at most {MAX_UPSTREAMS} upstreams")
            mock = MockOpenAI(seed=len(self.mocks))
            await mock.__aenter__()
            self.mocks[upstream.key] = mock
        # A private authority makes no sense for a mock on loopback, which speaks plain HTTP.
        spec = msgspec.structs.replace(upstream.spec, base_url=mock.base_url, tls=None)
        return _with_key(msgspec.structs.replace(upstream, spec=spec))

    def keys(self, snapshot: Snapshot) -> dict[str, bytes]:
        """Return a key that every mock takes, under each credential's name."""
        return {
            credential.file: f"{MOCK_KEY}-{credential.name}".encode()
            for upstream in snapshot.upstreams
            for credential in upstream.credentials
        }

    async def close(self) -> None:
        """Stop the mocks."""
        for mock in self.mocks.values():
            await mock.__aexit__(None, None, None)
        self.mocks.clear()


class RealUpstreams:
    """The accounts as they are written, with one key from an environment variable for all of them."""

    def __init__(self, variable: str) -> None:
        self._variable = variable
        if not os.environ.get(variable):
            raise ValueError(f"{variable} is not set; it must hold the API key to call the real upstreams with")

    async def aim(self, resources: Iterable[AnyResource]) -> tuple[AnyResource, ...]:
        """Return the resources as they are, but for a key where none is named."""
        return tuple(_with_key(each) if isinstance(each, Upstream) else each for each in resources)

    def keys(self, snapshot: Snapshot) -> dict[str, bytes]:
        """Return the one key under each credential's name."""
        key = os.environ[self._variable].encode()
        return {credential.file: key for upstream in snapshot.upstreams for credential in upstream.credentials}

    async def close(self) -> None:
        """Nothing was started."""


def store_passwords(resources: Iterable[AnyResource]) -> dict[str, bytes]:
    """Return the files that stand for the Secrets of stores, from the environment of `sluice dev`."""
    found = {}
    for resource in resources:
        secret = resource.spec.store.secret_ref if isinstance(resource, QuotaAllocation) else None
        if secret is not None:
            file = store_password_file(resource.metadata.namespace, resource.metadata.name)
            found[file] = os.environ.get(variable_of(secret), "").encode()
    return found
