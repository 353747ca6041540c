"""Brings keys and passwords to the namespaces that may use them, as one derived Secret each, and takes them away again.

A key goes where the namespace's snapshot names it, so permission, reference and key come and go together. Values are
passed on as the API server encodes them, are never decoded, and are kept out of every log, error and repr.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import structlog

from sluice_core.api.base import Value
from sluice_core.api.quotaallocation import QuotaAllocation
from sluice_core.api.upstream import Upstream
from sluice_core.compile.upstreams import credential_file, store_password_file
from sluice_core.snapshot import CREDENTIALS_MARKER, Snapshot
from sluice_operator.cluster import ApiError, Cluster, NotFoundError
from sluice_operator.kinds import CREDENTIALS_SECRET, SECRETS
from sluice_operator.publish import TRIED_AGAIN, NamedObjects, NotPublished, in_each

MAX_KEY_CHARACTERS: Final = 16_384

Owner = Upstream | QuotaAllocation
"""What names Secrets: an account its keys, a quota the password of its store."""

_log = structlog.get_logger()


class SecretKey(NamedTuple):
    """One key of one Secret, by name."""

    namespace: str
    secret: str
    key: str


class Finding(Value, frozen=True, kw_only=True):
    """Something wrong with a Secret that a resource names, with the mend."""

    reason: str
    path: str
    message: str


class KeyFindings(Value, frozen=True, kw_only=True):
    """How many of the keys that a resource names were found, and what is wrong with the others."""

    found: int
    named: int
    findings: tuple[Finding, ...] = ()


class _Encoded:
    """The data of a Secret, still base64. Has no repr that shows it."""

    __slots__ = ("values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values


class _Reference(NamedTuple):
    """One reference of a resource to a key of a Secret: the file that it becomes, and where it stands in the spec."""

    file: str
    source: SecretKey
    path: str


def _references(owner: Owner) -> list[_Reference]:
    namespace, name = owner.metadata.namespace, owner.metadata.name
    match owner:
        case Upstream():
            return [
                _Reference(
                    credential_file(namespace, name, each.name),
                    SecretKey(namespace, each.secret_key_ref.name, each.secret_key_ref.key),
                    f"spec.credentials[{index}].secretKeyRef",
                )
                for index, each in enumerate(owner.spec.credentials)
            ]
        case QuotaAllocation():
            secret = owner.spec.store.secret_ref
            if secret is None:
                return []
            file = store_password_file(namespace, name)
            return [_Reference(file, SecretKey(namespace, secret.name, secret.key), "spec.store.secretRef")]


def sources(owners: Iterable[Owner]) -> dict[str, SecretKey]:
    """Return where each credential file's content comes from."""
    return {each.file: each.source for owner in owners for each in _references(owner)}


def wanted(snapshots: Mapping[str, Snapshot]) -> dict[str, frozenset[str]]:
    """Return the credential files that each namespace needs: those that its snapshot names, no others."""
    return {namespace: _named(snapshot) for namespace, snapshot in snapshots.items()}


def _named(snapshot: Snapshot) -> frozenset[str]:
    keys = {each.file for upstream in snapshot.upstreams for each in upstream.credentials}
    passwords = {quota.store.password_file for quota in snapshot.quotas if quota.store.password_file is not None}
    return frozenset(keys | passwords)


class CredentialPublisher:
    """Reads the Secrets that upstreams name and keeps the derived ones equal to them."""

    def __init__(self, cluster: Cluster, *, clock: Callable[[], float], reread_seconds: float) -> None:
        self._cluster = cluster
        self._objects = NamedObjects(cluster, SECRETS, CREDENTIALS_SECRET)
        self._clock = clock
        self._reread_seconds = reread_seconds
        self._secrets: dict[tuple[str, str], _Encoded | None] = {}
        self._read_at: dict[tuple[str, str], float] = {}
        self._faults: dict[tuple[str, str], str] = {}
        self.writes = 0

    def forget(self) -> None:
        """Forget what was written, on taking over as leader."""
        self._objects.forget()

    async def look(self) -> None:
        """See which derived Secrets there are; their content is not read."""
        await self._objects.look()

    async def publish(
        self, owners: Iterable[Owner], snapshots: Mapping[str, Snapshot], leaving: frozenset[str]
    ) -> dict[str, NotPublished]:
        """Make every namespace's Secret hold exactly the keys that its snapshot names.

        Returns:
            The namespaces where that failed, and why.
        """
        origin = sources(owners)
        await self._read({(each.namespace, each.secret) for each in origin.values()})
        needs = {namespace: files for namespace, files in wanted(snapshots).items() if namespace not in leaving}

        async def write(namespace: str) -> None:
            await self._write(namespace, needs[namespace], origin)

        async def remove(namespace: str) -> None:
            if await self._objects.remove(namespace):
                _log.info("credentials_removed", namespace=namespace)

        faults = await in_each(sorted(name for name, files in needs.items() if files), write)
        empty = {name for name, files in needs.items() if not files}
        gone = (set(self._objects.existing) - set(needs) - leaving) | (empty & set(self._objects.existing))
        faults |= await in_each(sorted(gone), remove)
        for namespace, error in faults.items():
            _log.warning("credentials_not_written", namespace=namespace, error=str(error))
        return {namespace: _behind(namespace, error) for namespace, error in faults.items()}

    def found(self, owner: Owner) -> KeyFindings:
        """Return which of the keys that a resource names were found at the last reading."""
        references = _references(owner)
        findings = tuple(finding for each in references if (finding := self._check(each.source, each.path)))
        return KeyFindings(found=len(references) - len(findings), named=len(references), findings=findings)

    def _check(self, source: SecretKey, path: str) -> Finding | None:
        namespace, secret, key = source
        where = namespace, secret
        held = self._secrets.get(where)
        if where in self._faults and held is None:
            message = (
                f"Secret {namespace}/{secret} cannot be read ({self._faults[where]}); it is tried again, and if this "
                "stays, give the operator's service account the right to get Secrets"
            )
            return Finding(reason="SecretUnreadable", path=path, message=message)
        if held is None:
            message = f"there is no Secret {secret} in namespace {namespace}; create it with the key {key}"
            return Finding(reason="SecretNotFound", path=f"{path}.name", message=message)
        if not 0 < len(held.values.get(key) or "") <= MAX_KEY_CHARACTERS:
            message = f"Secret {namespace}/{secret} has no usable key {key}; add it, or correct the name of the key"
            return Finding(reason="SecretKeyNotFound", path=f"{path}.key", message=message)
        return None

    async def _read(self, names: set[tuple[str, str]]) -> None:
        now = self._clock()
        for gone in set(self._read_at) - names:
            self._secrets.pop(gone, None)
            self._faults.pop(gone, None)
            del self._read_at[gone]
        for where in sorted(names):
            if where in self._read_at and now - self._read_at[where] < self._reread_seconds:
                continue
            self._read_at[where] = now
            try:
                raw = await self._cluster.get(SECRETS, *where)
            except NotFoundError:
                self._secrets[where] = None
                self._faults.pop(where, None)
            except ApiError as error:
                # What was read before stays in use: a short outage must not take anybody's key away.
                self._faults[where] = error.reason
                del self._read_at[where]
                continue
            else:
                self._secrets[where] = _Encoded(raw.get("data") or {})
                self._faults.pop(where, None)

    async def _write(self, namespace: str, files: frozenset[str], origin: Mapping[str, SecretKey]) -> None:
        data: dict[str, str] = {CREDENTIALS_MARKER: ""}
        unknown: list[str] = []
        for file in sorted(files):
            source = origin.get(file)
            where = (source.namespace, source.secret) if source is not None else None
            if source is None or where is None:
                continue
            if where in self._faults and self._secrets.get(where) is None:
                unknown.append(file)
            elif (held := self._secrets.get(where)) is not None and held.values.get(source.key):
                data[file] = held.values[source.key]
        if unknown:
            data |= await self._kept(namespace, unknown)
        content = _digest(data)
        if self._objects.current(namespace, content):
            return
        if await self._objects.write(namespace, content, {"type": "Opaque", "data": data}):
            self.writes += 1
            _log.info("credentials_written", namespace=namespace, keys=len(data) - 1)

    async def _kept(self, namespace: str, files: Iterable[str]) -> dict[str, str]:
        """Return what the derived Secret holds already, for files whose source cannot be read at the moment."""
        try:
            stored = (await self._cluster.get(SECRETS, namespace, CREDENTIALS_SECRET)).get("data") or {}
        except NotFoundError:
            return {}
        return {file: stored[file] for file in files if file in stored}


def _behind(namespace: str, error: ApiError) -> NotPublished:
    message = f"Secret {CREDENTIALS_SECRET} in namespace {namespace} cannot be written: {error}; {TRIED_AGAIN}"
    return NotPublished(reason="CredentialsNotWritten", message=message)


def _digest(data: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for file, value in sorted(data.items()):
        digest.update(f"{len(file)}:{file}{len(value)}:{value}".encode())
    return digest.hexdigest()
