"""The sync server: sidecars report here and are told at once when their policy changes. HTTP only; no Kubernetes in it.

Two routes. `POST /v1/sync` takes a report and answers with leases. `GET /v1/policy` waits until the namespace's policy
differs from the revision that the caller runs, and answers with it. Neither is needed for a call to go on: a sidecar
that cannot reach them works from its mounted files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec
import structlog
from aiohttp import web

from sluice_core.snapshot import Snapshot, encode
from sluice_core.sync import PodRef, SyncRequest, SyncResponse

MAX_REPORT_BYTES: Final = 2 * 1024 * 1024
MAX_WAITERS: Final = 20_000
MAX_WAIT_SECONDS: Final = 30.0

_requests = msgspec.json.Decoder(SyncRequest)
_responses = msgspec.json.Encoder()
_log = structlog.get_logger()


class Leader(Protocol):
    """What decides on reports; only a leader answers them."""

    @property
    def leading(self) -> bool:
        """Tell whether this process may grant capacity at present."""

    def report(self, request: SyncRequest) -> SyncResponse:
        """Take in one report and return the answer. Synchronous, so that a report is never half taken in."""


Authenticate = Callable[[str | None], Awaitable[PodRef | None]]
"""Return the pod that a bearer token proves, or None. An empty name in the answer means any pod of the namespace."""


class PolicyBoard:
    """The current policy of each namespace, and those who wait for the next one."""

    __slots__ = ("_changed", "_policies", "waiters")

    def __init__(self) -> None:
        self._policies: dict[str, tuple[str, bytes]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self.waiters = 0

    def publish(self, snapshot: Snapshot) -> None:
        """Make this the policy of its namespace and wake those who wait for one."""
        known = self._policies.get(snapshot.namespace)
        if known is not None and known[0] == snapshot.revision:
            return
        self._policies[snapshot.namespace] = (snapshot.revision, encode(snapshot))
        self._wake(snapshot.namespace)

    def withdraw(self, namespace: str) -> None:
        """Forget a namespace; its sidecars go on with what they have."""
        if self._policies.pop(namespace, None) is not None:
            self._wake(namespace)

    def namespaces(self) -> frozenset[str]:
        """Return the namespaces that have a policy."""
        return frozenset(self._policies)

    def revision(self, namespace: str) -> str:
        """Return the revision of a namespace's policy, empty if it has none."""
        return self._policies.get(namespace, ("", b""))[0]

    async def newer(self, namespace: str, revision: str, wait_seconds: float) -> bytes | None:
        """Return the policy once it differs from `revision`, or None when the time is up."""
        if self.waiters >= MAX_WAITERS:
            return None
        self.waiters += 1
        try:
            async with asyncio.timeout(wait_seconds):
                while True:
                    policy = self._policies.get(namespace)
                    if policy is not None and policy[0] != revision:
                        return policy[1]
                    await self._changed.setdefault(namespace, asyncio.Event()).wait()
        except TimeoutError:
            return None
        finally:
            self.waiters -= 1

    def _wake(self, namespace: str) -> None:
        # Those who wait hold the old event; the next ones to come get a new one.
        event = self._changed.pop(namespace, None)
        if event is not None:
            event.set()


class SyncServer:
    """Routes of the sync server over a leader and a board of policies."""

    __slots__ = ("_authenticate", "_board", "_leader")

    def __init__(self, leader: Leader, board: PolicyBoard, authenticate: Authenticate) -> None:
        self._leader = leader
        self._board = board
        self._authenticate = authenticate

    def application(self) -> web.Application:
        """Return the aiohttp application; the caller binds it, with TLS where there is a network between."""
        application = web.Application(client_max_size=MAX_REPORT_BYTES)
        application.router.add_post("/v1/sync", self._sync)
        application.router.add_get("/v1/policy", self._policy)
        return application

    async def _identity(self, request: web.Request) -> PodRef:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        identity = await self._authenticate(token.strip() if scheme.lower() == "bearer" else None)
        if identity is None:
            raise web.HTTPUnauthorized(text="a service-account token of audience sluice is needed")
        return identity

    def _require_leader(self) -> None:
        """Turn a caller away whom the service has sent to a standby; without the connection, the next try may do."""
        if not self._leader.leading:
            refusal = web.HTTPServiceUnavailable(text="not the leader", headers={"Retry-After": "1"})
            refusal.force_close()
            raise refusal

    async def _sync(self, request: web.Request) -> web.Response:
        identity = await self._identity(request)
        self._require_leader()
        try:
            report = _requests.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise web.HTTPBadRequest(text=f"not a report: {error}") from None
        if not _proves(identity, report.pod):
            raise web.HTTPForbidden(text="the token belongs to another pod")
        answer = self._leader.report(report)
        return web.Response(body=_responses.encode(answer), content_type="application/json")

    async def _policy(self, request: web.Request) -> web.Response:
        identity = await self._identity(request)
        namespace = request.query.get("namespace", "")
        if namespace != identity.namespace:
            raise web.HTTPForbidden(text="the token belongs to another namespace")
        self._require_leader()
        try:
            wait_seconds = min(max(float(request.query.get("waitSeconds", "0")), 0.0), MAX_WAIT_SECONDS)
        except ValueError:
            raise web.HTTPBadRequest(text="waitSeconds is not a number") from None
        policy = await self._board.newer(namespace, request.query.get("revision", ""), wait_seconds)
        if policy is None:
            return web.Response(status=204)
        return web.Response(body=policy, content_type="application/json")


def _proves(identity: PodRef, claimed: PodRef) -> bool:
    if identity.namespace != claimed.namespace:
        return False
    return not identity.name or identity.name == claimed.name
