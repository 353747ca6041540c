"""How far a call has come through the things it may try, and what to say if none of them has an answer."""

from __future__ import annotations

from sluice_core.api.modelroute import Endpoint
from sluice_core.errors import Refusal, RefusalCode, refuse
from sluice_core.records import Outcome
from sluice_core.request import RequestFacts, peek
from sluice_core.retry import NextFallback
from sluice_core.shrink import shrink
from sluice_sidecar.aside import LARGE_BYTES, aside
from sluice_sidecar.attempt import Failed
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.refusals import unanswered
from sluice_sidecar.steering import Candidates
from sluice_sidecar.upstream import Upstream

_Smaller = tuple[bytes, RequestFacts]


class Journey:
    """How far a call has come through its candidates, and what to say if none has an answer."""

    __slots__ = ("_candidates", "_last", "_smaller", "_stopped", "attempts", "call", "given_up", "position")

    def __init__(self, call: Call, candidates: Candidates) -> None:
        self.call = call
        self.position = 0
        self._candidates = candidates
        self.attempts = 0
        self.given_up = False
        self._last: RefusedError | None = None
        self._stopped = True
        self._smaller: _Smaller | None = None

    def next_fallback(self) -> NextFallback:
        """Return what kind of thing comes after the one that is being tried."""
        following = self._candidates[self.position + 1 : self.position + 2]
        if not following:
            return NextFallback.NONE
        return NextFallback.UPSTREAM if following[0].upstream else NextFallback.STATIC

    async def look_for_less(self) -> None:
        """Make the input smaller: once, and only if there is something to leave out."""
        call = self.call
        if call.shrunk is None and call.body is not None and call.generating and not call.opaque_body:
            large = len(call.body) > LARGE_BYTES
            found = await aside(_smaller, call.endpoint, call.body) if large else _smaller(call.endpoint, call.body)
            self._smaller = found

    @property
    def can_shrink(self) -> bool:
        """Tell whether there is a smaller input to go on with."""
        return self._smaller is not None

    def shrink(self) -> None:
        """Go on with the smaller input."""
        if self._smaller is not None:
            self.call.shrunk, self.call.facts = self._smaller
            self._smaller = None

    def refused(self, refused: RefusedError) -> None:
        """Keep the first refusal: it is the one of the target that was meant.

        An open breaker in front of that target stands for its failures, and the arm must not look sound behind it.
        """
        stopped = refused.refusal.code == RefusalCode.CIRCUIT_OPEN
        self._stopped = self._stopped and stopped
        if self._last is None and stopped:
            self.call.arm_outcome = self.call.arm_outcome or Outcome.PROVIDER_ERROR
        self._last = self._last or refused

    def failed(self, failed: Failed, upstream: Upstream) -> None:
        """Keep a failure; it says more than a refusal does."""
        self._stopped = False
        refusal = unanswered(failed.failure, upstream.policy.key)
        self._last = RefusedError(refusal, failed.failure.outcome, shown=failed.whole)
        self.call.arm_outcome = self.call.arm_outcome or failed.failure.outcome

    def stopped(self) -> Refusal | None:
        """Return the first refusal if breakers stopped every upstream, and nothing else was in the way."""
        return self._last.refusal if self._stopped and self._last is not None else None

    def end(self) -> RefusedError:
        """Return what ends the call."""
        return self._last or RefusedError(refuse(RefusalCode.NO_ROUTE, "The rule has nothing to try for this call."))


def _smaller(endpoint: Endpoint, body: bytes) -> _Smaller | None:
    smaller = shrink(endpoint, body)
    return None if smaller is None else (smaller, peek(endpoint, smaller))
