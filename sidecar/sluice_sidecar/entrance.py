"""Stage four of the pipeline: what an attempt needs before it leaves, all of it or none.

That is a key that neither a breaker nor a Retry-After holds back, and room under the limits, at once or in line.
"""

from __future__ import annotations

from sluice_core.api.quotaallocation import Mode
from sluice_core.breaker import Rejected
from sluice_core.errors import RefusalCode, refuse
from sluice_core.limits.decisions import Admitted, Ask, Refused
from sluice_core.records import Outcome
from sluice_core.retry_after import Hold
from sluice_sidecar.admit import limit_name, refusal_of
from sluice_sidecar.breakers import Pass
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.gate import Passed
from sluice_sidecar.governor import Governor
from sluice_sidecar.grant import Grant
from sluice_sidecar.hold import HeldError
from sluice_sidecar.plan import Plan
from sluice_sidecar.refusals import circuit_open, no_credential
from sluice_sidecar.upstream import NO_KEY, Key


class Entrance:
    """Lets attempts through."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._gate = governor.gate
        self._breakers = governor.breakers
        self._holds = governor.pacing.holds

    def walk_in(self, call: Call, plan: Plan, ask: Ask, tried: set[str | None]) -> Grant | None:
        """Return what the next attempt needs if there is enough and nobody waits, as most; None if it has to line up.

        Raises:
            RefusedError: the breakers or missing keys forbid it.
        """
        if plan.key not in self._governor.upstreams:
            raise gone()
        now = call.clock()
        key, granted = self._leave(call, plan, tried, now)
        admitted = self._gate.walk_in(plan.key, ask, plan.priority, len(call.attempts) + call.client_retry, now)
        if admitted is None:
            self._breakers.cancel(granted, now)  # a probe must not wait in line
            return None
        return self._grant(call, plan, key, granted, admitted, now)

    async def line_up(self, call: Call, plan: Plan, ask: Ask, tried: set[str | None]) -> Grant:
        """Return what the next attempt needs once it is its turn.

        Raises:
            RefusedError: a limit forbids it, or by then the breakers or missing keys.
        """
        retry = len(call.attempts) + call.client_retry
        deadline = min(call.clock() + plan.max_wait_seconds, call.answer_deadline)
        passed = self._gate.submit(plan.key, ask, plan.priority, retry, deadline)
        if isinstance(passed, int):
            passed = await self._gate.wait(passed)
        if isinstance(passed, Refused):
            raise refusal_of(passed, call, plan.account)
        call.queue_seconds += passed.waited_seconds
        now = call.clock()
        try:
            key, granted = self._leave(call, plan, tried, now)
        except RefusedError:
            self._gate.release(passed.reservation)
            raise
        return self._grant(call, plan, key, granted, passed, now)

    def _grant(self, call: Call, plan: Plan, key: Key, granted: Pass, admitted: Admitted | Passed, now: float) -> Grant:
        if admitted.would_refuse is not None:
            call.would_refuse = limit_name(plan.account, admitted.would_refuse)
        return Grant(call, plan, key, granted, admitted.reservation, self._breakers, self._gate, now)

    def _leave(self, call: Call, plan: Plan, tried: set[str | None], now: float) -> tuple[Key, Pass]:
        """Return the first key that the breakers let through; keys that this call has tried come last.

        Raises:
            RefusedError: there is none.
        """
        upstream = plan.key
        keys = (NO_KEY,) if call.keeps_authorization else plan.upstream.keys
        if not keys:
            raise RefusedError(no_credential(upstream), Outcome.CREDENTIAL_ERROR)
        earliest: float | None = None
        held: Hold | None = None
        for key in sorted(keys, key=lambda key: key.name in tried) if tried else keys:
            if self._holds.any and plan.account.mode is not Mode.SHADOW:
                hold = self._holds.of((upstream, call.model, key.name), now)
                if hold is not None:
                    held = hold if held is None or hold.until < held.until else held
                    continue
            answer = self._breakers.allow(upstream, call.model, key.name, now)
            if not isinstance(answer, Rejected):
                return key, answer
            earliest = answer.until if earliest is None else min(earliest, answer.until)
        if held is not None:
            raise HeldError(upstream, held, now)
        call.refused_by = f"{upstream}/breaker"
        raise RefusedError(circuit_open(upstream, (earliest or now) - now))


def gone() -> RefusedError:
    """Return the refusal of calls to an upstream that is no more."""
    return RefusedError(refuse(RefusalCode.NO_ROUTE, "The rule names an upstream that is gone."))
