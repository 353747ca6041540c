"""Keeps the world current: kopf's events for speed, listings of our own so that nothing lost stays lost.

kopf only watches here. It has no state, finalizer, annotation, timer or daemon on anything, so a resource can be
deleted whether the operator lives or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final

import kopf
import msgspec
import structlog

from sluice_core.api.base import GROUP
from sluice_operator.cluster import ApiError, Cluster
from sluice_operator.kinds import OBSERVED, PODS, ResourceType
from sluice_operator.world import PodObject, World

Json = dict[str, Any]
RESTART_SECONDS: Final = 5.0
EXIT_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 1.0
# Left to itself kopf makes one up from the user's name, and the user of the image, like any on OpenShift, has none.
_IDENTITY: Final = "sluice-operator"

_log = structlog.get_logger()


class Observer:
    """Feeds the world and says when it has changed."""

    def __init__(
        self,
        world: World,
        cluster: Cluster,
        *,
        clock: Callable[[], float],
        resync_seconds: float,
        changed: asyncio.Event | None = None,
    ) -> None:
        self._world = world
        self._cluster = cluster
        self._clock = clock
        self._resync_seconds = resync_seconds
        self.changed = changed or asyncio.Event()
        self.watched = False

    def take(self, type_: ResourceType, event_type: str | None, raw: Json) -> None:
        """Take in one event of a watch. An object that cannot be read at all is told of and passed over."""
        self.watched = True
        try:
            if event_type == "DELETED":
                significant = self._world.remove(type_, raw, self._clock())
            else:
                significant = self._world.put(type_, raw, self._clock())
        except (msgspec.ValidationError, KeyError) as error:
            _log.warning("object_unreadable", kind=type_.kind, error=type(error).__name__)
            return
        if significant:
            self.changed.set()

    async def relist(self) -> None:
        """List every type once; those that cannot be listed keep what is known of them."""
        for type_ in OBSERVED:
            asked_at = self._clock()
            try:
                listing = await self._list(type_)
            except ApiError as error:
                _log.warning("listing_failed", kind=type_.kind, error=str(error))
                continue
            if self._world.replace(type_, listing, asked_at):
                self.changed.set()

    async def _list(self, type_: ResourceType) -> list[Json]:
        if type_ != PODS:
            return await self._cluster.list_all(type_, dict[str, Any])
        # Thousands of pods with all that they carry would be a hundred megabytes, if only for a moment.
        return [msgspec.to_builtins(pod) for pod in await self._cluster.list_all(type_, PodObject)]

    async def run(self) -> None:
        """List for ever: at the pace of a safety net, or in place of the watches as long as there are none.

        kopf looks at every API group first, so one broken extension of the API server keeps all its watches away.
        """
        while True:
            await self.relist()
            if not self._world.complete:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await asyncio.sleep(self._resync_seconds if self.watched else RESTART_SECONDS)

    def lose_watches(self) -> None:
        """Learn that no events will come for now."""
        self.watched = False


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: watch, never write, never wait for ever."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True  # leadership is our own Lease; kopf's peers would pause each other
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1.0
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    # Short to the end: what is changed after an outage of the API server is to be seen within seconds.
    settings.networking.error_backoffs = (1, 2, 3, 3, 3, 3)
    settings.persistence.finalizer = f"{GROUP}/unused"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP, key="unused")
    return settings


class Watches:
    """kopf in a thread and event loop of its own, which hands over what it sees.

    When kopf ends it cancels whatever tasks it finds in its loop, and it takes over the signals of the main thread:
    so it gets neither ours. While it is down the listings keep the world current.
    """

    def __init__(
        self,
        observer: Observer,
        login: Callable[[], Awaitable[kopf.ConnectionInfo]],
        *,
        on_fault: Callable[[], None],
    ) -> None:
        """`on_fault` is called in another thread whenever the watches have ended with a fault."""
        self._observer = observer
        self._login = login
        self._on_fault = on_fault
        self._stop = threading.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        thread = threading.Thread(
            target=self._watch_for_ever, args=(asyncio.get_running_loop(),), name="kopf", daemon=True
        )
        thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            self._stop.set()
            await asyncio.shield(asyncio.to_thread(thread.join, EXIT_SECONDS))

    def _watch_for_ever(self, home: asyncio.AbstractEventLoop) -> None:
        logging.getLogger("kopf").setLevel(logging.ERROR)
        while not self._stop.is_set():
            try:
                asyncio.run(
                    kopf.operator(
                        registry=self._registry(home),
                        settings=kopf_settings(),
                        identity=_IDENTITY,  # type: ignore[arg-type]  # a str by a name that kopf does not export
                        clusterwide=True,
                        standalone=True,
                        stop_flag=self._stop,
                    )
                )
            except Exception as error:  # noqa: BLE001 -- the root of the thread: told, and started anew
                _log.warning("watches_ended", error=type(error).__name__, exc_info=True)
                self._on_fault()
                home.call_soon_threadsafe(self._observer.lose_watches)
            self._stop.wait(RESTART_SECONDS)

    def _registry(self, home: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        """Return kopf's handlers: one event handler per type, nothing else."""
        registry = kopf.OperatorRegistry()

        async def log_in(**_: Any) -> kopf.ConnectionInfo:
            return await self._login()

        kopf.on.login(registry=registry)(log_in)
        for type_ in OBSERVED:
            group, _, version = type_.api_version.rpartition("/")
            handler = self._handler(type_, home)
            kopf.on.event(group, version, type_.plural, registry=registry, id=type_.plural)(handler)
        return registry

    def _handler(self, type_: ResourceType, home: asyncio.AbstractEventLoop) -> Callable[..., Awaitable[None]]:
        async def observe(event: Any, **_: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop at home has ended, and so will this thread
                home.call_soon_threadsafe(self._observer.take, type_, event["type"], event["object"])

        return observe
