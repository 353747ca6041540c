"""The stores that the policy names, one per account: started, replaced and ended as the policy changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from sluice_core.api.quotaallocation import StoreType
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import StorePolicy
from sluice_sidecar.store.redis_store import RedisStore, StorePeer

MAX_STORES = 64


class Stores:
    """What takes slices, by the key of the upstream that they are for."""

    def __init__(self, peer: StorePeer) -> None:
        self._peer = peer
        self._stores: dict[str, RedisStore] = {}
        self._tasks: dict[RedisStore, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[RedisStore]:
        return iter(self._stores.values())

    def configure(self, policy: PodPolicy) -> None:
        """Put a policy into force. A store whose policy stays the same goes on as it is."""
        wanted = _wanted(policy)
        self._stores = {
            upstream: store if (store := self._stores.get(upstream)) is not None and store.policy == each else
            RedisStore(upstream, each, self._peer)
            for upstream, each in wanted.items()
        }  # fmt: skip
        self._changed.set()

    def hurry(self) -> None:
        """Call soon: somebody waits."""
        for store in self:
            store.hurry()

    async def run(self) -> None:
        """Keep a task for each store until cancelled."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._end([store for store in self._tasks if store not in self._stores.values()])
                for store in self:
                    if store not in self._tasks:
                        self._tasks[store] = asyncio.create_task(store.run())
        finally:
            await self._end(list(self._tasks))

    async def close(self) -> None:
        """Give back what all of them hold; `run` must have ended."""
        await asyncio.gather(*(store.last_report() for store in self))

    async def _end(self, stores: list[RedisStore]) -> None:
        tasks = [self._tasks.pop(store) for store in stores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _wanted(policy: PodPolicy) -> Mapping[str, StorePolicy]:
    named = {
        upstream: quota.store
        for upstream, (quota, _) in policy.quotas.items()
        if quota.store.type is StoreType.REDIS and upstream in policy.upstreams
    }
    return dict(list(named.items())[:MAX_STORES])
