"""Adds up the counts of pods that come, go and restart: none twice, none lost beyond one report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sluice_core.rollout.counts import CANDIDATE, STABLE, ArmCounts

MAX_INSTANCES: Final = 20_000
"""Instances remembered at most; beyond it reports of new ones are refused rather than counted wrong."""

MAX_ARMS: Final = 512
"""Arms remembered of one instance before those that it no longer reports are dropped."""

_Arm = tuple[str, str, str]


class CountLedger:
    """The leader's sum over all sidecars, by (split, revision, arm). It only ever grows while a revision is kept.

    A sidecar reports totals since its start. Of each instance the last report is kept and only what is new is added;
    an instance that is gone keeps its place in the sum.
    """

    __slots__ = ("_last", "_seeded", "_totals")

    def __init__(self) -> None:
        self._last: dict[str, dict[_Arm, ArmCounts]] = {}
        self._totals: dict[_Arm, ArmCounts] = {}
        self._seeded: set[tuple[str, str]] = set()

    def report(self, instance: str, counts: Sequence[ArmCounts], *, first: bool) -> bool:
        """Take in one sidecar's totals; return False if there is no room for another instance.

        Args:
            instance: names the sidecar's process, not its pod: a restarted sidecar is another instance.
            counts: its totals since its start.
            first: nobody has counted this instance before, so all of its totals are new. Of an instance that an
                earlier leader has counted, what it did until this report is taken as known.
        """
        known = self._last.get(instance)
        if known is None:
            if len(self._last) >= MAX_INSTANCES:
                return False
            known = self._last[instance] = {}
            if not first:
                known.update({_name(count): count for count in counts})
                return True
        for count in counts:
            name = _name(count)
            before = known.get(name)
            known[name] = count
            fresh = _fresh(count, before)
            total = self._totals.get(name)
            self._totals[name] = fresh if total is None else total.plus(fresh)
        if len(known) > MAX_ARMS:  # what a sidecar no longer reports is over
            reported = {_name(count) for count in counts}
            self._last[instance] = {name: count for name, count in known.items() if name in reported}
        return True

    def forget(self, instance: str) -> None:
        """Drop an instance that is gone; what it counted stays."""
        self._last.pop(instance, None)

    def instances(self) -> frozenset[str]:
        """Return the instances that are remembered."""
        return frozenset(self._last)

    def arms(self, split: str, revision: str, known: Iterable[ArmCounts] = ()) -> tuple[ArmCounts, ArmCounts]:
        """Return the totals of the stable arm and of the candidate.

        `known` are the totals that the rollout's status remembers from earlier leaders (see `evidence.totals_in`);
        they are added once, when this leader first asks for the revision.
        """
        if (split, revision) not in self._seeded:
            self._seeded.add((split, revision))
            for count in known:
                name = (split, revision, count.arm)
                total = self._totals.get(name)
                self._totals[name] = count if total is None else count.plus(total)
        stable, candidate = (
            self._totals.get((split, revision, arm)) or ArmCounts(split=split, revision=revision, arm=arm)
            for arm in (STABLE, CANDIDATE)
        )
        return stable, candidate

    def keep(self, revisions: Iterable[tuple[str, str]]) -> None:
        """Drop the totals of all but these (split, revision) pairs, so that past rollouts take no memory.

        What each instance reported last stays known: a revision that comes back is not counted twice.
        """
        kept = set(revisions)
        self._totals = {name: count for name, count in self._totals.items() if name[:2] in kept}
        self._seeded &= kept


def _name(count: ArmCounts) -> _Arm:
    return count.split, count.revision, count.arm


def _fresh(count: ArmCounts, before: ArmCounts | None) -> ArmCounts:
    if before is None or count.requests + count.excluded < before.requests + before.excluded:
        return count  # the counter was set back: everything in it is new
    return count.since(before)
