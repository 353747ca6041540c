"""Slowing down when the upstream throttles, and telling the control plane what the upstream says of its own limits."""

from __future__ import annotations

from sluice_core.limits.adaptive import Pacer
from sluice_core.limits.admission import Admission
from sluice_core.ratelimit_headers import read_limits
from sluice_core.sync import LimitObservation
from sluice_sidecar.headers import Fields

LOOK_SECONDS = 2.0
"""How often the rate-limit fields of answers are read: they change slowly, and calls are many."""

FRESH_SECONDS = 120.0
"""How long an upstream's word counts: an older one may contradict what other pods have heard since."""

MAX_PACED = 256

_Place = tuple[str, str]


class Pacing:
    """The pace of calls by upstream and model."""

    __slots__ = ("_admission", "_looked_at", "_observed", "_pacers")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._pacers: dict[_Place, Pacer] = {}
        self._looked_at: dict[_Place, float] = {}
        self._observed: dict[tuple[str, str, str], LimitObservation] = {}

    def throttled(self, upstream: str, model: str | None, sent_at: float, now: float, *, slow_down: bool) -> None:
        """Take note of a 429 to a call that was sent at `sent_at`."""
        place = (upstream, model or "")
        pacer = self._pacers.get(place)
        if pacer is None:
            if len(self._pacers) >= MAX_PACED:
                return
            pacer = self._pacers[place] = Pacer()
        pacer.throttled(sent_at, now, slow_down=slow_down)
        self._apply(place, pacer, now)

    def answered(self, upstream: str, model: str | None, fields: Fields, now: float) -> None:
        """Take note of a call that was let through, and from time to time of what its answer says is left."""
        place = (upstream, model or "")
        pacer = self._pacers.get(place)
        if pacer is not None:
            pacer.succeeded(now)
        if now < self._looked_at.get(place, 0.0) + LOOK_SECONDS:
            return
        if len(self._looked_at) >= MAX_PACED:
            self._looked_at.clear()
            self._observed.clear()
        self._looked_at[place] = now
        for limit in read_limits(fields):
            self._observed[upstream, model or "", limit.dimension] = LimitObservation(
                upstream=upstream,
                model=(model or "")[:512],
                dimension=limit.dimension,
                limit=limit.limit,
                remaining=limit.remaining,
            )
            if pacer is not None:
                pacer.observed(limit.remaining_percent, now, governed=True)

    def tick(self, now: float) -> None:
        """Let paces recover with time; forget those that have."""
        for place, pacer in list(self._pacers.items()):
            if self._apply(place, pacer, now) >= 1.0:
                del self._pacers[place]

    def _apply(self, place: _Place, pacer: Pacer, now: float) -> float:
        pace = pacer.pace(now)
        if self._admission.knows(place[0]):
            self._admission.pace(place[0], place[1] or None, pace)
        return pace

    def observations(self, now: float) -> tuple[LimitObservation, ...]:
        """Return what the upstreams said lately."""
        fresh = {place for place, at in self._looked_at.items() if now - at < FRESH_SECONDS}
        return tuple(each for (upstream, model, _), each in self._observed.items() if (upstream, model) in fresh)

    def paces(self, now: float) -> tuple[tuple[_Place, float], ...]:
        """Return the part of their limits that calls use while an upstream throttles, by upstream and model."""
        return tuple((place, pacer.pace(now)) for place, pacer in self._pacers.items())
