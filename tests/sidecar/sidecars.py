"""Real sidecar processes for tests: started on free ports, fed by directories that swap as a kubelet's do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sluice_core.snapshot import Snapshot, encode, seal


class Mount:
    """A directory whose files are replaced all at once behind a `..data` link."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0
        path.mkdir(parents=True)

    def write(self, **files: str | bytes) -> None:
        """Put exactly these files there; a double underscore in a name stands for a dot."""
        self._count += 1
        data = self.path / f"..{self._count}"
        data.mkdir()
        for name, content in files.items():
            real = name.replace("__", ".")
            (data / real).write_bytes(content.encode() if isinstance(content, str) else content)
            if not (self.path / real).is_symlink():
                (self.path / real).symlink_to(f"..data/{real}")
        link = self.path / "..data_tmp"
        link.symlink_to(data.name)
        link.replace(self.path / "..data")


class Sidecar:
    """One process. Its output is collected, so that a test can look for what must not be in it."""

    def __init__(self, folder: Path, snapshot: Snapshot | None = None, **environment: str) -> None:
        self.folder = folder
        self.config = Mount(folder / "config")
        self.credentials = Mount(folder / "credentials")
        self.ports_file = folder / "ports.json"
        self.environment = environment
        self.stdout: list[bytes] = []
        self.stderr: list[bytes] = []
        self._readers: list[threading.Thread] = []
        if snapshot is not None:
            self.apply(snapshot)

    def apply(self, snapshot: Snapshot) -> str:
        """Put a snapshot into the mounted directory; return its revision."""
        sealed = seal(snapshot)
        self.config.write(snapshot__json=encode(sealed))
        return sealed.revision

    def start(self) -> Sidecar:
        """Start the process and wait until it listens."""
        self.ports_file.unlink(missing_ok=True)
        variables = {
            "SLUICE_LISTEN": "127.0.0.1:0",
            "SLUICE_ADMIN": "127.0.0.1:0",
            "SLUICE_CONFIG_DIR": str(self.config.path),
            "SLUICE_CREDENTIALS_DIR": str(self.credentials.path),
            "SLUICE_PORTS_FILE": str(self.ports_file),
            "SLUICE_NAMESPACE": "team",
            "SLUICE_POD_NAME": "chat-0",
            "SLUICE_LABELS": "app=chat",
            "SLUICE_GRACE_SECONDS": "10",
            "SLUICE_SOLE": "false" if "SLUICE_SYNC_URL" in self.environment else "true",
            **self.environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sluice_sidecar"],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._readers = [
            threading.Thread(target=_collect, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()
        # Six of them at once on two busy cores take more than ten seconds; how fast one starts is measured elsewhere.
        self.wait_until(lambda: self.ports_file.exists() or self.process.poll() is not None, 40.0)
        if not self.ports_file.exists():
            self.wait()
            raise AssertionError(f"the sidecar ended: {b''.join(self.stderr).decode()}")
        ports = json.loads(self.ports_file.read_text())
        self.port, self.admin_port = ports["proxy"], ports["admin"]
        return self

    @property
    def base_url(self) -> str:
        """Return what an application finds in OPENAI_BASE_URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def admin(self, path: str) -> tuple[int, str]:
        """Return status and body of a page of the admin port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        """Return the status page."""
        return json.loads(self.admin("/status")[1])

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all series with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = [line for line in self.admin("/metrics")[1].splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(each in line for each in wanted))

    def records(self, count: int) -> list[dict[str, Any]]:
        """Return the decision records once there are `count`."""
        self.wait_until(lambda: len(self.stdout) >= count)
        return [json.loads(line) for line in self.stdout]

    def record(self, call_id: str) -> dict[str, Any]:
        """Return the decision record of one call, waiting until it is written."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [json.loads(line) for line in list(self.stdout) if call_id.encode() in line]
            return bool(found)

        self.wait_until(look)
        assert len(found) == 1, "every call settles exactly once"
        return found[0]

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float = 20.0) -> None:
        """Wait until the condition holds."""
        deadline = time.monotonic() + timeout_seconds
        pause = threading.Event()
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not in time; the sidecar said: {b''.join(self.stderr).decode()}")
            pause.wait(0.01)

    def runs(self, revision: str) -> None:
        """Wait until this revision is in force."""
        self.wait_until(lambda: self.status()["revision"] == revision)

    def output(self) -> bytes:
        """Return everything that the process has written."""
        return b"".join(self.stdout) + b"".join(self.stderr)

    def terminate(self, timeout_seconds: float = 15.0) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float = 15.0) -> int:
        """Return the exit status once the process has ended."""
        status = self.process.wait(timeout_seconds)
        for reader in self._readers:
            reader.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status

    def kill(self) -> None:
        """End the process whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


def _collect(pipe: Any, lines: list[bytes]) -> None:
    for line in iter(pipe.readline, b""):
        lines.append(line)  # noqa: PERF402 - one by one, because others look on
