"""Which faults strike a call: matching, frequency and merging, without a clock or a random source of its own."""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from sluice_cli.mock.effects import NO_EFFECT, Effect
from sluice_cli.mock.errors import ERRORS

MAX_FAULTS: Final = 1000
_MATCH_FIELDS: Final = frozenset({"id", "model", "endpoint", "key", "stream", "percent", "count", "after"})


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a fault can be bound to."""

    endpoint: str
    model: str | None = None
    key_name: str | None = None
    stream: bool = False


class Fault(Effect, frozen=True, kw_only=True, omit_defaults=True):
    """
    An order: an effect, the calls it is for and how often it strikes.

    `model`, `endpoint` and `key` (the key's name) are globs. Of the calls that match, the first `after` pass;
    then each is struck with probability `percent`, `count` times at most.
    """

    id: str = ""
    model: str | None = None
    endpoint: str | None = None
    key: str | None = None
    stream: bool | None = None
    percent: float = 100.0
    count: int | None = None
    after: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for code in (self.error, self.stream_error):
            if code is not None and code not in ERRORS:
                raise ValueError(f"unknown error {code!r}; known: {', '.join(sorted(ERRORS))}")

    def matches(self, subject: Subject) -> bool:
        """Whether the order is for this call."""
        return (
            (self.model is None or fnmatchcase(subject.model or "", self.model))
            and (self.endpoint is None or fnmatchcase(subject.endpoint, self.endpoint))
            and (self.key is None or fnmatchcase(subject.key_name or "", self.key))
            and (self.stream is None or self.stream == subject.stream)
        )


class Struck(msgspec.Struct, frozen=True, kw_only=True):
    """The merged effect on a call and the ids of the faults behind it."""

    effect: Effect = NO_EFFECT
    fault_ids: tuple[str, ...] = ()


NOT_STRUCK: Final = Struck()


class _Armed:
    __slots__ = ("changes", "fault", "seen", "struck")

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.changes = _changes(fault)
        self.seen = 0
        self.struck = 0

    def strikes(self, subject: Subject, draw: Callable[[], float]) -> bool:
        fault = self.fault
        if not fault.matches(subject) or (fault.count is not None and self.struck >= fault.count):
            return False
        self.seen += 1
        if self.seen <= fault.after or (fault.percent < 100 and draw() * 100 >= fault.percent):
            return False
        self.struck += 1
        return True


class FaultBook:
    """The faults in force, in the order given; where two set the same field, the later one wins."""

    __slots__ = ("_armed", "_next")

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._armed: dict[str, _Armed] = {}
        self._next = 1
        self.replace(faults)

    def replace(self, faults: Iterable[Fault]) -> None:
        """Put these faults in force instead of all others."""
        self._armed.clear()
        for fault in faults:
            self.put(fault)

    def add(self, **fields: Any) -> str:
        """Add one fault, by its fields; return its id."""
        return self.put(Fault(**fields))

    def put(self, fault: Fault) -> str:
        """Add a fault, or replace the one of the same id; return its id."""
        if not fault.id:
            fault = msgspec.structs.replace(fault, id=f"fault-{self._next}")
            self._next += 1
        if fault.id not in self._armed and len(self._armed) >= MAX_FAULTS:
            raise ValueError(f"more than {MAX_FAULTS} faults")
        self._armed[fault.id] = _Armed(fault)
        return fault.id

    def remove(self, fault_id: str) -> bool:
        """Lift one fault; False when there is none of that id."""
        return self._armed.pop(fault_id, None) is not None

    def clear(self) -> None:
        """Lift every fault."""
        self._armed.clear()

    def struck(self, fault_id: str) -> int:
        """How many calls a fault has struck."""
        return self._armed[fault_id].struck

    def __iter__(self) -> Iterator[Fault]:
        return (armed.fault for armed in self._armed.values())

    def __len__(self) -> int:
        return len(self._armed)

    def strike(self, subject: Subject, draw: Callable[[], float], own: Fault | None = None) -> Struck:
        """
        Decide what strikes a call.

        `draw` gives a number in [0, 1) for each fault that is a matter of chance; `own` is the fault that
        the request ordered for itself and comes last.
        """
        if not self._armed and own is None:
            return NOT_STRUCK
        changes: dict[str, Any] = {}
        ids: list[str] = []
        for fault_id, armed in self._armed.items():
            if armed.strikes(subject, draw):
                changes |= armed.changes
                ids.append(fault_id)
        if own is not None and (own.percent >= 100 or draw() * 100 < own.percent):
            changes |= _changes(own)
            ids.append("header")
        return Struck(effect=Effect(**changes), fault_ids=tuple(ids)) if ids else NOT_STRUCK


def _changes(fault: Fault) -> dict[str, Any]:
    return {
        name: value
        for name in Effect.__struct_fields__
        if name not in _MATCH_FIELDS and (value := getattr(fault, name)) is not None
    }


def parse_header(written: str) -> Fault:
    """
    Read the `x-mock-fault` header: a JSON object, or `name=value; ...` where a bare name is an error code.

    Raises `ValueError` when it is neither.
    """
    written = written.strip()
    if written.startswith("{"):
        return msgspec.json.decode(written, type=Fault)
    fields: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in written.split(";"))):
        name, equals, value = part.partition("=")
        fields[name.strip() if equals else "error"] = value.strip() if equals else name
    return msgspec.convert(fields, type=Fault, strict=False)


def parse_faults(written: object) -> list[Fault]:
    """Read a decoded fault file: a list of faults, or an object with a list under `faults`."""
    if isinstance(written, dict):
        written = written.get("faults", [])
    return msgspec.convert(written, type=list[Fault])
