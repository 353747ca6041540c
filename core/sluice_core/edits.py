"""Changing a request body for a split, a route or the ledger, with everything else left byte for byte.

A member that is only added is spliced in before the closing brace; anything else goes through a map of unparsed values,
so that no value that policy does not name is ever re-encoded. A body in which nothing changes is returned as it came.
"""

from __future__ import annotations

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


NO_EDITS = Edits()


def rewrite(endpoint: Endpoint, body: bytes, facts: RequestFacts, edits: Edits) -> bytes:
    """Return the body with the edits made; the same object if nothing changes.

    `facts` are those that `peek` read from this very body.

    Raises:
        BadRequestError: the body is no JSON object in UTF-8.
    """
    usage = edits.include_usage and facts.usage_on_request and not facts.include_usage
    if usage and not facts.has_stream_options and _only_usage(facts, edits):
        return _append(body, b'"stream_options":{"include_usage":true}')
    if not usage and edits == NO_EDITS:
        return body
    changes = _changes(endpoint, facts, edits)
    if not changes and not usage and edits.instructions is None:
        return body
    return _replace(endpoint, body, edits, changes, usage=usage)


def _only_usage(facts: RequestFacts, edits: Edits) -> bool:
    return (
        (edits.model is None or edits.model == facts.model)
        and edits.instructions is None
        and not edits.overrides
        and edits.max_output_tokens is None
    )


def _append(body: bytes, member: bytes) -> bytes:
    head = body.rstrip(_CLOSING_SPACE)[:-1]  # `peek` has seen an object, so the last byte is its closing brace
    return b"".join((head, b",", member, b"}"))


def _changes(endpoint: Endpoint, facts: RequestFacts, edits: Edits) -> dict[str, bytes]:
    """Return the plain members to set, encoded."""
    changes = {name: _encode(value) for name, value in edits.overrides.items() if name not in PROTECTED_MEMBERS}
    if edits.model is not None and edits.model != facts.model:
        changes["model"] = _encode(edits.model)
    cap = edits.max_output_tokens
    if cap is not None and endpoint in _DEFAULT_LIMIT_MEMBER:
        _cap_output(endpoint, facts, cap, changes)
    return changes


def _cap_output(endpoint: Endpoint, facts: RequestFacts, cap: int, changes: dict[str, bytes]) -> None:
    overridden = next((name for name in changes if name in OUTPUT_LIMIT_MEMBERS), None)
    if overridden is not None:
        asked = msgspec.json.decode(changes[overridden])
        if not isinstance(asked, int) or asked > cap:
            changes[overridden] = _encode(cap)
    elif facts.max_output_tokens is None or facts.max_output_tokens > cap:
        changes[facts.output_limit_field or _DEFAULT_LIMIT_MEMBER[endpoint]] = _encode(cap)


def _replace(endpoint: Endpoint, body: bytes, edits: Edits, changes: dict[str, bytes], *, usage: bool) -> bytes:
    found = members(body)
    changed = usage
    if usage:
        found["stream_options"] = _with_usage(found.get("stream_options"))
    if not OUTPUT_LIMIT_MEMBERS.isdisjoint(changes):
        for name in OUTPUT_LIMIT_MEMBERS - changes.keys():
            changed |= found.pop(name, None) is not None
    for name, encoded in changes.items():
        if name not in found or bytes(found[name]) != encoded:
            found[name] = Raw(encoded)
            changed = True
    if edits.instructions is not None:
        changed |= _instruct(endpoint, found, edits.instructions)
    return _encode(found) if changed else body


def _with_usage(options: Raw | None) -> Raw:
    """Return stream options that ask for usage, with whatever else was there kept."""
    try:
        fields = msgspec.json.decode(options, type=dict[str, Raw]) if options is not None else {}
    except UNREADABLE:  # null, or a wrong type that the upstream would refuse anyway
        fields = {}
    fields["include_usage"] = Raw(b"true")
    return Raw(_encode(fields))


def _instruct(endpoint: Endpoint, found: dict[str, Raw], text: str) -> bool:
    """Put the instructions where the endpoint has its own; return whether anything changed."""
    if endpoint is Endpoint.RESPONSES:
        member, value = "instructions", _encode(text)
    elif endpoint is Endpoint.CHAT_COMPLETIONS and "messages" in found:
        try:
            member, value = "messages", _instructed(_decode_list(found["messages"]), text)
        except UNREADABLE:
            return False  # not a list of messages: the upstream will say so
    else:
        return False
    if member in found and bytes(found[member]) == value:
        return False
    found[member] = Raw(value)
    return True


def _instructed(messages: list[Raw], text: str) -> bytes:
    """Return the messages with the leading system and developer ones replaced by one.

    It is a `system` message, which every model and every compatible server takes, unless the call itself used
    `developer`.
    """
    roles: list[str] = []
    for message in messages:
        role = _decode_role(message).role
        if role not in ("system", "developer"):
            break
        roles.append(role)
    rest = messages[len(roles) :]
    if not text:
        return _encode(rest)
    role = "developer" if "developer" in roles else "system"
    return _encode([Raw(_encode({"role": role, "content": text})), *rest])
