"""Which calls an answer may be given to again, and by what key: exact, and only where the same answer was due anyway.

The key is a hash of what is sent upstream, after all edits, as canonical JSON: two spellings of one request have one
key, and any difference that a model could notice makes another. Members that name the user or label the call are left
out: they change nothing about an answer. What an answer may depend on beside the body is in the scope.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from sluice_core.api.base import Value
from sluice_core.api.modelroute import Endpoint
from sluice_core.untrusted import UNREADABLE

MAX_KEYED_BYTES: Final = 1024 * 1024
"""Larger requests are not looked up: one of their kind seldom comes twice, and hashing it would hold up others."""

MAX_TEMPERATURE: Final = 0.1

NOISE: Final = frozenset(
    {"user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention", "store"}
)
"""Members without influence on the answer. `store` is among them because only calls that do not store get so far."""


class Obstacle(StrEnum):
    """Why the answer of a call is neither looked up nor kept."""

    CACHE_CONTROL = "cache_control"  # the caller's own header says so
    ENDPOINT = "endpoint"  # an operation whose answers are not kept
    BODY = "body"  # no JSON object, or none that can be compared
    SIZE = "size"  # a body beyond what is hashed
    TEMPERATURE = "temperature"  # sampled: absent or above 0.1
    CHOICES = "choices"  # more than one answer asked for
    STORED = "stored"  # kept by the upstream under an id of its own, or made from what is
    TOOLS = "tools"  # tools that the upstream runs itself
    REMOTE_INPUT = "remote_input"  # input that the upstream fetches from an address
    AUDIO = "audio"  # spoken answers
    UPSTREAM = "upstream"  # the upstream of the rule is gone
    USER_KEY = "user_key"  # answers are kept apart by user, and the call names none


class CacheUse(StrEnum):
    """What became of a call under a rule that keeps answers."""

    HIT = "Hit"  # answered by a kept answer
    STALE = "Stale"  # answered by a kept answer past its time, because nothing else could answer
    COALESCED = "Coalesced"  # answered by the answer to an identical call that was under way
    MISS = "Miss"  # nothing kept; the upstream was asked
    BYPASS = "Bypass"  # not looked up: sampled, or not wanted


ANSWERED: Final = frozenset({CacheUse.HIT, CacheUse.STALE, CacheUse.COALESCED})
"""Those for which nothing was asked of the upstream."""


def answer_key(endpoint: Endpoint, body: bytes, scope: Sequence[object]) -> bytes | Obstacle:
    """Return the key of the answer to a request, 32 bytes, or why it has none.

    `body` is what is sent upstream. `scope` is, as values that JSON can hold, everything else that the answer may
    depend on or must not be shared across: upstream, path, rule, arm, user.
    """
    obstacles = _OBSTACLES.get(endpoint)
    if obstacles is None:
        return Obstacle.ENDPOINT
    if len(body) > MAX_KEYED_BYTES:
        return Obstacle.SIZE
    try:
        request = _decode(body)
        for stands_in_the_way in obstacles:
            if (obstacle := stands_in_the_way(request)) is not None:
                return obstacle
        meant = {name: value for name, value in request.items() if name not in NOISE}
        return hashlib.sha256(_encode([endpoint.value, *scope, meant])).digest()
    except UNREADABLE:
        return Obstacle.BODY


def _number(text: str) -> int | float:
    """Return a JSON number as all spellings of its value are written: 1.0 and 1e0 as 1."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("out of range")
    return int(value) if value.is_integer() else value


_decode = msgspec.json.Decoder(dict[str, Any], float_hook=_number).decode
_encode = msgspec.json.Encoder(order="sorted").encode
_Request = Mapping[str, Any]


def _sampled(request: _Request) -> Obstacle | None:
    temperature = request.get("temperature")
    cold = isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature <= MAX_TEMPERATURE
    return None if cold else Obstacle.TEMPERATURE


def _choices(request: _Request) -> Obstacle | None:
    return None if request.get("n") in (None, 1) else Obstacle.CHOICES


def _stored(request: _Request) -> Obstacle | None:
    return Obstacle.STORED if request.get("store") not in (None, False) else None


def _stored_response(request: _Request) -> Obstacle | None:
    """The Responses API stores by default; such an answer has an id that the application may go on from, or delete."""
    continues = any(request.get(name) is not None for name in ("previous_response_id", "conversation", "prompt"))
    plain = request.get("store") is False and request.get("background") in (None, False) and not continues
    return None if plain else Obstacle.STORED


def _tools(request: _Request) -> Obstacle | None:
    """What the application runs is its own doing; what the upstream runs may change something, or find other things."""
    tools = request.get("tools")
    own = tools is None or (isinstance(tools, list) and all(_is_applications(tool) for tool in tools))
    return None if own and request.get("web_search_options") is None else Obstacle.TOOLS


def _is_applications(tool: object) -> bool:
    return isinstance(tool, dict) and tool.get("type") in ("function", "custom")


def _audio(request: _Request) -> Obstacle | None:
    return None if request.get("modalities") in (None, ["text"]) and request.get("audio") is None else Obstacle.AUDIO


def _remote_input(request: _Request) -> Obstacle | None:
    given = (request.get("messages"), request.get("input"))
    return Obstacle.REMOTE_INPUT if any(_is_remote(each) for each in _addresses(given)) else None


def _is_remote(address: object) -> bool:
    return isinstance(address, str) and not address.startswith("data:")


def _addresses(value: object) -> Iterator[object]:
    """Yield what stands where an address of an image or a file may stand, at every depth of an input."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("image_url", "file_url"):
                yield inner.get("url") if isinstance(inner, dict) else inner
            else:
                yield from _addresses(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            if isinstance(inner, dict | list):
                yield from _addresses(inner)


_Check = Callable[[_Request], Obstacle | None]
_OBSTACLES: Final[Mapping[Endpoint, tuple[_Check, ...]]] = {
    Endpoint.CHAT_COMPLETIONS: (_sampled, _choices, _stored, _tools, _audio, _remote_input),
    Endpoint.COMPLETIONS: (_sampled, _choices, _stored),
    Endpoint.RESPONSES: (_sampled, _stored_response, _tools, _remote_input),
    Endpoint.EMBEDDINGS: (),
    Endpoint.MODERATIONS: (_remote_input,),
}
"""What stands in the way of keeping an answer, by operation. All others have none that would be the same again."""

_ENDED_WELL: Final = frozenset({"stop", "tool_calls", "function_call"})
_NEVER_ENDS: Final = frozenset({Endpoint.EMBEDDINGS, Endpoint.MODERATIONS})


def worth_keeping(endpoint: Endpoint, status: int, finish_reason: str | None, response_status: str | None) -> bool:
    """Tell whether an answer that did not fail is whole: not cut at a limit, not held back by a content filter."""
    ended = endpoint in _NEVER_ENDS or finish_reason in _ENDED_WELL
    return status == 200 and ended and response_status in (None, "completed")


class Wishes(Value, frozen=True, kw_only=True):
    """What the caller's own Cache-Control says: whether a kept answer will do, of what age, and whether to keep it."""

    reads: bool = True
    keeps: bool = True
    max_age_seconds: float = float("inf")


_NO_WISHES: Final = Wishes()


def wishes_of(cache_control: str | None) -> Wishes:
    """Return the wishes in a Cache-Control field; directives that mean nothing here are passed over."""
    if not cache_control:
        return _NO_WISHES
    directives = [each.strip().lower() for each in cache_control.split(",")]
    ages = [each[len("max-age=") :].strip('"') for each in directives if each.startswith("max-age=")]
    seconds = [float(age) for age in ages if age.isascii() and age.isdigit() and len(age) < 12]
    refused = "no-store" in directives
    return Wishes(
        reads=not refused and "no-cache" not in directives,
        keeps=not refused,
        max_age_seconds=min(seconds, default=float("inf")),
    )
