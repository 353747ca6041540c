"""What all pods together may still use of one limit, as the leader must assume. Leases come out of what is left.

Of each pod the leader assumes the most that it may use within any window: the larger of what it said it holds and what
it was leased in answer. That counts until its lease has run out and a whole window after it, if nothing is heard.
A pod sends one report at a time and obeys the answer to its latest one only, so nothing else can be under way.

Of a pod that is gone, or whose lease has run out, it is enough to count what it may have used. What it reported as used
for certain was in the way of other use until its end, unless it left the window before; so it is free as it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

from sluice_core.limits.shares import Level, Share, draw_of, plan
from sluice_core.sync import Demand

_REPLAN_SECONDS = 1.0
_FEW = 32
_ROTATION_SECONDS = 90.0
_SHORT_SECONDS = 60.0
"""For so long after a shortage what is not needed is given back: permits come back in the waves in which they went."""


class Holding:
    """What one instance of a pod's sidecar may hold."""

    __slots__ = (
        "allocation",
        "certain",
        "draw",
        "expires_at",
        "exposure",
        "fading",
        "granted",
        "heard_at",
        "lasting",
        "lease_ends_at",
        "least",
        "safe",
        "sent_after",
        "used",
        "wanted",
    )

    def __init__(self, allocation: str) -> None:
        self.allocation = allocation
        self.draw = 1.0
        self.exposure = 0
        self.fading: list[tuple[float, int]] = []  # when it will be how much, the last step first
        self.granted = 0
        self.used = 0
        self.wanted = 0
        self.least = 0
        self.lasting = 0
        self.safe = 0
        self.certain: tuple[int, ...] = ()
        self.sent_after = float("-inf")
        self.heard_at = 0.0
        self.lease_ends_at = 0.0
        self.expires_at = 0.0


class Ledger:
    """The holdings of one limit: one dimension of an upstream, or of the models that match a pattern."""

    __slots__ = (
        "_held",
        "_learned",
        "_levels",
        "_planned_at",
        "_safe_known",
        "_safe_parts",
        "_shares",
        "_short_at",
        "_window_seconds",
        "capacity",
        "holdings",
        "learning_until",
    )

    def __init__(self, window_seconds: float, learning_until: float) -> None:
        self.capacity = 0
        self.holdings: dict[str, Holding] = {}
        self.learning_until = learning_until
        self._window_seconds = window_seconds
        self._shares: tuple[Share, ...] = ()
        self._safe_parts: Mapping[str, int] = {}
        self._safe_known: dict[str, int] = {}
        self._held = 0
        self._learned = 0
        self._levels: dict[str, Level] = {}
        self._planned_at = float("-inf")
        self._short_at = float("-inf")

    def configure(self, capacity: int, shares: tuple[Share, ...], safe_parts: Mapping[str, int], window: float) -> None:
        """Set the limit, its shares, and what is kept of it for pods of each allocation that hold no lease."""
        self.capacity = capacity
        self._shares = shares
        self._safe_parts = safe_parts
        self._window_seconds = window
        self._planned_at = float("-inf")

    def exchange(
        self,
        holder: str,
        allocation: str,
        demand: Demand,
        now: float,
        lease_seconds: float,
        sent_after: float = float("-inf"),
    ) -> int:
        """Take a pod's report and return the amount of its new lease. It was sent after `sent_after`, if not before."""
        holding = self._take(holder, allocation, demand, now, lease_seconds)
        holding.sent_after = sent_after
        if sent_after == float("-inf"):
            holding.certain = ()  # who knows how old this is
        self._plan(now, lease_seconds)
        level = self._levels.get(allocation, Level())
        target = level.target(self._need(holding), holding.least, holding.draw)
        grant = max(0, min(target, self._effective(now) - (self._held - holding.exposure)))
        self._expose(holding, max(demand.held, grant, holding.safe))
        holding.granted = grant
        return grant

    @property
    def short(self) -> bool:
        """Tell whether pods wanted more than there was, a minute ago or less."""
        return self._planned_at - self._short_at < _SHORT_SECONDS

    def interval_seconds(self, holder: str, longest: float, shortest: float) -> float:
        """Return after how long a pod should report again: the sooner the more it holds, if others are short of it.

        A report for every even part of the limit that is held: all together report at most twice as often as at rest.
        """
        holding = self.holdings.get(holder)
        if holding is None or not self.short:
            return longest
        return max(shortest, longest * min(1.0, self.capacity / (len(self.holdings) * max(1, holding.exposure))))

    def stop(self, holder: str, demand: Demand, now: float) -> None:
        """Take a pod's last report: it uses nothing any more, and what it used leaves the window."""
        holding = self.holdings.get(holder)
        if holding is None:
            return
        self._expose(holding, demand.used)
        self._end(holding, now + with_slack(self._window_seconds))
        parts = len(demand.fading) + 1
        steps = [now + with_slack(self._window_seconds * part / parts) for part in range(1, parts)]
        holding.fading = list(zip(steps, demand.fading, strict=True))[::-1]

    def gone(self, holder: str, now: float, *, in_flight: bool) -> None:
        """Take note that a pod is no more. What is `in_flight` ended with it; what was used has to leave the window."""
        holding = self.holdings.get(holder)
        if holding is not None:
            self._let_fade(holding, now)
            self._end(holding, now if in_flight else now + with_slack(self._window_seconds))

    def sweep(self, now: float) -> None:
        """Forget what nobody can hold any more."""
        for holder in [name for name, each in self.holdings.items() if each.expires_at <= now]:
            holding = self.holdings.pop(holder)
            self._held -= holding.exposure
            self._safe_known[holding.allocation] -= holding.safe
        for holding in self.holdings.values():
            if holding.certain and now >= holding.lease_ends_at:
                self._let_fade(holding, now)
            while holding.fading and holding.fading[-1][0] <= now:
                self._expose(holding, min(holding.exposure, holding.fading.pop()[1]))

    def _let_fade(self, holding: Holding, now: float) -> None:
        """Plan when how much of a pod's use will have left the window, now that it can add none but its safe share."""
        certain, holding.certain = holding.certain, ()
        if not certain:
            return
        parts, ended_at = len(certain), min(now, holding.lease_ends_at)
        part_seconds = self._window_seconds / parts
        # The pod's clock may run faster, and its window may be finer than this one by its coarseness.
        first = int((ended_at - holding.sent_after) * 1.02 / part_seconds) + 1 if ended_at > holding.sent_after else 1
        if first >= parts:
            return
        steps = [
            (
                holding.heard_at + with_slack(part_seconds * part),
                certain[first] - (certain[part] if part < parts else 0),
            )
            for part in range(first + 1, parts + 1)
        ]
        holding.fading = [(at, max(holding.safe, holding.exposure - over)) for at, over in steps][::-1]

    def _end(self, holding: Holding, expires_at: float) -> None:
        self._safe_known[holding.allocation] -= holding.safe
        holding.safe = holding.wanted = holding.granted = holding.lasting = 0
        holding.heard_at = float("-inf")
        holding.expires_at = min(holding.expires_at, expires_at)

    def _take(self, holder: str, allocation: str, demand: Demand, now: float, lease_seconds: float) -> Holding:
        holding = self.holdings.get(holder)
        if holding is None:
            holding = self.holdings[holder] = Holding(allocation)
            if now < self.learning_until:
                # What it gives back with its first report nobody can have been granted yet.
                self._learned += demand.held + demand.returned
        self._safe_known[holding.allocation] = self._safe_known.get(holding.allocation, 0) - holding.safe
        holding.allocation = allocation
        holding.safe = demand.safe
        self._safe_known[allocation] = self._safe_known.get(allocation, 0) + holding.safe
        holding.used, holding.wanted, holding.least = demand.used, demand.wanted, demand.least
        holding.lasting = demand.lasting
        holding.certain, holding.fading = demand.certain, []
        holding.heard_at = now
        holding.lease_ends_at = now + with_slack(lease_seconds)
        # The pod counts its lease from an earlier moment than this, so it gives it up first.
        holding.expires_at = now + with_slack(lease_seconds + self._window_seconds)
        # An exposure is lowered only by the pod's own word, and before anything is granted on the strength of it.
        self._expose(holding, max(demand.held, holding.safe))
        return holding

    def _expose(self, holding: Holding, exposure: int) -> None:
        self._held += exposure - holding.exposure
        holding.exposure = exposure

    def _need(self, holding: Holding) -> int:
        return min(self.capacity, max(holding.wanted, holding.safe))

    def _effective(self, now: float) -> int:
        """Return what may be out at once to pods that were heard of; for a new leader, no more than it was told of."""
        expected = self.capacity - self._safe_unknown()
        return min(expected, self._learned) if now < self.learning_until else expected

    def _safe_unknown(self) -> int:
        """Return what pods may use that are to be expected but have not been heard of."""
        return sum(max(0, part - self._safe_known.get(name, 0)) for name, part in self._safe_parts.items())

    def _plan(self, now: float, lease_seconds: float) -> None:
        if len(self.holdings) > _FEW and now - self._planned_at < _REPLAN_SECONDS:
            return
        self._planned_at = now
        self.sweep(now)
        demands: dict[str, list[int]] = {}
        coming: dict[str, int] = {}
        silent = 0
        for holding in self.holdings.values():
            if now - holding.heard_at > lease_seconds:
                silent += holding.exposure
            else:
                need = self._need(holding)
                demands.setdefault(holding.allocation, []).append(need)
                if holding.lasting > need and now >= self.learning_until:  # until then those who come first are few
                    coming[holding.allocation] = coming.get(holding.allocation, 0) + holding.lasting - need
        capacity = max(0, self._effective(now) - silent)
        self._levels = plan(capacity, self._with_strangers(demands), demands, coming)
        scarce = {name for name, level in self._levels.items() if level.level < float("inf")}
        if scarce:
            self._short_at = now
            self._draw(scarce, now)

    def _draw(self, scarce: set[str], now: float) -> None:
        """Give the pods that get less than they want their places in the draw, evenly spread: no unit is left over."""
        epoch = int(now // _ROTATION_SECONDS)
        lines: dict[str, list[tuple[float, Holding]]] = {name: [] for name in scarce}
        for holder, holding in self.holdings.items():
            if holding.allocation in scarce and self._need(holding) > self._levels[holding.allocation].level:
                lines[holding.allocation].append((draw_of(holder, epoch), holding))
        for line in lines.values():
            line.sort(key=itemgetter(0))
            for place, (_, holding) in enumerate(line):
                holding.draw = (place + 0.5) / len(line)

    def _with_strangers(self, demands: Mapping[str, Sequence[int]]) -> tuple[Share, ...]:
        """Return the shares, with none for allocations that pods still name but that are no more."""
        known = {share.name for share in self._shares}
        return (*self._shares, *(Share(name=name) for name in demands if name not in known))


def with_slack(seconds: float) -> float:
    """Return a duration that is over on every clock that drifts by less than one percent."""
    return seconds * 1.01 + 1.0
