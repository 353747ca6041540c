"""Making an input smaller after the upstream has said that it does not fit into the model's context.

The oldest turns go; the system text and the latest turn stay. The Responses API does this itself when it is asked to.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from sluice_core.api.modelroute import Endpoint
from sluice_core.request import members
from sluice_core.untrusted import UNREADABLE

_KEPT_SHARE = 0.5
_INSTRUCTION_ROLES = frozenset({"system", "developer"})
_TRUNCATION_AUTO = b'"auto"'


class _Message(msgspec.Struct, gc=False):
    role: str = ""


_decode_list = msgspec.json.Decoder(list[Raw]).decode
_decode_message = msgspec.json.Decoder(_Message).decode


def shrink(endpoint: Endpoint, body: bytes) -> bytes | None:
    """Return the body with a smaller input, everything else byte for byte; None if nothing can be left out.

    Chat: the oldest turns are dropped until about half of the conversation is left. What is kept begins with a user's
    message, so that no tool result loses the call it answers. Responses: `truncation` becomes `auto`.

    Raises:
        BadRequestError: the body is no JSON object.
    """
    found = members(body)
    if endpoint is Endpoint.RESPONSES:
        if "truncation" in found and bytes(found["truncation"]) == _TRUNCATION_AUTO:
            return None
        found["truncation"] = Raw(_TRUNCATION_AUTO)
        return msgspec.json.encode(found)
    if endpoint is not Endpoint.CHAT_COMPLETIONS or "messages" not in found:
        return None
    try:
        messages = _decode_list(found["messages"])
        roles = [_decode_message(message).role for message in messages]
    except UNREADABLE:
        return None
    start = _first_kept(roles, [len(message) for message in messages])
    if start is None:
        return None
    kept = [message for role, message in zip(roles[:start], messages, strict=False) if role in _INSTRUCTION_ROLES]
    found["messages"] = Raw(msgspec.json.encode([*kept, *messages[start:]]))
    return msgspec.json.encode(found)


def _first_kept(roles: list[str], sizes: list[int]) -> int | None:
    """Return the index of the user's message with which what is kept begins; None if all has to stay."""
    users = [index for index, role in enumerate(roles) if role == "user"]
    if len(users) < 2:
        return None
    total = sum(size for role, size in zip(roles, sizes, strict=True) if role not in _INSTRUCTION_ROLES)
    rest, counted = sum(sizes), 0  # of the messages from `counted` on
    for index in users[1:]:
        rest, counted = rest - sum(sizes[counted:index]), index
        if rest <= total * _KEPT_SHARE:
            return index
    return users[-1]
