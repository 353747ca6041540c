"""Times in status: RFC 3339 in UTC, with milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(unix_seconds: float) -> str:
    """Return a Unix time as status writes it."""
    return datetime.fromtimestamp(round(unix_seconds, 3), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix_seconds(text: str) -> float:
    """Return the Unix time that status holds; 0.0 for an empty text."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0
