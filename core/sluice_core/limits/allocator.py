"""The leader's side of leases: every pod's report is answered with what it may use until it reports again.

A lease is granted only from capacity that nobody else may still hold, so that it shrinks before it grows elsewhere, in
whatever order messages come, and whatever becomes of pods. A new leader knows nothing of the leases of the one before
it: for one lease and one window it gives out only what pods have told it that they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from sluice_core.api.quotaallocation import StoreType
from sluice_core.api.upstream import Limits, ModelLimits
from sluice_core.limits.accounts import HOLD_MARGIN_SECONDS
from sluice_core.limits.holdings import Ledger, with_slack
from sluice_core.limits.keys import LEASED, SLOT_SECONDS, WINDOW_SECONDS, Dimension, LimitKey, capacity_of, parse
from sluice_core.limits.safe import safe_part
from sluice_core.limits.shares import Share
from sluice_core.snapshot import QuotaPolicy, UpstreamPolicy
from sluice_core.sync import Demand, Heard, Lease

LEASE_SECONDS: Final = 30.0
_UNLIMITED: Final = 2**48
_MAX_KEYS_REMEMBERED: Final = 65_536


_Place = tuple[str, str, Dimension]  # upstream, model pattern, dimension


class Granted(Struct, frozen=True, kw_only=True):
    """What one allocation's pods hold of one limit together."""

    granted: int = 0
    used: int = 0
    wanted: int = 0
    pods: int = 0


class _Session:
    __slots__ = ("leases", "sequence")

    def __init__(self) -> None:
        self.sequence = -1
        self.leases: tuple[Lease, ...] = ()


class Allocator:
    """All limits of all upstreams. Every `now` is in monotonic seconds of this leader.

    `fresh` says that there never was a leader before, so that there is nothing to learn: local mode, a new
    installation. A holder is one instance of a pod's sidecar: a restarted container is another one, for its windows
    are empty.
    """

    __slots__ = (
        "_dropped",
        "_elsewhere",
        "_fresh",
        "_ledgers",
        "_places",
        "_sessions",
        "_started_at",
        "_swept_at",
        "_upstreams",
        "lease_seconds",
        "name",
    )

    def __init__(self, *, now: float, fresh: bool = False, lease_seconds: float = LEASE_SECONDS) -> None:
        self.lease_seconds = lease_seconds
        self.name = f"{now:.9f}"  # differs from that of the leader before
        self._started_at = now
        self._fresh = fresh
        self._ledgers: dict[_Place, Ledger] = {}
        self._dropped: dict[_Place, float] = {}  # limits that are no more; as many as were ever declared
        self._elsewhere: frozenset[_Place] = frozenset()  # limits that another store gives leases of
        self._upstreams: set[str] = set()
        self._sessions: dict[str, _Session] = {}
        self._places: dict[str, tuple[Ledger | None, str] | None] = {}
        self._swept_at = now

    def configure(self, pools: Iterable[tuple[UpstreamPolicy, QuotaPolicy | None]], now: float) -> None:
        """Put limits and shares into force. What is out stays counted."""
        self._places.clear()
        self._upstreams = set()
        wanted: set[_Place] = set()
        elsewhere: set[_Place] = set()
        for upstream, quota in pools:
            name = LimitKey.shorten(upstream.key)
            if quota is not None and quota.store.type is StoreType.REDIS:
                elsewhere.update(_every_place(name, upstream))
                continue
            self._upstreams.add(name)
            shares, percents = _shares(quota)
            for model, limits in _scopes(upstream):
                for dimension in LEASED:
                    capacity = capacity_of(limits, dimension)
                    if not capacity:
                        continue
                    place = (name, LimitKey.shorten(model), dimension)
                    wanted.add(place)
                    window = counted_seconds(dimension, upstream)
                    ledger = self._ledgers.get(place)
                    if ledger is None:
                        ledger = self._ledgers[place] = Ledger(window, self._learning_until(place, window, now))
                    parts = {share: safe_part(capacity, percent) for share, percent in percents.items()}
                    ledger.configure(capacity, shares, parts, window)
        for place in self._ledgers.keys() - wanted:
            del self._ledgers[place]
            self._dropped[place] = now
        self._elsewhere = frozenset(elsewhere)
        self._sweep(now)

    def exchange(
        self, holder: str, sequence: int, demands: Sequence[Demand], now: float, heard: Heard | None = None
    ) -> tuple[Lease, ...]:
        """Take a report and return the leases that answer it. Repeated ones get the same answer, older ones none."""
        session = self._sessions.get(holder)
        if session is None:
            session = self._sessions[holder] = _Session()
        if sequence <= session.sequence:
            return session.leases if sequence == session.sequence else ()
        session.sequence = sequence
        leases = []
        sent_after = self._sent_after(heard, now)
        for demand in demands:
            place = self._place(demand.limit)
            if place is None:
                continue
            ledger, allocation = place
            amount, short = _UNLIMITED, False
            if ledger is not None:
                amount = ledger.exchange(holder, allocation, demand, now, self.lease_seconds, sent_after)
                short = ledger.short
            leases.append(Lease(limit=demand.limit, amount=amount, ttl_seconds=self.lease_seconds, short=short))
        session.leases = tuple(leases)
        if now - self._swept_at > self.lease_seconds:
            self._sweep(now)
        return session.leases

    def interval_seconds(self, holder: str, longest: float, shortest: float) -> float:
        """Return after how long a pod should report again, between the two."""
        session = self._sessions.get(holder)
        places = (self._place(lease.limit) for lease in session.leases) if session is not None else ()
        ledgers = (place[0] for place in places if place is not None and place[0] is not None)
        return min((ledger.interval_seconds(holder, longest, shortest) for ledger in ledgers), default=longest)

    def stop(self, holder: str, sequence: int, demands: Sequence[Demand], now: float) -> None:
        """Take a pod's last report: its leases are free at once, what it used leaves the windows."""
        session = self._sessions.get(holder)
        if session is None or sequence <= session.sequence:
            return
        session.sequence, session.leases = sequence, ()
        for demand in demands:
            place = self._place(demand.limit)
            if place is not None and place[0] is not None:
                place[0].stop(holder, demand, now)

    def gone(self, holder: str, now: float) -> None:
        """Take note that a pod does not exist any more, as the API server says."""
        for (_, _, dimension), ledger in self._ledgers.items():
            ledger.gone(holder, now, in_flight=dimension is Dimension.CONCURRENCY)

    def granted(self, upstream: str, dimension: Dimension, model: str = "") -> dict[str, Granted]:
        """Return what each allocation holds, uses and wants in one dimension."""
        found: dict[str, Granted] = {}
        ledger = self._ledgers.get((LimitKey.shorten(upstream), LimitKey.shorten(model), dimension))
        for holding in ledger.holdings.values() if ledger else ():
            before = found.get(holding.allocation, Granted())
            found[holding.allocation] = Granted(
                granted=before.granted + holding.granted,
                used=before.used + holding.used,
                wanted=before.wanted + holding.wanted,
                pods=before.pods + 1,
            )
        return found

    def exposures(self, upstream: str, dimension: Dimension, model: str = "") -> dict[str, int]:
        """Return what each holder is counted for in one dimension: the most that it may use within any window."""
        ledger = self._ledgers.get((LimitKey.shorten(upstream), LimitKey.shorten(model), dimension))
        return {holder: each.exposure for holder, each in ledger.holdings.items()} if ledger else {}

    def learning(self, now: float) -> bool:
        """Tell whether leases are still limited to what pods reported to this leader."""
        return any(now < ledger.learning_until for ledger in self._ledgers.values())

    def _learning_until(self, place: _Place, window: float, now: float) -> float:
        """Return until when leases may be out that a new ledger does not know: a leader's, ledger's, store's."""
        unknown_since = self._dropped.pop(place, float("-inf") if self._fresh else self._started_at)
        if place in self._elsewhere:
            unknown_since = now
        return unknown_since + with_slack(self.lease_seconds + window)

    def _sent_after(self, heard: Heard | None, now: float) -> float:
        """Return the moment before which a report was not sent: not before the answer arrived that it tells of."""
        if heard is None or heard.leader != self.name or not 0.0 <= heard.seconds_ago <= now - heard.answered_at:
            return float("-inf")
        return heard.answered_at + heard.seconds_ago * 0.99  # clocks drift

    def _place(self, text: str) -> tuple[Ledger | None, str] | None:
        """Return the ledger of a limit, None in its place if the dimension has no limit, and the allocation."""
        if text in self._places:
            return self._places[text]
        place: tuple[Ledger | None, str] | None = None
        key = parse(text)
        if key is not None and key.upstream in self._upstreams:
            ledger = self._ledgers.get((key.upstream, key.model, key.dimension))
            if ledger is not None or not key.model:
                place = (ledger, key.allocation)
        if len(self._places) < _MAX_KEYS_REMEMBERED:  # pods choose these names
            self._places[text] = place
        return place

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        alive: set[str] = set()
        for ledger in self._ledgers.values():
            ledger.sweep(now)
            alive.update(ledger.holdings)
        for holder in self._sessions.keys() - alive:
            del self._sessions[holder]


def _shares(quota: QuotaPolicy | None) -> tuple[tuple[Share, ...], Mapping[str, int]]:
    if quota is None:
        return (), {}
    shares, percents = [], {}
    for each in quota.allocations:
        name = LimitKey.shorten(each.name)
        shares.append(Share(name=name, percent=each.share_percent, priority=each.priority))
        percents[name] = each.share_percent
    return tuple(shares), percents


def _scopes(upstream: UpstreamPolicy) -> Iterable[tuple[str, Limits | ModelLimits]]:
    yield "", upstream.limits
    for row in upstream.model_limits:
        yield row.model, row


def _every_place(name: str, upstream: UpstreamPolicy) -> Iterable[_Place]:
    for model, _ in _scopes(upstream):
        for dimension in LEASED:
            yield name, LimitKey.shorten(model), dimension


def counted_seconds(dimension: Dimension, upstream: UpstreamPolicy) -> float:
    """Return for how long a use counts, the coarseness of the pods' windows included."""
    if dimension is Dimension.CONCURRENCY:
        return upstream.timeouts.total_seconds + HOLD_MARGIN_SECONDS
    return WINDOW_SECONDS[dimension] + SLOT_SECONDS[dimension]
