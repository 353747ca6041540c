"""The sidecar processes of local mode: one per workload, started, watched, restarted and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from sluice_cli.dev.mounts import Mount
from sluice_cli.dev.workloads import Workload
from sluice_core.records import CallRecord
from sluice_core.sync import PodRef

START_SECONDS = 20.0
STOP_SECONDS = 10.0
MAX_LINE_BYTES = 1024 * 1024


class SidecarError(RuntimeError):
    """A sidecar did not start. The message holds its last words."""


class _Ports(msgspec.Struct):
    proxy: int
    admin: int


class Sidecar:
    """One sidecar process and its mounted directories."""

    def __init__(
        self,
        workload: Workload,
        directory: Path,
        settings: Mapping[str, str],
        on_record: Callable[[Workload, CallRecord], None],
        port: int = 0,
    ) -> None:
        self.workload = workload
        self.name = "-".join(workload.labels.values()) or "any"
        self.uid = secrets.token_hex(8)
        self.directory = directory
        self.config = Mount(directory / "config")
        self.credentials = Mount(directory / "credentials")
        self.settings = dict(settings)
        self.port = port
        self.admin_port = 0
        self.restarts = 0
        self.errors = directory / "sidecar.log"
        self._on_record = on_record
        self._process: asyncio.subprocess.Process | None = None
        self._tether: tuple[int | None, int | None] = (None, None)
        self._readers: asyncio.Task[None] | None = None

    @property
    def pod(self) -> PodRef:
        """Return the pod that it plays: a process that takes the place of another one is of the same pod."""
        return PodRef(namespace=self.workload.namespace, name=self.name, uid=self.uid)

    @property
    def base_url(self) -> str:
        """Return what an application of this workload sets `OPENAI_BASE_URL` to."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int | None:
        """Return the process id while the sidecar runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process and wait until it listens.

        Raises:
            SidecarError: it ended or did not listen in time.
        """
        ports_file = self.directory / "ports.json"
        ports_file.unlink(missing_ok=True)
        with self.errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sluice_cli.dev.tethered",
                env=self._environment(ports_file),
                stdin=self._tie(),
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=MAX_LINE_BYTES,
                start_new_session=True,  # Ctrl-C is for us; the sidecar is stopped in order, after its clients
            )  # fmt: skip
        self._untie(own_end=False)
        self._readers = asyncio.create_task(self._read_records(self._process))
        try:
            async with asyncio.timeout(START_SECONDS):
                ports = await self._wait_for_ports(ports_file, self._process)
        except TimeoutError:
            await self.stop()
            raise SidecarError(f"the sidecar of {self.workload.name} did not listen in time") from None
        self.port, self.admin_port = ports.proxy, ports.admin

    async def stop(self) -> None:
        """Ask the process to drain, and end it if it does not."""
        process, readers = self._process, self._readers
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if readers is not None:
            await readers
        self._untie(own_end=True)
        self._process = self._readers = None

    async def restart_if_gone(self) -> bool:
        """Start the process again if it ended by itself, on the same port; tell whether that was so."""
        if self._process is None or self._process.returncode is None:
            return False
        await self.stop()
        self.restarts += 1
        await self.start()
        return True

    def _tie(self) -> int:
        """Return the end of a new tether that the process gets (see `tethered`)."""
        self._untie(own_end=True)
        self._tether = os.pipe()
        return self._tether[0]

    def _untie(self, *, own_end: bool) -> None:
        """Close the process' end of the tether here, or let the process go by closing our own."""
        theirs, ours = self._tether
        for end in (theirs, ours) if own_end else (theirs,):
            if end is not None:
                os.close(end)
        self._tether = (None, None if own_end else ours)

    def _environment(self, ports_file: Path) -> dict[str, str]:
        labels = ",".join(f"{key}={value}" for key, value in sorted(self.workload.labels.items()))
        # Only what the process needs: an API key in the developer's environment is not handed on.
        inherited = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV") if name in os.environ
        }
        return inherited | self.settings | {
            "SLUICE_LISTEN": f"127.0.0.1:{self.port}",
            "SLUICE_ADMIN": "127.0.0.1:0",
            "SLUICE_CONFIG_DIR": str(self.config.path),
            "SLUICE_CREDENTIALS_DIR": str(self.credentials.path),
            "SLUICE_LABELS": labels,
            "SLUICE_NAMESPACE": self.workload.namespace,
            "SLUICE_POD_NAME": self.name,
            "SLUICE_POD_UID": self.uid,
            "SLUICE_PORTS_FILE": str(ports_file),
        }  # fmt: skip

    async def _wait_for_ports(self, path: Path, process: asyncio.subprocess.Process) -> _Ports:
        while True:
            if process.returncode is not None:
                raise SidecarError(f"the sidecar of {self.workload.name} ended: {self._last_words()}")
            with contextlib.suppress(FileNotFoundError):
                return msgspec.json.decode(path.read_bytes(), type=_Ports)
            await asyncio.sleep(0.02)

    def _last_words(self) -> str:
        lines = self.errors.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "no message"

    async def _read_records(self, process: asyncio.subprocess.Process) -> None:
        stream = process.stdout
        if stream is None:
            return
        decoder = msgspec.json.Decoder(CallRecord)
        while line := await stream.readline():
            with contextlib.suppress(msgspec.DecodeError):  # not a record: nothing else that is printed counts
                self._on_record(self.workload, decoder.decode(line))
