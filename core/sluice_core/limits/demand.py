"""What one pod says of its limits in one account: what it holds, what it wants, what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from sluice_core.limits.accounts import Account
from sluice_core.limits.decisions import Reservation
from sluice_core.limits.meters import Meter, RateMeter
from sluice_core.sync import Demand

CERTAIN_PARTS: Final = 16
"""Into how many parts the window is cut to tell when what is used for certain leaves it: 4 seconds of a minute each."""
_NOTHING: Final[Mapping[int, int]] = {}


def reported(account: Account, now: float, open_calls: Iterable[Reservation] = ()) -> tuple[Demand, ...]:
    """Return what is reported to whoever leases, and keep to it: where there is not enough for all, what
    is not wanted soon is given back with it. What calls that are not over have reserved is not used for certain.
    """
    found = []
    short = any(meter.allowance.short for meter in _limited(account))
    uncertain = _uncertain(open_calls) if short else {}
    for meter in _limited(account):
        allowance, used, wanted = meter.allowance, meter.used(now), meter.wanted(now)
        before = _held(meter, used, now)
        allowance.reported = wanted
        allowance.give_back(wanted, now)
        held = _held(meter, used, now)
        certain: tuple[int, ...] = ()
        if isinstance(meter, RateMeter) and allowance.short and used:
            certain = meter.window.certain(CERTAIN_PARTS, uncertain.get(id(meter), _NOTHING), now)
        demand = _demand(meter, held=held, used=used, wanted=wanted, returned=before - held, certain=certain)
        found.append(msgspec.structs.replace(demand, lasting=meter.lasting(now)))
    return tuple(found)


def _uncertain(open_calls: Iterable[Reservation]) -> Mapping[int, Mapping[int, int]]:
    """Return what calls that are not over have reserved, by meter and slot."""
    found: dict[int, dict[int, int]] = {}
    for call in open_calls:
        for meter, slot in zip(call.meters, call.slots, strict=True):
            slots = found.setdefault(id(meter), {})
            slots[slot] = slots.get(slot, 0) + call.amounts[meter.unit]
    return found


def left_behind(account: Account, now: float) -> tuple[Demand, ...]:
    """Return what is told of limits that will not be used any more: only what was used, and how soon it is over."""
    return tuple(
        Demand(limit=meter.name, held=used, used=used, wanted=0, fading=meter.fading(now))
        for meter in _limited(account)
        for used in (meter.used(now),)
    )


def demands_of(account: Account, now: float) -> tuple[Demand, ...]:
    """Return what is held and wanted, for people. Nothing is given back."""
    return tuple(
        _demand(meter, held=_held(meter, used, now), used=used, wanted=meter.wanted(now))
        for meter in _limited(account)
        for used in (meter.used(now),)
    )


def _limited(account: Account) -> Iterable[Meter]:
    return (meter for meter in account.meters.values() if meter.allowance.ceiling)


def _held(meter: Meter, used: int, now: float) -> int:
    return max(used, meter.allowance.leased(now), meter.allowance.safe)


def _demand(
    meter: Meter, *, held: int, used: int, wanted: int, returned: int = 0, certain: tuple[int, ...] = ()
) -> Demand:
    return Demand(
        limit=meter.name,
        held=held,
        used=used,
        wanted=wanted,
        safe=meter.allowance.safe,
        least=meter.largest_waiting,
        returned=returned,
        certain=certain,
    )
