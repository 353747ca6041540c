"""Header fields as they came, and which of them pass, in each direction. Nothing that frames a message reaches the
other side.

Clients and servers send the same names with every message, and only the values differ. So whatever follows from the
names is worked out once for each list of names (`_Layout`), and a head is written by one formatting of the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Final, NamedTuple, TypeVar, overload

Field = tuple[str, str]
RawField = tuple[bytes, bytes]

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
_ONCE = frozenset(
    {
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "host",
        "max-forwards",
        "transfer-encoding",
        "user-agent",
    }
)
_OWN_PREFIX = "x-sluice-"
_STAY_HERE = HOP_BY_HOP | _FRAMING
_NONE: Final[frozenset[str]] = frozenset()

_MAX_LAYOUTS = 256
_MAX_LAYOUT_BYTES = 4096
_MAX_TEMPLATES = 16

_Default = TypeVar("_Default")
_Values = Sequence[bytes]


class BadFieldError(ValueError):
    """A header field holds a line break or a character that cannot be sent. The message holds nothing of it."""


class Fields(Mapping[str, str]):
    """The header fields of one message, raw, repeated and in order as they came.

    As a mapping it has the first value of each name, by the name in lower case.
    """

    __slots__ = ("_layout", "_values")

    def __init__(self, raw: Sequence[RawField]) -> None:
        # llhttp, which parses both sides, lets no control character into a name or a value.
        names: tuple[bytes, ...] = ()
        self._values: tuple[bytes, ...] = ()
        if raw:
            names, self._values = zip(*raw, strict=True)
        self._layout = _layout_of(names)

    @property
    def ambiguous(self) -> bool:
        """Tell whether there are two of a field of which one server would take the first and another the last."""
        return self._layout.ambiguous

    @property
    def framed(self) -> bool:
        """Tell whether a field says where the body ends."""
        return self._layout.framed

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str) -> str: ...
    @overload
    def get(self, name: str, /, default: _Default) -> str | _Default: ...
    def get(self, name: str, /, default: object = None) -> object:
        """Return the first value of a name in lower case."""
        at = self._layout.first.get(name)
        return default if at is None else self._values[at].decode("latin-1")

    def __getitem__(self, name: str) -> str:
        return self._values[self._layout.first[name]].decode("latin-1")

    def __contains__(self, name: object) -> bool:
        return name in self._layout.first

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.first)

    def __len__(self) -> int:
        return len(self._layout.first)

    def pairs(self) -> list[Field]:
        """Return all fields as text."""
        raw = zip(self._layout.names, self._values, strict=True)
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]

    def without(self, lower: str) -> Fields:
        """Return the fields that have another name."""
        layout = self._layout
        rows = zip(layout.lower, layout.names, self._values, strict=True)
        return Fields([(name, value) for each, name, value in rows if each != lower])

    def passed_back(self, drop: frozenset[str] = _NONE) -> bytes:
        """Return the lines of an answer's head that reach the application: those of one hop, ours and `drop` do not."""
        layout = self._layout
        key = (drop, layout.meant_for_one_hop(self._values))
        template = layout.templates.get(key) or layout.back(*key)
        return template.text % tuple(template.pick(self._values))

    def passed_on(self, ours: tuple[str, ...], *, keep_identity: bool) -> bytes:
        """Return the lines of the application's head that go upstream: those that no field of ours replaces."""
        layout = self._layout
        key = (ours, keep_identity, layout.meant_for_one_hop(self._values))
        template = layout.templates.get(key) or layout.on(*key)
        return template.text % tuple(template.pick(self._values))


def lines_of(fields: Sequence[Field], *, errors: str = "strict") -> bytes:
    """Return fields of our own as the lines of a head. With `errors="replace"`, what cannot be sent is a question mark.

    Raises:
        BadFieldError: one of them cannot stand in a head.
    """
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields])
    # A line break inside a field would begin a field, or a message, of its own; counting is the cheapest full check.
    if lines.count("\n") != len(fields) or lines.count("\r") != len(fields) or "\0" in lines:
        raise BadFieldError("a header field holds a line break")
    try:
        return lines.encode("latin-1", errors)
    except UnicodeEncodeError:
        raise BadFieldError("a header field holds a character that cannot be sent") from None


class OwnFields:
    """Fields of ours that are the same in many requests, checked and written once. A secret may be among them.

    `names` are those of the further ones too that are written for each request.
    """

    __slots__ = ("lines", "names")

    def __init__(self, fields: Sequence[Field], further: Sequence[str]) -> None:
        """Raise `BadFieldError` if one of them cannot stand in a head."""
        self.names = (*[name for name, _ in fields], *further)
        self.lines = lines_of(fields)


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type field in lower case, without parameters."""
    if content_type == "application/json":  # what nearly all are
        return content_type
    return content_type.partition(";")[0].strip().lower()


class _Template(NamedTuple):
    """How a head is written: the text, and what takes the values that stand in it out of all values."""

    text: bytes
    pick: Callable[[_Values], _Values]


class _Layout:
    """What follows from a list of names alone. `templates` are the heads that have been written of it."""

    __slots__ = ("_connection", "ambiguous", "first", "framed", "lower", "names", "templates")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self.names = names
        self.lower = tuple(name.decode("latin-1").lower() for name in names)
        self.first: dict[str, int] = {}
        for position, lower in enumerate(self.lower):
            self.first.setdefault(lower, position)
        self.ambiguous = any(name in self.first and self.lower.count(name) > 1 for name in _ONCE)
        self.framed = "content-length" in self.first or "transfer-encoding" in self.first
        self._connection = [position for position, lower in enumerate(self.lower) if lower == "connection"]
        self.templates: dict[object, _Template] = {}

    def meant_for_one_hop(self, values: _Values) -> frozenset[str]:
        """Return the names that the Connection field declares to be meant for one hop only."""
        if not self._connection:
            return _NONE
        listed = [_listed(values[position]) for position in self._connection]
        return listed[0] if len(listed) == 1 else frozenset().union(*listed)

    def back(self, drop: frozenset[str], one_hop: frozenset[str]) -> _Template:
        """Return, and remember, the template of what goes back to the application."""
        return self._remember((drop, one_hop), HOP_BY_HOP | drop | one_hop)

    def on(self, ours: tuple[str, ...], keep_identity: bool, one_hop: frozenset[str]) -> _Template:
        """Return, and remember, the template of what goes on to the upstream beside fields of ours."""
        dropped = _STAY_HERE | one_hop | {name.lower() for name in ours} | (_NONE if keep_identity else _IDENTITY)
        return self._remember((ours, keep_identity, one_hop), dropped)

    def _remember(self, key: object, dropped: frozenset[str]) -> _Template:
        places = [
            place
            for place, lower in enumerate(self.lower)
            if lower not in dropped and not lower.startswith(_OWN_PREFIX)
        ]
        lines = [self.names[place].replace(b"%", b"%%") + b": %b\r\n" for place in places]
        template = _Template(b"".join(lines), _picker(places))
        if len(self.templates) >= _MAX_TEMPLATES:
            self.templates.clear()
        self.templates[key] = template
        return template


_layouts: dict[tuple[bytes, ...], _Layout] = {}


def _layout_of(names: tuple[bytes, ...]) -> _Layout:
    layout = _layouts.get(names)
    if layout is None:
        layout = _Layout(names)
        if sum(map(len, names)) <= _MAX_LAYOUT_BYTES:
            if len(_layouts) >= _MAX_LAYOUTS:
                _layouts.clear()
            _layouts[names] = layout
    return layout


def _picker(places: list[int]) -> Callable[[_Values], _Values]:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: [values[place] for place in places]


@lru_cache(maxsize=64)
def _listed(value: bytes) -> frozenset[str]:
    names = value.decode("latin-1").split(",")
    return frozenset(name.strip().lower() for name in names) - {"close", "keep-alive"}


class RequestFields:
    """The application's header fields: what Sluice reads of them, and what of them goes upstream.

    The application's own identity is dropped unless `keep_authorization` is called: its placeholder key, and the
    organization and project, which would otherwise let it spend another project's money with our key.
    """

    __slots__ = ("_keep_identity", "first")

    def __init__(self, fields: Fields) -> None:
        self.first = fields
        self._keep_identity = False

    def keep_authorization(self) -> None:
        """Send the application's own identity after all."""
        self._keep_identity = True

    def lines_before(self, own: OwnFields, further: bytes) -> bytes:
        """Return the lines of the head to send: the application's, where not replaced, then our own, then `further`."""
        return self.first.passed_on(own.names, keep_identity=self._keep_identity) + own.lines + further

    def lines(self, ours: Sequence[Field]) -> bytes:
        """Return the lines of the head to send: the application's, where not replaced by one of `ours`, then ours.

        Raises:
            BadFieldError: one of ours cannot stand in a head.
        """
        names = tuple([name for name, _ in ours])
        return self.first.passed_on(names, keep_identity=self._keep_identity) + lines_of(ours)

    def with_fields(self, ours: Sequence[Field]) -> list[Field]:
        """Return what `lines` writes, as pairs."""
        lines = self.lines(ours).decode("latin-1").split("\r\n")[:-1]
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
