"""The directory that local mode works in. What a killed process leaves behind, the next start clears away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PREFIX: Final = "sluice-dev-"
_YOUNG_SECONDS: Final = 60.0
"""A directory of this age may be one that its process has made and not locked yet."""


@contextlib.contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """Make a private directory and remove it at the end; first remove those whose processes are dead.

    It holds keys and prompts. A process keeps a lock on its directory for as long as it lives, however it ends, so no
    process id has to be believed.
    """
    parent = parent or Path(tempfile.gettempdir())
    _sweep(parent, time.time())
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as name:
        lock = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(lock)


def _sweep(parent: Path, now_unix: float) -> None:
    with os.scandir(parent) as entries:
        found = [entry for entry in entries if entry.name.startswith(_PREFIX)]
    for entry in found:
        with contextlib.suppress(OSError):  # somebody else clears it away at this moment, or it is in use
            status = entry.stat(follow_symlinks=False)
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if ours and now_unix - status.st_mtime > _YOUNG_SECONDS:
                _remove_if_left(Path(entry.path))


def _remove_if_left(path: Path) -> None:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)
