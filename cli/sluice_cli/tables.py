"""The tables that `kubectl get` prints, from the same column definitions that the CRDs carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

_FILTER = re.compile(r'^(\w+)\[\?\(@\.(\w+)=="([^"]*)"\)\]$')


def lookup(document: Any, path: str) -> Any:
    """Return the value at a JSONPath of the forms that printer columns use, or None.

    Supported: `.a.b` and `.list[?(@.key=="value")].c`.
    """
    value = document
    for step in _steps(path):
        found = _FILTER.match(step)
        name = found.group(1) if found else step
        value = value.get(name) if isinstance(value, dict) else None
        if found:
            key, wanted = found.group(2), found.group(3)
            value = next((item for item in value or () if item.get(key) == wanted), None)
        if value is None:
            return None
    return value


def _steps(path: str) -> list[str]:
    return re.findall(r"\w+(?:\[[^\]]*\])?", path)


def cell(column: dict[str, Any], document: dict[str, Any], now: datetime) -> str:
    """Return one cell's text; dates are shown as ages, as kubectl does."""
    value = lookup(document, column["jsonPath"])
    if value is None or value == "":
        return ""
    if column["type"] == "date":
        return age((now - datetime.fromisoformat(str(value))).total_seconds())
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def age(seconds: float) -> str:
    """Return a duration in kubectl's short form: `45s`, `3m20s`, `5h`, `2d`."""
    whole = int(max(seconds, 0))
    if whole < 120:
        return f"{whole}s"
    if whole < 600:
        return f"{whole // 60}m{whole % 60}s" if whole % 60 else f"{whole // 60}m"
    if whole < 3 * 3600:
        return f"{whole // 60}m"
    if whole < 48 * 3600:
        return f"{whole // 3600}h"
    return f"{whole // 86400}d"


def table(
    columns: Sequence[dict[str, Any]], documents: Sequence[dict[str, Any]], now: datetime, *, wide: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return header and rows for resources of one kind; columns of priority 1 and above only when `wide`."""
    shown = [column for column in columns if wide or not column.get("priority")]
    header = ["NAME", *(column["name"].upper() for column in shown)]
    rows = [
        [document["metadata"]["name"], *(cell(column, document, now) for column in shown)]
        for document in sorted(documents, key=lambda document: document["metadata"]["name"])
    ]
    return header, rows


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as plain text, aligned as kubectl aligns it."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    lines = ("   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (header, *rows))
    return "\n".join(line.rstrip() for line in lines)
