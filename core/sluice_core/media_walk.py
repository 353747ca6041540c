"""Inline media in requests of any shape: found by what they look like, wherever they are.

The last resort for large inputs whose media are not where `media` looks for them: unusual spacing, one malformed part,
an item that is newer than this code. It parses the whole input, which is slow.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sluice_core.untrusted import UNREADABLE

_INPUT: Final = frozenset(
    {"messages", "input", "prompt", "instructions", "tools", "functions", "response_format", "text"}
)
_LITERAL: Final = frozenset({"text", "content", "arguments", "instructions"})
"""Members that the upstream reads as text, whatever stands in them."""

_MARK: Final = ";base64,"
_LONGEST_TYPE: Final = 128
_DETAILS: Final = frozenset({"low", "high"})
_BASE64_BYTES_PER_CHARACTER: Final = 3 / 4

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode = msgspec.json.Decoder().decode


class _Found:
    __slots__ = ("audio_bytes", "characters", "file_bytes", "images")

    def __init__(self) -> None:
        self.characters = 0
        self.images: list[str] = []
        self.audio_bytes = 0
        self.file_bytes = 0


def walk(body: bytes, characters: int) -> tuple[int, tuple[str, ...], int, int]:
    """Return (text characters, detail of each image, audio bytes, file bytes) of an input of so many characters."""
    found = _Found()
    try:
        stack: list[Any] = [_decode(raw) for name, raw in _decode_members(body).items() if name in _INPUT]
    except UNREADABLE:
        return characters, (), 0, 0
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            _look_at(value, found)
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(each for each in value if isinstance(each, dict | list))
    return max(0, characters - found.characters), tuple(found.images), found.audio_bytes, found.file_bytes


def _look_at(item: dict[str, Any], found: _Found) -> None:
    kind = item.get("type")
    for name, value in item.items():
        if not isinstance(value, str) or name in _LITERAL:
            continue
        head, mark, _ = value[:_LONGEST_TYPE].partition(_MARK)
        if mark and head.startswith("data:"):
            _add(head[5:], value, item, found)
        elif name == "image_url" or (name == "url" and kind is None and "detail" in item):
            found.images.append(_detail(item))
        elif name == "data" and "format" in item:
            _add("audio/", value, item, found)
        elif name == "file_data":
            _add("", value, item, found)
        elif name == "result" and kind == "image_generation_call":
            found.characters += len(value)
    if kind == "input_image" and "image_url" not in item:
        found.images.append(_detail(item))


def _add(media_type: str, value: str, item: dict[str, Any], found: _Found) -> None:
    found.characters += len(value)
    size = int(len(value) * _BASE64_BYTES_PER_CHARACTER)
    if media_type.startswith("image/"):
        found.images.append(_detail(item))
    elif media_type.startswith("audio/"):
        found.audio_bytes += size
    else:
        found.file_bytes += size


def _detail(item: dict[str, Any]) -> str:
    detail = item.get("detail")
    return detail if isinstance(detail, str) and detail in _DETAILS else "auto"
