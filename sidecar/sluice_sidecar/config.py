"""The policy and the pod's labels: watched on disk, pushed over the sync channel, swapped whole, last good kept."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from sluice_core.snapshot import Snapshot, SnapshotError, decode

SNAPSHOT_FILE = "snapshot.json"
MAX_SNAPSHOT_BYTES = 8 * 1024 * 1024
POLL_SECONDS = 0.5
CHANNEL_TRUST_SECONDS = 60.0
"""How long a pushed policy counts after the channel was last heard of."""


class WatchedFile:
    """One file, or one that a mount swaps by symbolic link. Plain stat calls see both; inotify would not."""

    __slots__ = ("_signature", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signature: tuple[int, ...] | None = None

    def read_if_changed(self, limit: int) -> bytes | None:
        """Return the content if it is not the one returned last, else None.

        Raises:
            OSError: it cannot be read, or is larger than `limit`. The next call tries again.
        """
        status = self.path.stat()
        signature = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if signature == self._signature:
            return None
        with self.path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise OSError(f"larger than {limit} bytes")
        self._signature = signature
        return data


class PolicySource:
    """Which snapshot is in force. `current` is replaced whole; `error` says what is wrong with the newest one."""

    def __init__(self, directory: Path) -> None:
        self._file = WatchedFile(directory / SNAPSHOT_FILE)
        self._mounted: Snapshot | None = None
        self._pushed: Snapshot | None = None
        self._pushed_before: deque[str] = deque(maxlen=64)
        self._channel_heard_at = float("-inf")
        self.error = ""
        self.rejected = 0

    def poll(self) -> None:
        """Read the mounted snapshot if it has changed. A bad one is rejected whole and the last good one kept."""
        try:
            data = self._file.read_if_changed(MAX_SNAPSHOT_BYTES)
        except OSError as error:
            self.error = f"{SNAPSHOT_FILE} cannot be read: {error.strerror or error}"
            return
        if data is None:
            return
        mounted = self._accept(data)
        if mounted is None:
            return
        self._mounted = mounted
        if self._pushed is not None and mounted.revision not in self._pushed_before:
            self._pushed = None  # newer than what was pushed; an echo of an earlier push is not

    def push(self, data: bytes, now: float) -> bool:
        """Take a snapshot from the sync channel; tell whether it was good."""
        pushed = self._accept(data)
        if pushed is None:
            return False
        self.heard(now)
        self._pushed = pushed
        self._pushed_before.append(pushed.revision)
        return True

    def heard(self, now: float) -> None:
        """Note that the sync channel works."""
        self._channel_heard_at = now

    def current(self, now: float) -> Snapshot | None:
        """Return the snapshot in force, or None before the first good one."""
        if self._pushed is not None and (
            self._mounted is None or now - self._channel_heard_at <= CHANNEL_TRUST_SECONDS
        ):
            return self._pushed
        return self._mounted

    def _accept(self, data: bytes) -> Snapshot | None:
        try:
            snapshot = decode(data)
        except SnapshotError as error:
            self.error = str(error)
            self.rejected += 1
            return None
        self.error = ""
        return snapshot


class LabelSource:
    """The pod's labels: given, or in a downward API file with one `key="value"` a line."""

    def __init__(self, given: dict[str, str], path: Path | None) -> None:
        self._given = given
        self._file = WatchedFile(path) if path is not None else None
        self.labels = dict(given)
        self.error = ""

    def poll(self) -> bool:
        """Read the file if it has changed; tell whether it had. A missing one keeps the last labels."""
        if self._file is None:
            return False
        try:
            data = self._file.read_if_changed(1024 * 1024)
        except OSError as error:
            self.error = f"the labels file cannot be read: {error.strerror or error}"
            return False
        if data is None:
            return False
        self.error = ""
        self.labels = {**parse_labels(data.decode("utf-8", "replace")), **self._given}
        return True


def parse_labels(text: str) -> dict[str, str]:
    """Return the labels in the downward API's format. Lines that are none are skipped."""
    labels = {}
    for line in text.splitlines():
        key, separator, quoted = line.strip().partition("=")
        if separator and key:
            labels[key] = quoted[1:-1] if quoted[:1] == '"' == quoted[-1:] else quoted
    return labels
