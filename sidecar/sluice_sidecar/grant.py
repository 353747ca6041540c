"""Everything that one attempt holds: leave from the breakers, a reservation, a connection's worth of an upstream."""

from __future__ import annotations

from sluice_core.classify import Failure
from sluice_core.limits.decisions import Reservation
from sluice_core.records import Attempt, Outcome, milliseconds
from sluice_core.usage import Usage
from sluice_sidecar.breakers import Breakers, Pass
from sluice_sidecar.call import Call
from sluice_sidecar.gate import Gate
from sluice_sidecar.plan import Plan
from sluice_sidecar.upstream import Key

_NEVER_LEFT = frozenset(
    {"connect_timeout", "connection_refused", "name_not_resolved", "certificate_invalid", "tls_failed"}
)


class Grant:
    """One attempt's holdings. Exactly one of `answered`, `failed` and `abandoned` ends it; later ones do nothing."""

    __slots__ = (
        "_breakers",
        "_call",
        "_fallback",
        "_gate",
        "_open",
        "_pass",
        "key",
        "model",
        "reservation",
        "started",
        "upstream",
    )

    def __init__(
        self,
        call: Call,
        plan: Plan,
        key: Key,
        granted: Pass,
        reservation: Reservation,
        breakers: Breakers,
        gate: Gate,
        now: float,
    ) -> None:
        self._call = call
        self._breakers = breakers
        self._gate = gate
        self._pass = granted
        self._fallback = plan.candidate.fallback
        self._open = True
        self.upstream = plan.upstream
        self.key = key
        self.model = call.model
        self.reservation = reservation
        self.started = now
        plan.upstream.in_use += 1

    def answered(self, status: int, usage: Usage | None, cost_usd_micros: int | None) -> None:
        """End with an answer: what it used replaces the estimate, which stays where nothing was reported."""
        now = self._call.clock()
        if self._close(Outcome.SUCCESS, status, None, now):
            self._breakers.settle(self._pass, None, now)
            self._settle(usage, cost_usd_micros, now)

    def failed(self, failure: Failure, *, usage: Usage | None = None, cost_usd_micros: int | None = None) -> None:
        """End with a failure. An error answer costs a request and no tokens; of what broke off, the estimate stays."""
        call = self._call
        now = call.clock()
        repeated = any(
            before.outcome is failure.outcome and before.credential != self.key.name for before in call.attempts
        )
        if not self._close(failure.outcome, failure.status, failure.code, now):
            return
        self._breakers.settle(self._pass, failure, now, repeated=repeated)
        if failure.code in _NEVER_LEFT:
            self._gate.release(self.reservation)
        elif usage is None and (failure.status or 0) >= 400:
            self._gate.settle(self.reservation, tokens=0, usd_micros=0, now=now)
        else:
            self._settle(usage, cost_usd_micros, now)

    def abandoned(self, usage: Usage | None = None, cost_usd_micros: int | None = None) -> None:
        """End because nobody wants the answer any more: it says nothing about the upstream, and costs what is known."""
        now = self._call.clock()
        if self._close(Outcome.CLIENT_CLOSED, None, None, now):
            self._breakers.cancel(self._pass, now)
            self._settle(usage, cost_usd_micros, now)

    def used(self, usage: Usage, cost_usd_micros: int | None) -> None:
        """Charge the limits with what a call that goes on has used so far."""
        self._gate.charge(self.reservation, tokens=usage.total_tokens, usd_micros=cost_usd_micros or 0)

    def _settle(self, usage: Usage | None, cost_usd_micros: int | None, now: float) -> None:
        # What a later call says of a response made before was reserved then: it costs money, but no tokens again.
        tokens = usage.total_tokens if usage is not None and self._call.generating else None
        self._gate.settle(self.reservation, tokens=tokens, usd_micros=cost_usd_micros, now=now)

    def _close(self, outcome: Outcome, status: int | None, code: str | None, now: float) -> bool:
        if not self._open:
            return False
        self._open = False
        self.upstream.in_use -= 1
        call = self._call
        seconds = now - self.started
        call.upstream_seconds += seconds
        call.attempts.append(
            Attempt(
                upstream=self.upstream.policy.key,
                model=self.model[:128] if self.model else None,
                credential=self.key.name,
                status=status,
                code=code,
                outcome=outcome,
                duration_ms=milliseconds(seconds),
                fallback=self._fallback,
            )
        )
        return True
