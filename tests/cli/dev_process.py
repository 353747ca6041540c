"""A `sluice dev` process that can be killed and begun again over the same folder and the same state file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

SECONDS = 30.0
ARGUMENTS = ("dev", "-f", "policies.yaml", "--state", "state.json", "--port", "0", "--control-port", "0")


class DevProcess:
    """One life of `sluice dev`; it has begun when it has printed its addresses."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sluice_cli.main", *ARGUMENTS],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "SLUICE_DEV_URL"} | {"COLUMNS": "300"},
        )
        self.printed = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.until(lambda: "control " in self.printed, "the address of the control plane")
        self.control = self._found(r"^control\s+(\S+)")
        self.base_url = self._found(r"OPENAI_BASE_URL=(\S+)")
        self.mock = self._found(r"^mock of\s+\S+\s+(\S+)")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line

    def _found(self, pattern: str) -> str:
        found = re.search(pattern, self.printed, re.MULTILINE)
        assert found, self.printed
        return found.group(1)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something; fail with what was printed if it does not come or the process ends."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, f"ended: {self.printed}"
            assert time.monotonic() < end, f"{what} was not seen:\n{self.printed[-3000:]}"
            time.sleep(0.05)

    def status(self, kind: str) -> dict[str, Any]:
        """Return the status of the one resource of a kind."""
        with urllib.request.urlopen(f"{self.control}/dev/resources", timeout=10) as answer:
            items: list[dict[str, Any]] = json.load(answer)["items"]
        (status,) = [each["status"] for each in items if each["kind"] == kind]
        return dict(status)

    def call(self, model: str, **fields: str) -> tuple[int, Message]:
        """Make a call; return its status and the header of its answer."""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10})
        request = urllib.request.Request(
            f"{self.base_url}/chat/completions", body.encode(), {**fields, "Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers

    def kill(self) -> None:
        """End it with SIGKILL, and wait until nothing of it is left."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)
        self._reader.join(timeout=10)  # its sidecars hold the pipe for as long as they live
        assert not self._reader.is_alive()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def lives(directory: Path, policies: str) -> Iterator[Callable[[], DevProcess]]:
    """Give what begins a process over these policies, again and again; those that still live are killed at the end."""
    (directory / "policies.yaml").write_text(policies)
    begun: list[DevProcess] = []

    def begin() -> DevProcess:
        begun.append(DevProcess(directory))
        return begun[-1]

    yield begin
    for process in begun:
        if process.process.returncode is None:
            process.kill()
