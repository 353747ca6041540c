"""What is asked of the limits, and what they answer."""

from __future__ import annotations

from msgspec import Struct

from sluice_core.limits.keys import Dimension, Layer
from sluice_core.limits.meters import Meter

Amounts = tuple[int, int, int, int, int]


class Ask(Struct, frozen=True, kw_only=True):
    """What one attempt at an upstream will use, as an estimate.

    `tokens` is reserved; `floor_tokens` is what the upstream charges at once whatever comes of the call: settling never
    gives the account back more than what is above it. `user` is the hash of the user's key, None if the call names
    none.
    """

    model: str | None = None
    requests: int = 1
    tokens: int = 0
    floor_tokens: int = 0
    usd_micros: int = 0
    user: str | None = None
    user_class: str | None = None

    @property
    def amounts(self) -> Amounts:
        """Return what is asked for: requests, tokens, money, slots and a user's tokens, as `Meter.unit` counts them."""
        return (self.requests, self.tokens, self.usd_micros, 1 if self.requests else 0, self.tokens)


class Reservation:
    """What one attempt holds. It must be settled or released; whichever comes first counts."""

    __slots__ = ("amounts", "ask", "id", "meters", "open", "slots", "upstream")

    def __init__(
        self,
        number: int,
        upstream: str,
        ask: Ask,
        amounts: Amounts,
        meters: tuple[Meter, ...],
        slots: list[int],
    ) -> None:
        self.id = number
        self.upstream = upstream
        self.ask = ask
        self.amounts = amounts
        self.meters = meters
        self.slots = slots  # by meter: where it was taken
        self.open = True


class Obstacle(Struct, frozen=True, kw_only=True):
    """The limit that is in the way. `name` is one of a set that is bounded by the configuration."""

    name: str
    layer: Layer
    dimension: Dimension


class Admitted(Struct, frozen=True, kw_only=True):
    """Everything is reserved. In Shadow mode `would_refuse` names the limit that is exceeded."""

    reservation: Reservation
    would_refuse: Obstacle | None = None


class Wait(Struct, frozen=True, kw_only=True):
    """Nothing is reserved; it may be from `earliest` on (monotonic seconds), if nobody else comes first."""

    obstacle: Obstacle
    earliest: float


class Refused(Struct, frozen=True, kw_only=True):
    """Nothing is reserved, and waiting in line does not help.

    `reason` is one of "too_large" (never fits: `retry_at` is None), "budget_exhausted" (until `retry_at`), and from the
    waiting line "queue_full", "deadline" (would not make it in time) and "timed_out"; `retry_at` is in monotonic
    seconds.
    """

    reason: str
    obstacle: Obstacle
    retry_at: float | None = None
