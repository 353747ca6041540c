"""The sync channel: reports out, leases and pushed policies in. Never on the path of a call; without it files do."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Protocol

import aiohttp
import msgspec
import structlog

from sluice_core.limits.meters import LEASE_ROUND_SECONDS
from sluice_core.sync import SyncRequest, SyncResponse
from sluice_sidecar.hurry import Hurry

LONG_POLL_SECONDS = 25
REPORT_TIMEOUT_SECONDS = 5.0
SHORTEST_INTERVAL_SECONDS = 0.5
LONGEST_INTERVAL_SECONDS = 30.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
_FIRST_RETRY_SECONDS = 1.0
# Every other try may meet a standby, so it must be short: what follows an outage is to be in force within seconds.
_LONGEST_RETRY_SECONDS = 4.0

log = structlog.get_logger()


class SyncPeer(Protocol):
    """What the channel reports on and what it acts upon."""

    def report(self, sequence: int, *, stopping: bool) -> SyncRequest:
        """Return the report of this moment."""
        ...

    def answered(self, answer: SyncResponse, sent_at: float) -> None:
        """Act on an answer to a report that was sent at `sent_at`, on the loop's clock."""
        ...

    def pushed(self, snapshot: bytes) -> None:
        """Take a policy pushed by the control plane."""
        ...

    @property
    def revision(self) -> str:
        """Return the revision of the policy in force."""
        ...


class SyncError(Exception):
    """The control plane did not answer as it should. The message holds no token."""


class SyncChannel:
    """Keeps two requests going: a report every few seconds, and a long poll for new policies."""

    def __init__(self, url: str, namespace: str, token_file: Path | None, ca_file: Path | None, peer: SyncPeer) -> None:
        self._url = url
        self._namespace = namespace
        self._token_file = token_file
        self._ca_file = ca_file
        self._peer = peer
        self._hurry = Hurry(SHORTEST_INTERVAL_SECONDS, LEASE_ROUND_SECONDS)
        self._sequence = 0
        self._session: aiohttp.ClientSession | None = None
        self._ca_signature: object = None
        self._decode = msgspec.json.Decoder(SyncResponse).decode
        self.error = ""
        self.last_success: float | None = None

    def hurry(self) -> None:
        """Report soon: somebody waits, or demand has jumped."""
        self._hurry.set()

    async def run(self) -> None:
        """Report and listen until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._report_for_ever())
                tasks.create_task(self._listen_for_ever())
        finally:
            await self._close()

    async def last_report(self) -> None:
        """Send the final counts; give up after a few seconds."""
        try:
            await self._report(stopping=True)
        except SyncError as error:
            log.warning("final report lost", error=str(error))
        finally:
            await self._close()

    async def _report_for_ever(self) -> None:
        interval = SHORTEST_INTERVAL_SECONDS
        failures = 0
        while True:
            try:
                interval = await self._report(stopping=False)
                failures = 0
            except SyncError as error:
                interval = min(_FIRST_RETRY_SECONDS * 2**failures, _LONGEST_RETRY_SECONDS)
                failures = min(failures + 1, 8)
                self._failed(error)
            await self._hurry.pause(interval)

    async def _report(self, *, stopping: bool) -> float:
        self._sequence += 1
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        body = msgspec.json.encode(self._peer.report(self._sequence, stopping=stopping))
        status, answer = await self._exchange("POST", "/v1/sync", body, REPORT_TIMEOUT_SECONDS)
        if status != 200:
            raise SyncError(f"the control plane answered {status}")
        try:
            response = self._decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise SyncError("the control plane's answer cannot be read") from None
        self.error = ""
        self.last_success = loop.time()
        self._hurry.weigh(response.leases)
        self._peer.answered(response, sent_at)
        return min(max(response.interval_seconds, SHORTEST_INTERVAL_SECONDS), LONGEST_INTERVAL_SECONDS)

    async def _listen_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                snapshot = await self._listen()
                failures = 0
            except SyncError as error:
                self._failed(error)
                await asyncio.sleep(min(_FIRST_RETRY_SECONDS * 2**failures, _LONGEST_RETRY_SECONDS))
                failures = min(failures + 1, 8)
                continue
            if snapshot is not None:
                before = self._peer.revision
                self._peer.pushed(snapshot)
                if self._peer.revision == before:  # refused, or the same again: do not ask in a tight loop
                    await asyncio.sleep(_FIRST_RETRY_SECONDS)

    async def _listen(self) -> bytes | None:
        """Return a policy other than the one in force, or None if there was none for a while."""
        path = f"/v1/policy?namespace={self._namespace}&revision={self._peer.revision}&waitSeconds={LONG_POLL_SECONDS}"
        status, answer = await self._exchange("GET", path, None, LONG_POLL_SECONDS + REPORT_TIMEOUT_SECONDS)
        if status not in (200, 204):
            raise SyncError(f"the control plane answered {status}")
        return answer if status == 200 else None

    def _failed(self, error: SyncError) -> None:
        if str(error) != self.error:
            log.warning("sync failed", error=str(error))
        self.error = str(error)

    async def _exchange(self, method: str, path: str, body: bytes | None, timeout_seconds: float) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            if self._token_file is not None:
                token = self._token_file.read_text("ascii").strip()
                headers["Authorization"] = f"Bearer {token}"
            session = await self._ready_session()
            timeout = aiohttp.ClientTimeout(total=timeout_seconds)
            async with session.request(
                method, self._url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                answer = await response.content.read(MAX_ANSWER_BYTES + 1) if response.status == 200 else b""
                while answer and not response.content.at_eof() and len(answer) <= MAX_ANSWER_BYTES:
                    answer += await response.content.read(MAX_ANSWER_BYTES + 1 - len(answer))
                if len(answer) > MAX_ANSWER_BYTES:
                    raise SyncError("the control plane's answer is too large")
                return response.status, answer
        except TimeoutError:
            raise SyncError("the control plane did not answer in time") from None
        except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
            raise SyncError(f"the control plane cannot be reached: {type(error).__name__}") from None

    async def _ready_session(self) -> aiohttp.ClientSession:
        """Return a session that trusts the authority file of this moment; it is rotated in place."""
        signature = None
        if self._ca_file is not None:
            status = self._ca_file.stat()
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._session is None or signature != self._ca_signature:
            context = ssl.create_default_context(cafile=self._ca_file) if self._ca_file is not None else True
            # Report and long poll come here at once: the new session must stand before either waits for the old to end.
            before, self._session = (
                self._session,
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=4, ssl=context), cookie_jar=aiohttp.DummyCookieJar()
                ),
            )
            self._ca_signature = signature
            if before is not None:
                await before.close()
        return self._session

    async def _close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
