"""What local mode remembers from one run to the next: statuses, how far each rollout is, and what was spent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from sluice_core.api.base import Value
from sluice_core.budget import LedgerState


class Remembered(Value, frozen=True, kw_only=True):
    """What a resource has besides what its manifest says. `content` tells its spec from another one."""

    kind: str
    key: str
    generation: int
    created: str
    content: str
    requests: dict[str, str] = {}
    status: dict[str, Any] = {}


class LocalState(Value, frozen=True, kw_only=True):
    """Everything that is remembered; what was spent, by quota."""

    resources: tuple[Remembered, ...] = ()
    spending: dict[str, LedgerState] = {}


class StateError(ValueError):
    """The file holds something else. It is left as it is."""


class StateFile:
    """A file that is replaced whole: whoever kills the process at any moment finds the old state or the new one.

    It holds prompts, as statuses do, so nobody else may read it.
    """

    __slots__ = ("_path", "_written")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = b""

    def read(self) -> LocalState:
        """Return what was remembered, nothing if there is no file yet.

        Raises:
            StateError: the file holds something else.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return LocalState()
        try:
            if content[:1] == b"[":  # resources alone, as an earlier version wrote them
                return LocalState(resources=msgspec.json.decode(content, type=tuple[Remembered, ...]))
            return msgspec.json.decode(content, type=LocalState)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StateError(f"{self._path} is no state of sluice dev; name another file or remove it") from None

    def write(self, state: LocalState) -> None:
        """Replace the file, if anything has changed."""
        content = msgspec.json.encode(state)
        if content == self._written:
            return
        partial = self._path.with_name(f"{self._path.name}.partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        partial.replace(self._path)
        self._written = content
