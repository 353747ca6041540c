"""Which header fields pass, in each direction. Nothing that frames a message on one side reaches the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

Field = tuple[str, str]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_FRAMING = frozenset({"host", "content-length", "expect"})
_IDENTITY = frozenset({"authorization", "api-key", "openai-organization", "openai-project"})
_OWN_PREFIX = "x-sluice-"
_CONNECTION_LENGTH = len("connection")

_never_sent = HOP_BY_HOP | _FRAMING


class _Kind(NamedTuple):
    """What a field is by its name: the name in lower case, whether it goes upstream, whether it may come back."""

    lower: str
    goes_up: bool
    identifies: bool
    comes_back: bool


@lru_cache(maxsize=256)
def _kind(name: str) -> _Kind:
    # Remembered, because an application sends the same few names with every call.
    lower = name.lower()
    ours = lower.startswith(_OWN_PREFIX)
    return _Kind(
        lower=lower,
        goes_up=not ours and lower not in _never_sent,
        identifies=lower in _IDENTITY,
        comes_back=not ours and lower not in HOP_BY_HOP,
    )


class RequestFields:
    """The application's header fields, sorted once per call into what goes upstream and what Sluice reads."""

    __slots__ = ("_identity", "_passed", "first")

    def __init__(self, fields: Iterable[Field]) -> None:
        """Keep of `fields`, in order and repeated as they are, those that go upstream.

        The application's own identity is dropped, unless `keep_authorization` is called: its placeholder key, and the
        organization and project, which would otherwise let it spend another project's money with our key.
        """
        self.first: dict[str, str] = {}
        self._passed: list[Field] = []
        self._identity: list[Field] = []
        first, passed = self.first, self._passed
        fields = list(fields)
        for field in fields:
            lower, goes_up, identifies, _ = _kind(field[0])
            if lower not in first:
                first[lower] = field[1]
            if goes_up:
                (self._identity if identifies else passed).append(field)
        if "connection" in first and (listed := _connection_listed(fields)):
            self._passed = [field for field in passed if _kind(field[0]).lower not in listed]
            self._identity = [field for field in self._identity if _kind(field[0]).lower not in listed]

    def keep_authorization(self) -> None:
        """Send the application's own identity after all."""
        self._passed += self._identity
        self._identity = []

    def with_fields(self, ours: Sequence[Field]) -> list[Field]:
        """Return the fields to send: the application's, where not replaced by one of `ours`, then ours."""
        replaced = {lower for name, _ in ours if (lower := _kind(name).lower) in self.first}
        if not replaced:
            return [*self._passed, *ours]
        return [field for field in self._passed if _kind(field[0]).lower not in replaced] + list(ours)


def response_fields(fields: Iterable[Field], *, drop: frozenset[str] = frozenset()) -> list[Field]:
    """Return the upstream's header fields that reach the application, in order and repeated as they are."""
    fields = list(fields)
    listed = _connection_listed(fields)
    dropped = drop | listed if listed else drop
    return [field for field in fields if (kind := _kind(field[0])).comes_back and kind.lower not in dropped]


def _connection_listed(fields: Iterable[Field]) -> frozenset[str]:
    """Names that the Connection field declares to be meant for one hop only."""
    listed = [value for name, value in fields if len(name) == _CONNECTION_LENGTH and name.lower() == "connection"]
    if not listed:
        return frozenset()
    return frozenset(name.strip().lower() for value in listed for name in value.split(",")) - {"close", "keep-alive"}
