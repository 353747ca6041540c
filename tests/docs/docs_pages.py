"""The project's Markdown pages as values: fenced blocks, links, headings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """One fenced block and the line that it begins on."""

    language: str
    text: str
    line: int


class Page(NamedTuple):
    """One page. `prose` is its text without the fenced blocks."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Return the path within the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def blocks(self) -> list[Block]:
        """Return the fenced blocks."""
        return [
            Block(found[1], found[2], self.text.count("\n", 0, found.start()) + 1)
            for found in _FENCE.finditer(self.text)
        ]

    @property
    def prose(self) -> str:
        """Return the text outside of the fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def links(self) -> list[str]:
        """Return the targets of all links."""
        return _LINK.findall(re.sub(r"`[^`\n]*`", "", self.prose))

    @property
    def inline_code(self) -> list[str]:
        """Return what is written as code within sentences and tables."""
        return _INLINE.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """Return the anchors of all headings, as code forges make them."""
        return {
            re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in _HEADING.findall(self.prose)
        }


def pages() -> list[Page]:
    """Return the pages that users read, those that are generated included."""
    top = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md")]
    files = [*top, *sorted((ROOT / "docs").rglob("*.md"))]
    return [Page(file, file.read_text()) for file in files]
