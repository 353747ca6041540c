"""How ledgers of money are stored: compact and bounded.

A process is 8 bytes once, however many figures it has; a figure is its process' number as the difference to the one
before, and its micro-dollars. So 10 000 pods with two budgets each, over the three days that they report, fit into the
1 MiB that a ConfigMap holds. Should a state be larger all the same, the baseline of anomalies goes first, then the
marks of the processes that spent least: what was spent stays right, but such a process, if it still runs, is charged
once more from its beginning. With them go the users who spent least: they may spend it again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Final

import msgspec

from sluice_core.alerts import Alert
from sluice_core.budget import LedgerState, Mark

FORMAT: Final = 1
MAX_STATE_BYTES: Final = 1_000_000
"""Below the 1 MiB of a ConfigMap, with room for its metadata."""

_LEVEL: Final = 1


class StateError(ValueError):
    """The bytes are no state that this version can read."""


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    format: int
    instances: list[str]
    marks: dict[str, dict[str, tuple[list[int], list[int]]]]
    days: dict[str, dict[str, int]]
    hours: dict[str, dict[int, int]]
    alerts: dict[str, dict[str, int]]
    users: dict[str, dict[str, dict[str, int]]] = {}
    pending: list[Alert] = []
    at: float = 0.0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, _Packed])


def encode_states(states: Mapping[str, LedgerState], limit_bytes: int = MAX_STATE_BYTES) -> bytes:
    """Return the states of several quotas in at most `limit_bytes`, as long as their days alone fit into them."""
    packed = _encode(states)
    if len(packed) <= limit_bytes:
        return packed
    states = {name: msgspec.structs.replace(state, hours={}) for name, state in states.items()}
    packed = _encode(states)
    while len(packed) > limit_bytes and any(state.marks or state.users for state in states.values()):
        states = {name: _without_least(state) for name, state in states.items()}
        packed = _encode(states)
    return packed


def decode_states(stored: bytes) -> dict[str, LedgerState]:
    """Return the states in what `encode_states` made.

    Raises:
        StateError: it is something else, or of a later version.
    """
    try:
        found = _decoder.decode(zlib.decompress(stored))
        if any(each.format != FORMAT for each in found.values()):
            raise StateError("the state was stored by another version")
        return {name: _unpack(each) for name, each in found.items()}
    except (zlib.error, msgspec.DecodeError, IndexError) as error:
        raise StateError(f"not a state: {type(error).__name__}") from None


def _encode(states: Mapping[str, LedgerState]) -> bytes:
    return zlib.compress(_encoder.encode({name: _pack(state) for name, state in states.items()}), _LEVEL)


def _pack(state: LedgerState) -> _Packed:
    instances = sorted({mark.instance for mark in state.marks})
    number = {instance: index for index, instance in enumerate(instances)}
    found: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for mark in state.marks:
        found.setdefault(mark.budget, {}).setdefault(mark.day, []).append((number[mark.instance], mark.usd_micros))
    marks = {name: {day: _columns(sorted(rows)) for day, rows in days.items()} for name, days in found.items()}
    return _Packed(
        FORMAT, instances, marks, state.days, state.hours, state.alerts, state.users, list(state.pending), state.at
    )


def _columns(rows: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    numbers = [number for number, _ in rows]
    return [numbers[0], *(after - before for before, after in pairwise(numbers))], [spent for _, spent in rows]


def _unpack(packed: _Packed) -> LedgerState:
    marks: list[Mark] = []
    for budget, days in packed.marks.items():
        for day, (steps, spent) in days.items():
            number = 0
            for step, usd_micros in zip(steps, spent, strict=False):
                number += step
                mark = Mark(instance=packed.instances[number], budget=budget, day=day, usd_micros=usd_micros)
                marks.append(mark)
    return LedgerState(
        days=packed.days,
        hours=packed.hours,
        marks=tuple(marks),
        alerts=packed.alerts,
        users=packed.users,
        pending=tuple(packed.pending),
        at=packed.at,
    )


def _without_least(state: LedgerState) -> LedgerState:
    kept = sorted(state.marks, key=lambda mark: -mark.usd_micros)[: len(state.marks) * 3 // 4]
    users = {
        allocation: {day: larger for day, spent in days.items() if (larger := _largest(spent))}
        for allocation, days in state.users.items()
    }
    users = {allocation: days for allocation, days in users.items() if days}
    return msgspec.structs.replace(state, marks=tuple(kept), users=users)


def _largest(spent: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(spent.items(), key=lambda each: -each[1])[: len(spent) * 3 // 4])
