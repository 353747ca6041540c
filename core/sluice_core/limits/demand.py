"""What one pod says of its limits in one account: what it holds, what it wants, what it gives back."""

from __future__ import annotations

from collections.abc import Iterable

from sluice_core.limits.accounts import Account
from sluice_core.limits.meters import Meter
from sluice_core.sync import Demand


def reported(account: Account, now: float) -> tuple[Demand, ...]:
    """Return what is reported to whoever leases, and keep to it: where there is not enough for all, what
    is not wanted soon is given back with it.
    """
    found = []
    for meter in _limited(account):
        allowance, used, wanted = meter.allowance, meter.used(now), meter.wanted(now)
        before = _held(meter, used, now)
        allowance.reported = wanted
        allowance.give_back(wanted, now)
        held = _held(meter, used, now)
        found.append(_demand(meter, held=held, used=used, wanted=wanted, returned=before - held))
    return tuple(found)


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


def _demand(meter: Meter, *, held: int, used: int, wanted: int, returned: int = 0) -> Demand:
    return Demand(
        limit=meter.name,
        held=held,
        used=used,
        wanted=wanted,
        safe=meter.allowance.safe,
        least=meter.largest_waiting,
        returned=returned,
    )
