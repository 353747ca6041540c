"""The text of a request's input, for whoever counts its tokens exactly instead of by its length.

The framing is that of OpenAI's cookbook ("How to count tokens with tiktoken"): three tokens for each message, one for a
name, three before the answer. Tools and schemas are counted as they stand in the body, which is close but not exact:
the format that the models see is not published. Media are not text; `estimate` has rules for them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from sluice_core.api.base import Value
from sluice_core.api.modelroute import Endpoint
from sluice_core.untrusted import UNREADABLE

_PER_MESSAGE: Final = 3
_PER_NAME: Final = 1
_BEFORE_ANSWER: Final = 3
_TEXT_FIELDS: Final = ("role", "name", "text", "refusal", "arguments", "output", "content")


class InputText(Value, frozen=True, kw_only=True):
    """The pieces of text that are encoded one by one, and the tokens that come on top of them."""

    pieces: tuple[str, ...]
    tokens: int = 0


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def input_text(endpoint: Endpoint, body: bytes) -> InputText | None:
    """Return the text of the input of a request, None where its tokens are not counted from text."""
    try:
        fields = _decode(body)
        match endpoint:
            case Endpoint.CHAT_COMPLETIONS:
                return _conversation(fields, "messages", ("tools", "functions", "response_format"))
            case Endpoint.RESPONSES:
                return _conversation(fields, "input", ("tools", "text"))
            case Endpoint.COMPLETIONS:
                return _plain(fields.get("prompt"))
            case Endpoint.EMBEDDINGS:
                return _plain(fields.get("input"))
            case _:
                return None
    except (*UNREADABLE, TypeError):
        return None


def _conversation(fields: dict[str, Any], name: str, schemas: tuple[str, ...]) -> InputText:
    pieces: list[str] = []
    tokens = _BEFORE_ANSWER
    if isinstance(instructions := fields.get("instructions"), str):
        pieces.append(instructions)
        tokens += _PER_MESSAGE
    turns = fields.get(name)
    for turn in turns if isinstance(turns, list) else [turns]:
        tokens += _PER_MESSAGE
        if isinstance(turn, dict):
            tokens += _PER_NAME if "name" in turn and "role" in turn else 0
            calls = turn.get("tool_calls") or ()
            _collect([call.get("function") for call in calls if isinstance(call, dict)], pieces)
        _collect(turn, pieces)
    pieces.extend(msgspec.json.encode(fields[schema]).decode() for schema in schemas if fields.get(schema))
    return InputText(pieces=tuple(pieces), tokens=tokens)


def _collect(part: Any, pieces: list[str]) -> None:
    """Add the text of a message, an item or a content part."""
    if isinstance(part, str):
        pieces.append(part)
    elif isinstance(part, list):
        for each in part:
            _collect(each, pieces)
    elif isinstance(part, dict):
        for field in _TEXT_FIELDS:
            _collect(part.get(field), pieces)


def _plain(given: Any) -> InputText:
    """Return a prompt or what is to be embedded: text, several texts, tokens, or several lists of them."""
    pieces: list[str] = []
    tokens = 0
    for each in given if isinstance(given, list) else [given]:
        match each:
            case str():
                pieces.append(each)
            case list():
                tokens += len(each)
            case int():
                tokens += 1
            case _:
                pass
    return InputText(pieces=tuple(pieces), tokens=tokens)
