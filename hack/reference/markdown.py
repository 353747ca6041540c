"""Markdown from values, and the comments that stand beside the members of an enumeration."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

GENERATED = "<!-- Generated from code by `make crds`; edits are lost. -->"


def page(title: str, *parts: str) -> str:
    """Return a page of paragraphs and tables under a title."""
    return "\n\n".join((f"# {title}", GENERATED, *(part.strip() for part in parts))) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; what would end a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: object) -> str:
    """Return inline code, empty for nothing."""
    if text in ("", None):
        return ""
    return f"`` {text} ``" if "`" in str(text) else f"`{text}`"


def comments(enumeration: type[StrEnum]) -> dict[str, str]:
    """Return, by value, the comments that stand on the lines of an enumeration's members; empty where there is none."""
    found = {member.value: "" for member in enumeration}
    line = re.compile(r'^\s*[A-Z0-9_]+ = "([^"]+)"(?:\s*#\s*(?:noqa: \S+\s*)?(.*))?$', re.MULTILINE)
    return found | dict(line.findall(inspect.getsource(enumeration)))
