"""Slowing down when the upstream throttles, and telling the control plane what the upstream says of its own limits."""

from __future__ import annotations

from sluice_core.limits.adaptive import LOW_PERCENT, Pacer
from sluice_core.limits.admission import Admission
from sluice_core.limits.keys import Dimension
from sluice_core.ratelimit_headers import ObservedLimit, read_limits
from sluice_core.retry_after import Holds
from sluice_core.sync import LimitObservation
from sluice_sidecar.headers import Fields

LOOK_SECONDS = 2.0
"""How often the rate-limit fields of answers are read: they change slowly, and calls are many."""

FRESH_SECONDS = 120.0
"""How long an upstream's word counts: an older one may contradict what other pods have heard since."""

MAX_PACED = 256

_Place = tuple[str, str]


class Pacing:
    """The pace of calls by upstream and model, and `holds`: until when there are to be none at all."""

    __slots__ = ("_admission", "_looked_at", "_observed", "_pacers", "_slowed", "holds")

    def __init__(self, admission: Admission) -> None:
        self.holds = Holds()
        self._admission = admission
        self._pacers: dict[_Place, Pacer] = {}
        self._looked_at: dict[_Place, float] = {}
        self._observed: dict[tuple[str, str, str], LimitObservation] = {}
        self._slowed: set[_Place] = set()  # limits that are not used in full, by upstream and pattern

    def throttled(self, upstream: str, model: str | None, sent_at: float, now: float, *, slow_down: bool) -> None:
        """Take note of a 429 to a call that was sent at `sent_at`."""
        pacer = self._pacer(upstream, model)
        if pacer is not None:
            pacer.throttled(sent_at, now, slow_down=slow_down)
            self._apply(now)

    def answered(self, upstream: str, model: str | None, fields: Fields, now: float) -> None:
        """Take note of a call that was let through, and from time to time of what its answer says is left."""
        place = (upstream, model or "")
        pacer = self._pacers.get(place)
        if pacer is not None:
            pacer.succeeded(now)
        if now < self._looked_at.get(place, 0.0) + LOOK_SECONDS:
            return
        for limit in self._look(place, fields, now):
            governed = self._governs(upstream, model, limit.dimension)
            if pacer is None and not governed and limit.remaining_percent < LOW_PERCENT:
                pacer = self._pacer(upstream, model)
            if pacer is not None:
                pacer.observed(limit.remaining_percent, now, governed=governed, reset_seconds=limit.reset_seconds)

    def refused(self, upstream: str, model: str | None, fields: Fields, now: float) -> None:
        """Take note of what a 429 says of the limits: there may be no other answer that does."""
        self._look((upstream, model or ""), fields, now)

    def _look(self, place: _Place, fields: Fields, now: float) -> tuple[ObservedLimit, ...]:
        if len(self._looked_at) >= MAX_PACED:
            self._looked_at.clear()
            self._observed.clear()
        self._looked_at[place] = now
        limits = read_limits(fields)
        upstream, model = place
        for limit in limits:
            self._observed[upstream, model, limit.dimension] = LimitObservation(
                upstream=upstream,
                model=model[:512],
                dimension=limit.dimension,
                limit=limit.limit,
                remaining=limit.remaining,
            )
        return limits

    def tick(self, now: float) -> None:
        """Let paces recover with time; forget those that have."""
        self.holds.tick(now)
        if self._pacers or self._slowed:
            self._apply(now)
            self._pacers = {place: pacer for place, pacer in self._pacers.items() if pacer.pace(now) < 1.0}

    def _pacer(self, upstream: str, model: str | None) -> Pacer | None:
        place = (upstream, model or "")
        pacer = self._pacers.get(place)
        if pacer is None and len(self._pacers) < MAX_PACED:
            pacer = self._pacers[place] = Pacer()
        return pacer

    def _governs(self, upstream: str, model: str | None, dimension: str) -> bool:
        if not self._admission.knows(upstream):
            return False
        return self._admission.governs(upstream, model, Dimension(dimension.removeprefix("project-")))

    def _apply(self, now: float) -> None:
        """Slow every limit down to the pace of the slowest model under it; the others go on in full."""
        paces = dict.fromkeys(self._slowed, 1.0)
        for (upstream, model), pacer in self._pacers.items():
            if self._admission.knows(upstream):
                limit = upstream, self._admission.paced_limit(upstream, model or None)
                paces[limit] = min(paces.get(limit, 1.0), pacer.pace(now))
        for (upstream, pattern), pace in paces.items():
            if self._admission.knows(upstream):
                self._admission.pace(upstream, pattern, pace)
        self._slowed = {limit for limit, pace in paces.items() if pace < 1.0}

    def observations(self, now: float) -> tuple[LimitObservation, ...]:
        """Return what the upstreams said lately."""
        fresh = {place for place, at in self._looked_at.items() if now - at < FRESH_SECONDS}
        return tuple(each for (upstream, model, _), each in self._observed.items() if (upstream, model) in fresh)

    def paces(self, now: float) -> tuple[tuple[_Place, float], ...]:
        """Return the part of their limits that calls use while an upstream throttles, by upstream and model."""
        return tuple((place, pacer.pace(now)) for place, pacer in self._pacers.items())
