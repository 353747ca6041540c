"""Takes one account's slices from a Redis server, about every second or when somebody waits.

No call ever waits for this: what was granted is used from memory, and runs out into the safe share if the server is
slow or gone. An answer that comes too late is not used; the next report tells what the pod really holds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from importlib import resources
from typing import Final, Protocol

import msgspec
import structlog

from sluice_core.limits.admission import Admission
from sluice_core.limits.demand import left_behind
from sluice_core.limits.redis_slices import SliceAnswerError, slice_answer, slice_call
from sluice_core.snapshot import StorePolicy
from sluice_sidecar.credentials import Credentials, Secret
from sluice_sidecar.gate import Gate
from sluice_sidecar.hurry import Hurry
from sluice_sidecar.store.redis_link import RedisLink, Script, StoreError, address_of

CONNECT_SECONDS: Final = 2.0
CALL_SECONDS: Final = 1.0
BUSY_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 2.0
LONGEST_SECONDS: Final = 8.0
"""However many pods there are: a slice lasts for several calls."""
LEAST_GAP_SECONDS: Final = 0.05
"""Between calls of a pod that is in a hurry; it doubles while the hurry brings nothing."""
_LEAST_AHEAD_SECONDS: Final = 1.5
"""Demand is told for no shorter time ahead: with less, each call would bring too little for those who wait."""
_STUMBLE_SECONDS: Final = 5.0
_FIRST_RETRY_SECONDS: Final = 0.25
_LONGEST_RETRY_SECONDS: Final = 4.0

log = structlog.get_logger()


class StorePeer(Protocol):
    """Whose limits they are."""

    admission: Admission
    gate: Gate
    credentials: Credentials
    instance: str
    clock: Callable[[], float]


class RedisStore:
    """The slices of one account. `error` says what is wrong, if anything is."""

    def __init__(self, upstream: str, policy: StorePolicy, peer: StorePeer) -> None:
        self.upstream = upstream
        self.policy = policy
        self.error = ""
        self.calls = 0
        self.failures = 0
        self.last_success: float | None = None
        self.learning_seconds = 0.0
        self._peer = peer
        self._script = Script(resources.files(__package__).joinpath("slices.lua").read_text("utf-8"))
        self._link: RedisLink | None = None
        self._moved_to: tuple[str, int] | None = None
        self._sequence = 0
        self._hurry = Hurry(LEAST_GAP_SECONDS, BUSY_SECONDS)

    def hurry(self) -> None:
        """Call soon: somebody waits."""
        self._hurry.set()

    def failing(self, now: float) -> str:
        """Return what is wrong, if that is so for longer than a stumble."""
        lately = self.last_success is not None and now - self.last_success < _STUMBLE_SECONDS
        return "" if lately else self.error

    async def run(self) -> None:
        """Call until cancelled."""
        failed = 0
        try:
            while True:
                try:
                    pause_seconds = await self._take(stopping=False)
                except StoreError as error:
                    self._failed(error)
                    longest = min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** min(failed, 8))
                    failed += 1
                    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - many pods lose the same server at once
                    await asyncio.sleep(longest * jitter)
                else:
                    failed = 0
                    await self._hurry.pause(pause_seconds)
        finally:
            await self._close()

    async def last_report(self) -> None:
        """Give back everything; give up after a second."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._take(stopping=True)
        except (StoreError, TimeoutError) as error:
            log.warning("slices not given back; they expire", account=self.policy.name, error=str(error))
        finally:
            await self._close()

    async def _take(self, *, stopping: bool) -> float:
        """Report, put the slices that answer it into force, and return after how many seconds to call again."""
        admission = self._peer.admission
        if not admission.knows(self.upstream):
            return IDLE_SECONDS
        link = self._link = self._link or await self._open()
        sent_at = self._peer.clock()
        account = admission.account(self.upstream)
        demands = left_behind(account, sent_at) if stopping else admission.demands_of(self.upstream, sent_at)
        self._sequence += 1
        call = slice_call(
            account,
            demands,
            server=link.server,
            pod=self._peer.instance,
            sequence=self._sequence,
            stopping=stopping,
        )
        try:
            answer = slice_answer(
                call, await link.call(self._script, call.keys, call.arguments, timeout_seconds=CALL_SECONDS)
            )
        except SliceAnswerError as error:
            await self._close()  # what else comes over this connection cannot be believed either
            raise StoreError(f"the store's answer cannot be read: {error}") from None
        except StoreError as error:
            self._link = None
            self._moved_to = error.moved_to
            raise
        self._succeeded(answer.learning_seconds)
        if not stopping:
            ahead = max(_LEAST_AHEAD_SECONDS, answer.interval_seconds)
            admission.apply_leases(answer.leases, sent_at=sent_at, interval_seconds=ahead)
            self._hurry.weigh(answer.leases)
            self._peer.gate.pump()
        self._hurry.most_seconds = seconds = max(BUSY_SECONDS / 2, min(LONGEST_SECONDS, answer.interval_seconds))
        idle = not any(each.used or each.wanted for each in demands)
        return max(IDLE_SECONDS, seconds) if idle else seconds

    async def _open(self) -> RedisLink:
        password: Secret | None = None
        if self.policy.password_file is not None:
            password = self._peer.credentials.get(self.policy.password_file)
            if password is None:
                raise StoreError("the store's password is not mounted; see the Secret in spec.store.secretRef")
        address = address_of(self.policy.url, self.policy.ca_bundle)
        moved_to, self._moved_to = self._moved_to, None  # if it is not there either, begin anew
        if moved_to is not None:
            host, port = moved_to
            address = msgspec.structs.replace(address, host=host or address.host, port=port)
        return await RedisLink.open(address, self.policy.username, password, CONNECT_SECONDS)

    def _succeeded(self, learning_seconds: float) -> None:
        if self.error:
            log.info("store answers again", account=self.policy.name)
        self.calls += 1
        self.error = ""
        self.last_success = self._peer.clock()
        self.learning_seconds = learning_seconds

    def _failed(self, error: StoreError) -> None:
        self.calls += 1
        self.failures += 1
        if str(error) != self.error:
            log.warning("store failed; leases run out into the safe share", account=self.policy.name, error=str(error))
        self.error = str(error)

    async def _close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()
