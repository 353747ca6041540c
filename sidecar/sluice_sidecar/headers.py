"""Which header fields pass, in each direction. Nothing that frames a message on one side reaches the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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

_never_sent = HOP_BY_HOP | _FRAMING


class RequestFields:
    """The application's header fields, sorted once per call into what goes upstream and what Sluice reads."""

    __slots__ = ("_identity", "_passed", "first")

    def __init__(self, fields: Iterable[Field]) -> None:
        """Keep of `fields`, in order and repeated as they are, those that go upstream.

        The application's own identity is dropped, unless `keep_authorization` is called: its placeholder key, and the
        organization and project, which would otherwise let it spend another project's money with our key.
        """
        listed = _connection_listed(fields := list(fields))
        self.first: dict[str, str] = {}
        self._passed: list[Field] = []
        self._identity: list[Field] = []
        for name, value in fields:
            lower = name.lower()
            self.first.setdefault(lower, value)
            if lower in _never_sent or lower in listed or lower.startswith(_OWN_PREFIX):
                continue
            (self._identity if lower in _IDENTITY else self._passed).append((name, value))

    def keep_authorization(self) -> None:
        """Send the application's own identity after all."""
        self._passed += self._identity
        self._identity = []

    def with_fields(self, ours: Sequence[Field]) -> list[Field]:
        """Return the fields to send: the application's, where not replaced by one of `ours`, then ours."""
        replaced = {name.lower() for name, _ in ours}
        return [field for field in self._passed if field[0].lower() not in replaced] + list(ours)


def response_fields(fields: Iterable[Field], *, drop: frozenset[str] = frozenset()) -> list[Field]:
    """Return the upstream's header fields that reach the application, in order and repeated as they are."""
    fields = list(fields)
    listed = _connection_listed(fields)
    dropped = HOP_BY_HOP | drop | listed if listed or drop else HOP_BY_HOP
    return [
        field for field in fields if (lower := field[0].lower()) not in dropped and not lower.startswith(_OWN_PREFIX)
    ]


def _connection_listed(fields: Iterable[Field]) -> frozenset[str]:
    """Names that the Connection field declares to be meant for one hop only."""
    listed = [value for name, value in fields if name.lower() == "connection"]
    if not listed:
        return frozenset()
    return frozenset(name.strip().lower() for value in listed for name in value.split(",")) - {"close", "keep-alive"}
