"""The processes under test: started pinned to a core, measured from the outside, stopped for certain."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent


def pinned(core: int | None) -> list[str]:
    """Return the prefix of a command that pins it to a core, where that is possible."""
    if core is None or shutil.which("taskset") is None or (os.cpu_count() or 1) <= core:
        return []
    return ["taskset", "-c", str(core)]


@contextmanager
def started(
    command: Sequence[str], *, core: int | None, env: dict[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a process for the length of the block."""
    with (log or Path(os.devnull)).open("ab") as errors:
        process = subprocess.Popen(
            [*pinned(core), *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=None if env is None else {**_inherited(), **env},
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def first_line(process: subprocess.Popen[str]) -> str:
    """Return the first line that a process prints."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{process.args!r} ended before it was ready")
    return line


def wait_until_ready(url: str, process: subprocess.Popen[Any], *, seconds: float = 60.0) -> None:
    """Wait until a process answers at this address with 200.

    Raises:
        RuntimeError: it ended, or did not within the time.
    """
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended before it was ready")
        with contextlib.suppress(URLError, ConnectionError, TimeoutError), urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.005)
    raise RuntimeError(f"{url} was not ready within {seconds:g} s")


def resident_mib(pid: int) -> float:
    """Return a process's resident memory, its children's included, in MiB."""
    total = 0
    for each in (pid, *_children(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
    return total / 1024


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        direct = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [each for child in direct for each in (child, *_children(child))]
    return []
