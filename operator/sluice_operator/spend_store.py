"""Keeps what was spent in ConfigMaps of the operator's own namespace, so that it survives every restart.

The quotas are spread over a fixed number of ConfigMaps by their names: fixed, so that the right to write them can be
limited by name. A ConfigMap is written when something in it has changed, every few seconds at most. A leader that dies
between two writes loses nothing that a living pod has spent, because pods report totals; only what was spent by pods
that ended in those seconds is lost.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import structlog

from sluice_core.budget import LedgerState
from sluice_core.spend_state import MAX_STATE_BYTES, StateError, decode_states, encode_states
from sluice_operator.cluster import ApiError, Cluster, NotFoundError
from sluice_operator.kinds import CONFIG_MAPS, RELEASE_LABELS, SPEND_CONFIG_MAPS

STATE_KEY: Final = "spend.msgpack.z"
STORE_SECONDS: Final = 10.0

_log = structlog.get_logger()


class SpendStore:
    """The ConfigMaps. Reads and writes; the caller holds what is in them.

    What is written replaces what was read or written last by this process, and nothing else: after any failure it is
    not certain what is stored, so it has to be read again, by `reread`, and taken in before the next write.
    """

    __slots__ = ("_clock", "_cluster", "_namespace", "_stored_at", "_uncertain", "_versions", "unreadable", "writes")

    def __init__(self, cluster: Cluster, namespace: str, *, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._clock = clock
        self._stored_at = float("-inf")
        self._versions: dict[str, str] = {}
        self._uncertain: set[str] = set()
        self.unreadable = 0
        self.writes = 0

    @property
    def due(self) -> bool:
        """Tell whether figures alone are worth storing now."""
        return self._clock() - self._stored_at >= STORE_SECONDS

    async def load(self) -> dict[str, LedgerState]:
        """Return all that is stored, by quota.

        A ConfigMap with something else in it is left out and told in the log: the budgets in it begin anew.

        Raises:
            ApiError: the API server did not say what is stored; nothing is known.
        """
        return await self._read(SPEND_CONFIG_MAPS)

    async def reread(self) -> dict[str, LedgerState]:
        """Return by quota what is stored where that is not certain.

        Raises:
            ApiError: the API server did not say what is stored.
        """
        return await self._read(sorted(self._uncertain)) if self._uncertain else {}

    async def _read(self, names: Iterable[str]) -> dict[str, LedgerState]:
        found: dict[str, LedgerState] = {}
        for name in names:
            try:
                stored = await self._cluster.get(CONFIG_MAPS, self._namespace, name)
            except NotFoundError:
                self._versions.pop(name, None)
                self._uncertain.discard(name)
                continue
            self._versions[name] = stored["metadata"]["resourceVersion"]
            self._uncertain.discard(name)
            try:
                text = (stored.get("binaryData") or {}).get(STATE_KEY) or ""
                found.update(decode_states(base64.b64decode(text, validate=True)) if text else {})
            except (binascii.Error, StateError) as error:
                self.unreadable += 1
                _log.error("spend_unreadable", config_map=name, error=str(error))
        return found

    async def save(self, states: Mapping[str, LedgerState], changed: Collection[str]) -> frozenset[str]:
        """Store the quotas that have changed; return those for which that failed."""
        self._stored_at = self._clock()
        failed: set[str] = set()
        for name in sorted({shard_of(quota) for quota in changed}):
            body = encode_states({quota: state for quota, state in states.items() if shard_of(quota) == name})
            try:
                await self._write(name, body)
            except ApiError as error:
                _log.warning("spend_not_stored", config_map=name, error=str(error))
                self._uncertain.add(name)
                failed |= {quota for quota in changed if shard_of(quota) == name}
        return frozenset(failed)

    async def _write(self, name: str, body: bytes) -> None:
        if len(body) > MAX_STATE_BYTES:
            raise ApiError(413, "TooLarge", f"{len(body)} bytes")
        known = {"resourceVersion": self._versions[name]} if name in self._versions else {}
        content = {
            "metadata": {"labels": RELEASE_LABELS, **known},
            "binaryData": {STATE_KEY: base64.b64encode(body).decode()},
        }
        stored = await self._cluster.apply(CONFIG_MAPS, self._namespace, name, content)
        self._versions[name] = stored["metadata"]["resourceVersion"]
        self.writes += 1


def shard_of(quota: str) -> str:
    """Return the ConfigMap that a quota's money is stored in."""
    return SPEND_CONFIG_MAPS[hashlib.sha256(quota.encode()).digest()[0] % len(SPEND_CONFIG_MAPS)]
