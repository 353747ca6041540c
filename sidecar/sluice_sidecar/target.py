"""Where a request wants to go, made safe: a path below /v1 that cannot name another host or climb out of the base."""

from __future__ import annotations

import re
from urllib.parse import unquote

import msgspec

API_ROOT = "/v1"
LONGEST_TARGET = 8190
_FORBIDDEN = re.compile(r"[^!-~]|[\\#]")
_MOST_DECODINGS = 3  # servers behind servers decode more than once


class BadTargetError(ValueError):
    """The request target is malformed or tries to leave the API's root. The message holds nothing of it."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A safe target.

    `path` is what follows /v1, exactly as the client wrote it; `query` follows the question mark. `plain` is the path
    decoded and without trailing slash: what policy looks at, so that another spelling is no way around a rule.
    """

    path: str
    query: str
    plain: str

    @property
    def suffix(self) -> str:
        """Return path and query as they are appended to an upstream's base URL."""
        return f"{self.path}?{self.query}" if self.query else self.path


def parse(raw: str) -> Target | None:
    """Return the target, or None if it is well-formed but not below the API's root.

    Raises:
        BadTargetError: it is not in origin form, or holds dot segments, empty segments or control characters.
    """
    if not raw.startswith("/") or raw.startswith("//"):
        raise BadTargetError("the request target must be a path that begins with a single slash")
    if len(raw) > LONGEST_TARGET:
        raise BadTargetError("the request target is too long")
    if _FORBIDDEN.search(raw):
        raise BadTargetError("the request target holds a character that must be percent-encoded")
    path, _, query = raw.partition("?")
    _check_segments(path)
    if path != API_ROOT and not path.startswith(API_ROOT + "/"):
        return None
    below = path[len(API_ROOT) :]
    plain = below if "%" not in below else _decoded(below)
    return Target(path=below, query=query, plain=plain.rstrip("/"))


def _decoded(path: str) -> str:
    for _ in range(_MOST_DECODINGS):
        decoded = unquote(path)
        if decoded == path:
            return path
        path = decoded
    if unquote(path) != path:
        raise BadTargetError("the request target is percent-encoded too many times")
    return path


def _check_segments(path: str) -> None:
    if "%" in path:
        path = _decoded(path)
        if any(character < " " or character in "\\\x7f" for character in path):
            raise BadTargetError("the request target holds an encoded control character or backslash")
    if "//" in path:
        raise BadTargetError("the request target holds an empty segment")
    if "/." in path:
        for segment in path.split("/"):
            if segment.partition(";")[0] in (".", ".."):
                raise BadTargetError("the request target holds a dot segment")
