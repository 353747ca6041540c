"""Who should get how much of one limit: max-min fair within guaranteed shares, idle share lent out. A pure plan.

1. Every allocation gets its demand, up to its guaranteed share.
2. What is left is lent to allocations that want more: max-min fair, weighted by priority.
3. Within an allocation all pods get their demand up to one common level (the water level of max-min fairness).
4. What nobody wants is headroom, so that growth need not wait for a round. Of the share that an allocation was promised
   and does not use, half goes to its own pods and nothing to others: it is there at once when it is wanted. What was
   promised to nobody is spread over all, but for a tenth that is kept back for pods that have not come yet.
5. Where others want all that is left, Critical and Realtime still keep an eighth on top of their demand, as far as it
   was promised to them: calls come in bursts, and theirs are not to wait for the next round behind a flood.
6. An allocation that had too little lately keeps what it is about to use within a window, as far as it was promised:
   others that take all at once would have it for a whole window, and those who come steadily would never get their due.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from sluice_core.api.quotaallocation import Priority

WEIGHTS: Final = {
    Priority.CRITICAL: 16,
    Priority.REALTIME: 8,
    Priority.STANDARD: 4,
    Priority.BATCH: 2,
    Priority.LOW: 1,
}
_SPREAD: Final = 0.9
_SPREAD_OF_OWN: Final = 0.5
_GROWTH: Final = 1 / 8
_NOTHING: Final[Mapping[str, int]] = {}
_MAY_NOT_WAIT: Final = frozenset({Priority.CRITICAL, Priority.REALTIME})


class Share(Struct, frozen=True, kw_only=True):
    """What an allocation was promised, in percent of the whole, and its rank where idle share is lent."""

    name: str
    percent: int = 0
    priority: Priority = Priority.STANDARD


class Level(Struct, frozen=True, kw_only=True):
    """What the pods of one allocation get: their demand up to `level`, then `factor` of it and `base` as headroom."""

    level: float = 0.0
    factor: float = 0.0
    base: float = 0.0

    def target(self, demand: int, least: int, draw: float) -> int:
        """Return what a pod gets that wants `demand`, where less than `least` at once would be useless to it.

        If the level is too low to be of use, some get enough and the others nothing: those whose `draw` (uniform in
        [0, 1), new every few minutes) is small, so many of them as the level is part of what each needs.
        """
        if demand <= self.level:
            return int(demand * (1.0 + self.factor) + self.base)
        unit = min(demand, max(1, least)) if least > self.level else 1
        whole, rest = divmod(self.level, unit)
        return int(whole) * unit + (unit if draw * unit < rest else 0)


def plan(
    capacity: int, shares: Sequence[Share], demands: Mapping[str, Sequence[int]], coming: Mapping[str, int] = _NOTHING
) -> dict[str, Level]:
    """Return the level of each allocation. `demands` holds what each of its pods wants, `coming` what all of them
    together will want on top of that within a window.
    """
    totals = {share.name: sum(demands.get(share.name, ())) for share in shares}
    promised = _promised(capacity, shares)
    granted = {share.name: float(min(totals[share.name], promised[share.name])) for share in shares}
    left = max(0.0, capacity - sum(granted.values()))
    wants = {share.name: totals[share.name] - granted[share.name] for share in shares}
    growth = {
        share.name: min(promised[share.name] - granted[share.name], _GROWTH * totals[share.name])
        for share in shares
        if share.priority in _MAY_NOT_WAIT and totals[share.name]
    }
    all_kept = sum(growth.values())
    due = {name: min(promised[name] - granted[name], coming.get(name, 0)) for name in granted}
    not_lent = sum(max(due[name], growth.get(name, 0.0)) for name in granted)
    for name, lent in _lend(max(0.0, left - not_lent), shares, wants).items():
        granted[name] += lent
        left -= lent
    spare = {name: max(0.0, promised[name] - granted[name]) for name in granted}
    total, pods = sum(totals.values()), sum(len(each) for each in demands.values())
    common = max(0.0, left - sum(spare.values()))
    factor = base = 0.0
    if common >= 1.0 and pods:
        # Half in proportion to demand, half to everybody alike; without any demand all of it alike.
        factor = _SPREAD * common / (2 * total) if total else 0.0
        base = _SPREAD * common / (2 * pods if total else pods)
    levels = {}
    for share in shares:
        each = demands.get(share.name, ())
        met = totals[share.name] <= granted[share.name]
        level = float("inf") if met else water_level(granted[share.name], each)
        kept = growth.get(share.name, 0.0)
        own = _SPREAD_OF_OWN * min(spare[share.name] - kept, left - all_kept) / len(each) if each else 0.0
        grows = kept / totals[share.name] if kept else 0.0
        levels[share.name] = Level(level=level, factor=factor + grows, base=base + max(0.0, own))
    return levels


def water_level(amount: float, demands: Sequence[int]) -> float:
    """Return the level up to which `amount` meets all demands, infinite if it meets them all."""
    left, count = amount, len(demands)
    for demand in sorted(demands):
        if demand * count > left:
            return left / count
        left -= demand
        count -= 1
    return float("inf")


def draw_of(holder: str, epoch: int) -> float:
    """Return a number in [0, 1) that depends on the pod and the epoch alone."""
    return zlib.crc32(f"{epoch}:{holder}".encode()) / 2**32


def _promised(capacity: int, shares: Sequence[Share]) -> dict[str, int]:
    whole = max(100, sum(share.percent for share in shares))
    return {share.name: capacity * share.percent // whole for share in shares}


def _lend(left: float, shares: Sequence[Share], wants: Mapping[str, float]) -> dict[str, float]:
    """Share `left` among those who want more, in proportion to their weights, nobody more than it wants."""
    lent: dict[str, float] = {}
    open_shares = [share for share in shares if wants[share.name] > 0]
    open_shares.sort(key=lambda share: wants[share.name] / WEIGHTS[share.priority])
    weight = sum(WEIGHTS[share.priority] for share in open_shares)
    for share in open_shares:
        own = WEIGHTS[share.priority]
        lent[share.name] = min(wants[share.name], left * own / weight)
        left -= lent[share.name]
        weight -= own
    return lent
