"""The shell around the waiting line: futures for those who wait, one timer for all, and nothing ever left reserved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from sluice_core.api.quotaallocation import Priority
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask, Obstacle, Refused, Reservation, Wait
from sluice_core.limits.queue import Entered, Ready, TimedOut, Waiter, WaitingLine
from sluice_core.selection import PodPolicy


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt may go. `reservation` must be settled or released."""

    reservation: Reservation
    would_refuse: Obstacle | None = None
    waited_seconds: float = 0.0


class Gate:
    """Lets attempts through to the upstreams, as the limits allow."""

    def __init__(self, admission: Admission, clock: Callable[[], float], on_shortage: Callable[[], None]) -> None:
        """`on_shortage` is called when an attempt finds no capacity: whoever leases it should hear of that soon."""
        self.admission = admission
        self.line = WaitingLine(admission)
        self._clock = clock
        self._on_shortage = on_shortage
        self._next_id = 0
        self._waiting: dict[int, asyncio.Future[Passed | Refused]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def walk_in(self, upstream: str, ask: Ask, priority: Priority, retry: int, now: float) -> Admitted | None:
        """Reserve what the attempt needs if nobody is ahead of it and there is enough, as most; else `submit` it."""
        return self.line.walk_in(upstream, ask, priority, retry, now)

    def submit(
        self, upstream: str, ask: Ask, priority: Priority, retry: int, deadline: float
    ) -> Passed | Refused | int:
        """Reserve what the attempt needs, or enter the line; the number is for `wait`, which must follow at once."""
        self._next_id += 1
        number = self._next_id
        waiter = Waiter(id=number, upstream=upstream, ask=ask, priority=priority, retry=retry, deadline=deadline)
        match self.line.submit(waiter, self._clock()):
            case Admitted(reservation=reservation, would_refuse=would_refuse):
                return Passed(reservation=reservation, would_refuse=would_refuse)
            case Refused(reason=reason) as refused:
                if reason not in ("too_large", "budget_exhausted"):
                    self._on_shortage()
                return refused
            case Entered():
                self._on_shortage()
                future: asyncio.Future[Passed | Refused] = asyncio.get_running_loop().create_future()
                self._waiting[number] = future
                return number

    async def wait(self, number: int) -> Passed | Refused:
        """Wait for one's turn. Whoever is cancelled meanwhile leaves the line at once, with nothing reserved."""
        future = self._waiting[number]
        self._arm()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and isinstance(passed := future.result(), Passed):
                self.release(passed.reservation)  # admitted in the very moment in which the client left
            raise
        finally:
            self._waiting.pop(number, None)
            self.line.leave(number)
            self._arm()

    def settle(self, reservation: Reservation, *, tokens: int | None, usd_micros: int | None, now: float) -> None:
        """Charge what was really used; None keeps the estimate."""
        self.admission.settle(reservation, tokens=tokens, usd_micros=usd_micros, now=now)
        if self._waiting:
            self.pump()

    def go_on(self, reservation: Reservation) -> Refused | None:
        """Count one more answer within a call that goes on, or return why there is to be none now: nothing waits."""
        answer = self.admission.go_on(reservation, self._clock())
        if isinstance(answer, Wait):
            self._on_shortage()
            return Refused(reason="timed_out", obstacle=answer.obstacle, retry_at=answer.earliest)
        return answer

    def charge(self, reservation: Reservation, *, tokens: int, usd_micros: int) -> None:
        """Charge what a call that goes on has used so far."""
        self.admission.charge(reservation, tokens=tokens, usd_micros=usd_micros, now=self._clock())

    def release(self, reservation: Reservation) -> None:
        """Give everything back: the attempt never left."""
        self.admission.release(reservation, self._clock())
        if self._waiting:
            self.pump()

    def pump(self) -> None:
        """Let those through who may go now. Called when capacity comes back, leases arrive or the policy changes."""
        for outcome in self.line.ready(self._clock()):
            if not self._resolve(outcome.id, _passed(outcome)) and isinstance(outcome, Ready):
                self.admission.release(outcome.reservation, self._clock())  # the client has gone
        self._arm()

    def _resolve(self, number: int, answer: Passed | Refused) -> bool:
        future = self._waiting.pop(number, None)
        if future is None or future.done():
            return False
        future.set_result(answer)
        return True

    def _arm(self) -> None:
        """Set the one timer to the next moment at which somebody's turn or patience may come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        when = self.line.next_event(now)
        if when is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.001, when - now), self.pump)

    def configure(self, policy: PodPolicy) -> None:
        """Put new limits into force. Who waits for an upstream that is gone is sent away."""
        self.admission.configure(policy)
        self.pump()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()


def _passed(outcome: Ready | TimedOut) -> Passed | Refused:
    match outcome:
        case Ready(reservation=reservation, would_refuse=would_refuse, waited_seconds=waited):
            return Passed(reservation=reservation, would_refuse=would_refuse, waited_seconds=waited)
        case TimedOut(refusal=refusal):
            return refusal
