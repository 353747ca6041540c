"""How large the input of a request is, with inline media told apart from text.

A data URL of an image is megabytes of base64 but costs a few hundred tokens; counted as text, it would block a caller
for good. Where no message has typed content parts the length of the input is all there is to know, and looking for the
brackets that begin such parts is far cheaper than parsing the messages.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from sluice_core.media_walk import walk
from sluice_core.untrusted import UNREADABLE

_ABSENT = Raw(b"")
_MAX_BRACKETS = 16
"""Brackets that are looked at before it is cheaper to parse the messages."""

_PARTS_FOLLOW = b'content":'
_OPENING_BRACKET = 0x5B
_BASE64_BYTES_PER_CHARACTER = 3 / 4

_RUN = 4096
"""Bytes without a space, a comma or a quote that are probably no text."""


class _Item(msgspec.Struct, gc=False):
    content: Raw = _ABSENT
    type: str = ""
    output: Raw = _ABSENT  # of a function call, in the Responses API; may hold content parts
    result: Raw = _ABSENT  # of an image generation call: base64


class _Url(msgspec.Struct, gc=False):
    url: Raw = _ABSENT
    detail: str | None = None


class _Audio(msgspec.Struct, gc=False):
    data: Raw = _ABSENT


class _File(msgspec.Struct, gc=False):
    file_data: Raw = _ABSENT


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    detail: str | None = None
    image_url: str | _Url | None = None
    input_audio: _Audio | None = None
    file: _File | None = None
    file_data: Raw = _ABSENT


class _Sizes:
    """What has been found so far."""

    __slots__ = ("audio_bytes", "file_bytes", "images", "media_characters")

    def __init__(self) -> None:
        self.images: list[str] = []
        self.audio_bytes = 0
        self.file_bytes = 0
        self.media_characters = 0


_decode_items = msgspec.json.Decoder(list[_Item]).decode
_decode_parts = msgspec.json.Decoder(list[_Part]).decode

Measures = tuple[int, tuple[str, ...], int, int]


def measure(body: bytes, messages: Raw, items: Raw, text_characters: int) -> Measures:
    """Return (text characters, detail of each image, audio bytes, file bytes) of a body.

    `messages` is the conversation of a chat, `items` the input of a response; `text_characters` is the length of all
    else that is read.
    """
    characters = text_characters + len(messages) + len(items)
    sizes = None
    if len(messages) and _has_parts(body):
        sizes = _Sizes()
        _measure_items(messages, sizes)
    if len(items) and memoryview(items)[0] == _OPENING_BRACKET:
        sizes = sizes or _Sizes()
        _measure_items(items, sizes)
    if sizes is None:
        if characters > 2 * _RUN and _has_run(body):
            return walk(body, characters)
        return characters, (), 0, 0
    left = max(0, characters - sizes.media_characters)
    if left > 2 * _RUN and _has_run(body):
        return walk(body, characters)  # media may be where nobody looked
    return left, tuple(sizes.images), sizes.audio_bytes, sizes.file_bytes


def _has_run(body: bytes) -> bool:
    """Tell whether the body may hold base64: that has none of what every text has often. Short ones are missed."""
    for at in range(0, len(body) - _RUN, _RUN):
        end = at + _RUN
        if body.find(b" ", at, end) < 0 and body.find(b",", at, end) < 0 and body.find(b'"', at, end) < 0:
            return True
    return False


def _has_parts(body: bytes) -> bool:
    """Tell whether some content in the body may be a list. In odd spacing it is missed, and all counts as text."""
    at = body.find(_OPENING_BRACKET)
    for _ in range(_MAX_BRACKETS):
        if at < 0:
            return False
        if body[at - 9 : at] == _PARTS_FOLLOW or body[at - 10 : at - 1] == _PARTS_FOLLOW:  # one space at most
            return True
        at = body.find(_OPENING_BRACKET, at + 1)
    return at >= 0


def _measure_items(raw: Raw, sizes: _Sizes) -> None:
    try:
        items = _decode_items(raw)
    except UNREADABLE:
        return  # a plain string, tokens, or a shape that we do not know: all of it counts as text
    for item in items:
        if len(item.result):
            sizes.media_characters += len(item.result)
        for content in (item.content, item.output):
            if len(content) and memoryview(content)[0] == _OPENING_BRACKET:
                _measure_parts(content, sizes)


def _measure_parts(raw: Raw, sizes: _Sizes) -> None:
    try:
        parts = _decode_parts(raw)
    except UNREADABLE:
        return
    for part in parts:
        if part.image_url is not None or part.type == "input_image":
            _add_image(part, sizes)
        if part.input_audio is not None:
            sizes.media_characters += len(part.input_audio.data)
            sizes.audio_bytes += _decoded(len(part.input_audio.data))
        for data in (part.file_data, part.file.file_data if part.file is not None else _ABSENT):
            sizes.media_characters += len(data)
            sizes.file_bytes += _decoded(len(data))


def _add_image(part: _Part, sizes: _Sizes) -> None:
    url = part.image_url
    detail = part.detail
    if isinstance(url, _Url):
        detail = url.detail or detail
        sizes.media_characters += len(url.url)
    elif url is not None:
        sizes.media_characters += len(url)
    sizes.images.append(detail if detail in ("low", "high") else "auto")


def _decoded(characters: int) -> int:
    return int(max(0, characters - 2) * _BASE64_BYTES_PER_CHARACTER)
