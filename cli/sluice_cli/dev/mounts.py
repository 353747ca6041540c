"""Directories that look to a sidecar as a kubelet's volumes do: files behind a `..data` link, swapped at once."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path


class Mount:
    """One mounted ConfigMap or Secret."""

    __slots__ = ("_numbers", "path")

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        self._numbers = itertools.count()

    def write(self, files: Mapping[str, bytes]) -> None:
        """Replace all files by these, in one step as seen by a reader that follows `..data`."""
        version = self.path / f"..v{next(self._numbers)}"
        version.mkdir(mode=0o700)
        for name, content in files.items():
            (version / name).write_bytes(content)
        link = self.path / "..data"
        old = link.resolve() if link.is_symlink() else None
        fresh = self.path / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.rename(link)
        for name in files:
            entry = self.path / name
            if not entry.is_symlink():
                entry.symlink_to(f"..data/{name}")
        if old is not None:
            shutil.rmtree(old)
