"""API keys from mounted files: read again when they change, shown by nothing."""

from __future__ import annotations

import os
from pathlib import Path

from sluice_core.snapshot import CREDENTIALS_MARKER

MAX_KEY_BYTES = 16 * 1024
MAX_KEYS = 1024


class Secret:
    """A value that cannot be printed, logged, compared or encoded by accident. `reveal` is the one way out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value. The only caller is the one that puts it into the Authorization field."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> tuple[str]:
        raise TypeError("a secret is not serialised")


class Credentials:
    """The keys in one directory, by file name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._signature: object = None
        self._keys: dict[str, Secret] = {}
        self._marked = False

    def get(self, file: str) -> Secret | None:
        """Return the key in the file of this name, or None if it is missing or empty."""
        return self._keys.get(file)

    def refresh(self) -> bool:
        """Read the keys again if the directory has changed; tell whether it had.

        A directory that cannot be read keeps the last good keys: it is about to be replaced, or never existed. So does
        one whose marker is gone: its Secret was deleted or emptied by hand, and the operator is about to mend it.
        """
        try:
            names = _names(self._directory)
            marked = (self._directory / CREDENTIALS_MARKER).exists()
        except OSError:
            return False
        if self._marked and not marked:
            return False
        self._marked = marked
        signature = tuple((name, _signature(self._directory / name)) for name in names)
        if signature == self._signature:
            return False
        read = {name: _read(self._directory / name) for name in names}
        self._keys = {name: Secret(text) for name, text in read.items() if text}
        self._signature = signature
        return True


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))[:MAX_KEYS]


def _signature(path: Path) -> tuple[int, ...]:
    """Return what changes with a mount's atomic swap, and with any plain file; nothing for a link to nowhere."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> str:
    """Return the key in `path`, or nothing if it cannot be read or cannot stand in a header field."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError:
        return ""
    text = data.decode("ascii", "replace").strip()
    return text if len(data) <= MAX_KEY_BYTES and text.isascii() and text.isprintable() else ""
