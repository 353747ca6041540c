"""The pod's side of a lease: how much it may use within any window, and what it tells the leader.

A pod may always use its safe share. On top of that a lease counts from the moment the pod *sent* the report that
it answers, so that the pod believes in it for less time than the leader does. Only the answer to the latest report
counts: the leader has to reckon with one answer under way, never with several.
"""

from __future__ import annotations

import math


class Allowance:
    """How much one pod may use of one limit: `ceiling` is the limit itself, 0 for none, and nothing exceeds it.

    A sole pod needs no lease: the whole is its own.
    """

    __slots__ = (
        "_amount",
        "_expires_at",
        "answered",
        "ceiling",
        "pace",
        "reported",
        "safe",
        "short",
        "sole",
        "usable",
        "usable_until",
    )

    def __init__(self, *, ceiling: int, safe: int, sole: bool) -> None:
        self.ceiling = ceiling
        self.safe = safe
        self.sole = sole
        self.pace = 1.0
        """The part of it to use while the upstream throttles."""
        self.usable: float = 0
        self.usable_until = float("-inf")
        """Until when `usable` may be used within any window, without asking `may_use`; an infinite one is no limit."""
        self.reported = 0
        """What the latest report wanted."""
        self.answered = 0
        """What the report wanted to which the present lease is the answer."""
        self.short = False
        """Whether others want more of the limit than there is."""
        self._amount = 0
        self._expires_at = float("-inf")

    def amount(self, now: float) -> int:
        """Return what may be used within any window that ends now."""
        amount = self.ceiling
        if not self.sole:
            # min(ceiling, max(safe, leased)), without the calls: a call of the application asks for nine of these
            held = self._amount if now < self._expires_at and self._amount > self.safe else self.safe
            if held < amount:
                amount = held
        return amount if self.pace >= 1.0 else math.ceil(amount * self.pace)

    def may_use(self, now: float) -> float:
        """Return, and remember as `usable`, what may be used within any window that ends now; infinite if all."""
        self.usable = self.amount(now) if self.ceiling else math.inf
        leased = not self.sole and now < self._expires_at
        self.usable_until = self._expires_at if leased else math.inf
        return self.usable

    def configure(self, *, ceiling: int, safe: int, sole: bool) -> None:
        """Put another limit into force; a lease stays."""
        self.ceiling, self.safe, self.sole = ceiling, safe, sole
        self.usable_until = float("-inf")

    def slow_down(self, pace: float) -> None:
        """Use only this part from now on."""
        self.pace = pace
        self.usable_until = float("-inf")

    def leased(self, now: float) -> int:
        """Return the amount of the lease, 0 once it has run out."""
        return self._amount if now < self._expires_at else 0

    def largest(self) -> int:
        """Return the most that could ever be granted: the whole but for what is kept for safe shares."""
        if self.sole:
            return self.ceiling
        return max(self.safe, self.ceiling - safe_reserve(self.ceiling))

    def may_grow(self, wanted: int, now: float) -> bool:
        """Tell whether the next answer may be larger: much more is wanted now than when the last was given."""
        return not self.sole and (now >= self._expires_at or 4 * wanted > 5 * self.answered)

    def grant(self, amount: int, expires_at: float, *, short: bool = False) -> None:
        """Replace the lease, larger or smaller, at once."""
        self.short = short
        self._amount = amount
        self._expires_at = expires_at
        self.answered = self.reported
        self.usable_until = float("-inf")

    def give_back(self, wanted: int, now: float) -> None:
        """Keep no more of the lease than is wanted, before saying what is held: others may have the rest at once.

        Where there is enough for all it is kept: headroom for the time when nobody leases.
        """
        if self.short and wanted < self.leased(now):
            self._amount = wanted
            self.usable_until = float("-inf")

    def drop(self) -> None:
        """Forget the lease."""
        self._amount = 0
        self._expires_at = self.usable_until = float("-inf")


SAFE_PERMILLE = 50
"""How much of every limit is kept for pods without a lease, in thousandths."""


def safe_reserve(capacity: int) -> int:
    """Return what is kept of a limit for pods without a lease."""
    return capacity * SAFE_PERMILLE // 1000
