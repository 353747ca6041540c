"""Changing a request body for a split, a route or the ledger, with everything else left byte for byte.

A member that is only added is spliced in before the closing brace; anything else goes through a map of unparsed values,
so that no value that policy does not name is ever re-encoded. A body in which nothing changes is returned as it came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw

from sluice_core.api.base import Value
from sluice_core.api.modelroute import Endpoint
from sluice_core.request import RequestFacts, members
from sluice_core.untrusted import UNREADABLE

PROTECTED_MEMBERS = frozenset({"model", "messages", "input", "prompt", "instructions", "stream", "stream_options"})
"""Members that overrides never set: they hold the conversation, or policy sets them by other means."""

OUTPUT_LIMIT_MEMBERS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens"})
"""Names of the same cap; the API refuses a body that holds two of them."""

_DEFAULT_LIMIT_MEMBER: dict[Endpoint, str] = {
    Endpoint.CHAT_COMPLETIONS: "max_completion_tokens",
    Endpoint.RESPONSES: "max_output_tokens",
    Endpoint.COMPLETIONS: "max_tokens",
}

_CLOSING_SPACE = b" \t\r\n"
_encode = msgspec.json.encode
_decode_list = msgspec.json.Decoder(list[Raw]).decode


class _Role(msgspec.Struct, gc=False):
    role: str = ""


_decode_role = msgspec.json.Decoder(_Role).decode
_COMMA, _OPENING_BRACKET, _CLOSING_BRACKET, _SPACE = 0x2C, 0x5B, 0x5D, frozenset(b" \t\r\n")


class _First(msgspec.Struct, array_like=True, gc=False):
    first: Raw = Raw(b"")
    second: Raw = Raw(b"")
    third: Raw = Raw(b"")


_decode_first = msgspec.json.Decoder(_First).decode
_HEAD_BYTES = 8192
_INSTRUCTING = frozenset({"system", "developer"})
_SPEAKER = re.compile(r'\{\s*"role"\s*:\s*"(?:user|assistant|tool)"')
_SPEAKER_FIRST = re.compile(rb'\[\s*(\{)\s*"role"\s*:\s*"(?:user|assistant|tool)"')
_scan = json.JSONDecoder().raw_decode


class Edits(Value, frozen=True, kw_only=True):
    """What to change. `max_output_tokens` is a cap: it lowers what the call asks for, and sets it where absent.

    `include_usage` asks a stream of chat or legacy completions to report usage; it has no effect on other calls.
    `instructions` replaces the system or developer text of the call; an empty text removes it.
    """

    model: str | None = None
    instructions: str | None = None
    overrides: dict[str, Any] = {}
    include_usage: bool = False
    max_output_tokens: int | None = None


class Editor:
    """Edits, prepared once for all calls that they apply to: what they set is already encoded.

    The model is given with the call: without one of its own, a target is sent whatever model was requested.
    """

    __slots__ = (
        "_cap",
        "_changes",
        "_changes_capped",
        "_developer",
        "_instructions",
        "_system",
    )

    def __init__(self, edits: Edits) -> None:
        overrides = {name: value for name, value in edits.overrides.items() if name not in PROTECTED_MEMBERS}
        limit = next((name for name in overrides if name in OUTPUT_LIMIT_MEMBERS), None)
        cap = edits.max_output_tokens
        self._changes = {name: Raw(_encode(value)) for name, value in overrides.items()}
        self._changes_capped = self._changes
        if cap is not None and limit is not None:  # the override takes the call's place: it is what the cap lowers
            asked = overrides[limit]
            if not isinstance(asked, int) or asked > cap:
                self._changes_capped = self._changes | {limit: Raw(_encode(cap))}
        self._cap = cap if limit is None else None
        text = edits.instructions
        self._instructions = None if text is None else Raw(_encode(text))
        self._system = _lead("system", text)
        self._developer = _lead("developer", text)

    def rewrite(
        self, endpoint: Endpoint, body: bytes, facts: RequestFacts, *, model: str | None, include_usage: bool
    ) -> bytes:
        """Return the body with the edits made and the model set, if one is given; the same object if nothing changes.

        `facts` are those that `peek` read from this very body. `include_usage` asks a stream of chat or legacy
        completions to report usage; it has no effect on other calls.

        Raises:
            BadRequestError: the body is no JSON object in UTF-8.
        """
        usage = include_usage and facts.usage_on_request and not facts.include_usage
        changes = self._changes_for(endpoint, facts, model)
        if not changes and self._instructions is None:
            if not usage:
                return body
            if not facts.has_stream_options:
                return _append(body, b'"stream_options":{"include_usage":true}')
        return self._replace(endpoint, body, changes, usage=usage)

    def _changes_for(self, endpoint: Endpoint, facts: RequestFacts, model: str | None) -> dict[str, Raw]:
        """Return the plain members to set, encoded."""
        limited = endpoint in _DEFAULT_LIMIT_MEMBER
        changes = self._changes_capped if limited else self._changes
        cap = self._cap
        sets_model = model is not None and model != facts.model
        lowers = cap is not None and limited and (facts.max_output_tokens is None or facts.max_output_tokens > cap)
        if sets_model or lowers:
            changes = dict(changes)
            if sets_model:
                changes["model"] = Raw(_encode(model))
            if lowers:
                changes[facts.output_limit_field or _DEFAULT_LIMIT_MEMBER[endpoint]] = Raw(_encode(cap))
        return changes

    def _replace(self, endpoint: Endpoint, body: bytes, changes: dict[str, Raw], *, usage: bool) -> bytes:
        found: dict[str, Any] = members(body)
        changed = usage
        if usage:
            found["stream_options"] = _with_usage(found.get("stream_options"))
        if not OUTPUT_LIMIT_MEMBERS.isdisjoint(changes):
            for name in OUTPUT_LIMIT_MEMBERS - changes.keys():
                changed |= found.pop(name, None) is not None
        for name, raw in changes.items():
            if found.get(name) != raw:
                found[name] = raw
                changed = True
        if self._instructions is not None:
            changed |= self._instruct(endpoint, found, self._instructions)
        return _encode(found) if changed else body

    def _instruct(self, endpoint: Endpoint, found: dict[str, Any], text: Raw) -> bool:
        """Put the instructions where the endpoint has its own; return whether anything changed."""
        if endpoint is Endpoint.RESPONSES:
            if found.get("instructions") == text:
                return False
            found["instructions"] = text
            return True
        if endpoint is not Endpoint.CHAT_COMPLETIONS or "messages" not in found:
            return False
        try:
            return self._lead_with_instructions(found, found["messages"])
        except UNREADABLE:
            return False  # not a list of messages: the upstream will say so

    def _lead_with_instructions(self, found: dict[str, Any], messages: Raw) -> bool:
        """Replace the leading system and developer messages by one, or by none if the text is empty.

        It is a `system` message, which every model and every compatible server takes, unless the call itself used
        `developer`.
        """
        leading, end = _none_leading(messages) or _leading_in_head(messages) or _leading(messages)
        lead, replaced = self._system, []
        for message, role in leading:
            replaced.append(message)
            if role == "developer":
                lead = self._developer
        if replaced == lead:
            return False
        rest = memoryview(messages)[end:]
        comma = b"," if lead and rest[0] != _CLOSING_BRACKET else b""
        found["messages"] = Raw(b"".join((b"[", *lead, comma, rest)))
        return True


_Leading = tuple[list[tuple[Raw, str]], int]


def _none_leading(messages: Raw) -> _Leading | None:
    """Return what `_leading` does for a conversation that begins with the message of a speaker; None for others."""
    begun = _SPEAKER_FIRST.match(messages)
    return None if begun is None else ([], begun.start(1))


def _leading_in_head(messages: Raw) -> _Leading | None:
    """Return what `_leading` does, or None if the beginning of the conversation does not tell.

    Conversations are long, their instructions are not, and a message that begins with the role of a speaker is none.
    """
    text = memoryview(messages)
    if text[0] != _OPENING_BRACKET:
        return None
    head = str(text[:_HEAD_BYTES], "latin-1")  # a character for every byte
    found = []
    begin = _behind_space(text, 1)  # behind the bracket
    while _SPEAKER.match(head, begin) is None:
        try:
            message, end = _scan(head, begin)
        except (ValueError, RecursionError):
            return None
        role = message.get("role", "") if isinstance(message, dict) else None
        if not isinstance(role, str):
            return None
        if role not in _INSTRUCTING:
            break
        found.append((Raw(bytes(text[begin:end])), role))
        begin = _behind_comma(text, end)
    return found, begin


def _leading(messages: Raw) -> _Leading:
    """Return the system and developer messages that lead a conversation, each with its role, and where it goes on."""
    found = []
    for message in _in_turn(messages):
        role = _decode_role(message).role
        if role not in _INSTRUCTING:
            break
        found.append((message, role))
    return found, _end_of(messages, [message for message, _ in found])


def _in_turn(messages: Raw) -> Iterator[Raw]:
    """Yield the messages of a conversation. Few are looked at, and slicing all of a long one takes long."""
    first = [each for each in msgspec.structs.astuple(_decode_first(messages)) if len(each)]
    yield from first
    if len(first) == len(_First.__struct_fields__):
        yield from _decode_list(messages)[len(first) :]


def _end_of(messages: Raw, first: list[Raw]) -> int:
    """Return where a list goes on behind its first items, and behind the comma that follows them."""
    text = memoryview(messages)
    position = _behind_space(text, 1)  # behind the bracket
    for item in first:
        position = _behind_comma(text, position + len(item))
    return position


def _behind_comma(text: memoryview, position: int) -> int:
    position = _behind_space(text, position)
    return _behind_space(text, position + 1) if text[position] == _COMMA else position


def _behind_space(text: memoryview, position: int) -> int:
    while text[position] in _SPACE:
        position += 1
    return position


def _lead(role: str, text: str | None) -> list[Raw]:
    return [Raw(_encode({"role": role, "content": text}))] if text else []


def rewrite(endpoint: Endpoint, body: bytes, facts: RequestFacts, edits: Edits) -> bytes:
    """Return the body with the edits made; a server keeps an `Editor` instead of preparing them for each call."""
    return Editor(edits).rewrite(endpoint, body, facts, model=edits.model, include_usage=edits.include_usage)


def _append(body: bytes, member: bytes) -> bytes:
    head = body.rstrip(_CLOSING_SPACE)[:-1]  # `peek` has seen an object, so the last byte is its closing brace
    return b"".join((head, b",", member, b"}"))


def _with_usage(options: Raw | None) -> Raw:
    """Return stream options that ask for usage, with whatever else was there kept."""
    try:
        fields = msgspec.json.decode(options, type=dict[str, Raw]) if options is not None else {}
    except UNREADABLE:  # null, or a wrong type that the upstream would refuse anyway
        fields = {}
    fields["include_usage"] = Raw(b"true")
    return Raw(_encode(fields))
