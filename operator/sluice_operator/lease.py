"""Leadership: one Lease, one holder, and no write by anybody who is not sure to be it.

As in client-go, a holder's silence is measured on the standby's own clock, from when it saw the Lease change last, so
clocks need not agree. 15 s after the last renewal a standby takes over; 10 s after it the holder stops writing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog

from sluice_operator.cluster import ApiError, Cluster, ConflictError, NotFoundError
from sluice_operator.kinds import LEASES, RELEASE_LABELS

DURATION_SECONDS: Final = 15
RENEW_DEADLINE_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 2.0

_log = structlog.get_logger()


class _LeaseSpec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _LeaseObject(msgspec.Struct):
    metadata: dict[str, Any]
    spec: _LeaseSpec = msgspec.field(default_factory=_LeaseSpec)


class Leadership:
    """Campaigns for the Lease and says, at any moment, whether this process may write.

    Args:
        cluster: client of the API server.
        namespace: where the Lease lives.
        name: its name.
        identity: this process, unique among replicas and restarts.
        clock: monotonic seconds.
        wall: Unix seconds, only written for people to read.
        changed: set whenever this process begins or ceases to lead.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        changed: asyncio.Event | None = None,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._wall = wall
        self._renewed_at: float | None = None
        self._seen: tuple[str | None, str | None] | None = None
        self._seen_at = 0.0
        self._turn = asyncio.Lock()
        self.transitions = 0
        self.term = 0
        """Which time of leading this is, by the Lease's own count: between two of them others may have led."""
        self.changed = changed or asyncio.Event()

    @property
    def leading(self) -> bool:
        """Tell whether this process may write now, without asking anybody."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < RENEW_DEADLINE_SECONDS

    async def confirm(self) -> bool:
        """Tell whether this process may write, and make sure of it if the last renewal is not quite fresh.

        Asked before each round of writes: a process that was stopped or cut off learns here that it has been replaced.
        """
        if not self.leading:
            return False
        assert self._renewed_at is not None  # noqa: S101 -- implied by leading
        if self._clock() - self._renewed_at >= RETRY_SECONDS:
            await self.campaign()
        return self.leading

    async def run(self) -> None:
        """Campaign and renew for ever; release the Lease when cancelled."""
        try:
            while True:
                await self.campaign()
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            await asyncio.shield(self.release())

    async def campaign(self) -> None:
        """Take the Lease, renew it, or wait for it: one step."""
        async with self._turn:
            was_leading = self.leading
            try:
                await self._step()
            except ConflictError:
                self._renewed_at = None  # another one wrote the Lease: whoever it was, it was not this process
            except ApiError as error:
                _log.warning("lease_unreachable", error=str(error), leading=self.leading)
            if was_leading != self.leading:
                _log.info("leadership_changed", leading=self.leading, identity=self._identity)
                self.changed.set()

    async def release(self) -> None:
        """Give the Lease up, so that a standby takes over at its next look."""
        async with self._turn:
            if self._renewed_at is None:
                return
            self._renewed_at = None
            self.changed.set()
            try:
                lease = await self._read()
                if lease is not None and lease.spec.holder_identity == self._identity:
                    await self._write(lease, holder="", duration_seconds=1)
            except ApiError as error:
                _log.warning("lease_not_released", error=str(error))

    async def _step(self) -> None:
        started = self._clock()
        lease = await self._read()
        if lease is None:
            await self._create()
        elif lease.spec.holder_identity == self._identity:
            await self._write(lease, holder=self._identity, duration_seconds=DURATION_SECONDS)
        elif self._expired(lease.spec, started):
            lease.spec.acquire_time = _micro_time(self._wall())
            lease.spec.lease_transitions = (lease.spec.lease_transitions or 0) + 1
            await self._write(lease, holder=self._identity, duration_seconds=DURATION_SECONDS)
        else:
            self._renewed_at = None
            return
        # Counted from before the request was sent: the standby's count cannot have begun earlier.
        self._renewed_at = started
        self.term = 1 + (lease.spec.lease_transitions or 0 if lease is not None else 0)

    def _expired(self, spec: _LeaseSpec, now: float) -> bool:
        if not spec.holder_identity:
            return True
        state = (spec.holder_identity, spec.renew_time)
        if state != self._seen:
            self._seen, self._seen_at = state, now
            return False
        return now - self._seen_at >= (spec.lease_duration_seconds or DURATION_SECONDS)

    async def _read(self) -> _LeaseObject | None:
        try:
            raw = await self._cluster.get(LEASES, self._namespace, self._name)
        except NotFoundError:
            return None
        return msgspec.convert(raw, _LeaseObject)

    async def _create(self) -> None:
        now = _micro_time(self._wall())
        await self._cluster.create(
            LEASES,
            self._namespace,
            {
                "metadata": {"name": self._name, "namespace": self._namespace, "labels": RELEASE_LABELS},
                "spec": {
                    "holderIdentity": self._identity,
                    "leaseDurationSeconds": DURATION_SECONDS,
                    "acquireTime": now,
                    "renewTime": now,
                    "leaseTransitions": 0,
                },
            },
        )

    async def _write(self, lease: _LeaseObject, *, holder: str, duration_seconds: int) -> None:
        now = _micro_time(self._wall())
        self.transitions = lease.spec.lease_transitions or 0
        await self._cluster.replace(
            LEASES,
            self._namespace,
            self._name,
            {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": lease.metadata,
                "spec": {
                    "holderIdentity": holder,
                    "leaseDurationSeconds": duration_seconds,
                    "acquireTime": lease.spec.acquire_time or now,
                    "renewTime": now,
                    "leaseTransitions": self.transitions,
                },
            },
        )


def _micro_time(unix_seconds: float) -> str:
    """Return a time as `metav1.MicroTime` wants it: exactly six digits of a second."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
