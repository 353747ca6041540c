"""Stage five of the pipeline: what is tried, how often, and what follows from what comes of it.

One budget of attempts and time covers the whole call, whatever it tries: retries, other keys, fallbacks.
"""

from __future__ import annotations

import asyncio
import random
from typing import assert_never

import msgspec

from sluice_core.classify import Failure
from sluice_core.errors import Refusal, RefusalCode
from sluice_core.limits.decisions import Ask
from sluice_core.records import Outcome
from sluice_core.retry import (
    Fallback,
    GiveUp,
    NextFallback,
    Retry,
    RotateKey,
    ShrinkAndRetry,
    Situation,
    Step,
    next_step,
)
from sluice_sidecar.admit import ask_for, check_input, name_account, refusal_of_more
from sluice_sidecar.aside import LARGE_BYTES, aside
from sluice_sidecar.attempt import UNSENDABLE, Failed, Opaque, Result, Stream, Whole, attempt, with_refill
from sluice_sidecar.call import Call
from sluice_sidecar.deadlines import Deadlines
from sluice_sidecar.entrance import Entrance, gone
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.governor import Governor
from sluice_sidecar.grant import Grant
from sluice_sidecar.headers import BadFieldError
from sluice_sidecar.hold import HeldError, Waiters
from sluice_sidecar.journey import Journey
from sluice_sidecar.ladder import Levels
from sluice_sidecar.order import order_for
from sluice_sidecar.plan import Plan, degraded_plan, smaller
from sluice_sidecar.relay import TOO_LATE
from sluice_sidecar.replay import Replay
from sluice_sidecar.settle import lose
from sluice_sidecar.static_answer import static_answer
from sluice_sidecar.steering import Candidate, Candidates
from sluice_sidecar.upstream import Upstream

_TOO_LONG = "context_length_exceeded"
_OPENS_FALLBACKS = frozenset({RefusalCode.CIRCUIT_OPEN, RefusalCode.NO_CREDENTIAL, RefusalCode.NO_ROUTE})


class Static(msgspec.Struct, frozen=True, kw_only=True):
    """A fixed answer."""

    content_type: str
    body: bytes


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """An answer to show, and what its attempt holds until it has been shown.

    `failure` is set for an error of the upstream's own that is passed on because nothing else is left to try.
    """

    result: Whole | Stream | Opaque
    grant: Grant
    failure: Failure | None = None


class Guard:
    """Takes a call from one thing to try to the next."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._deadlines = Deadlines()
        self._gate = governor.gate
        self._entrance = Entrance(governor)
        self._admission = governor.admission
        self._estimator = governor.estimator
        self._pacing = governor.pacing
        self._holds = governor.pacing.holds
        self._waiters = Waiters()
        self.levels = Levels(governor)

    async def answer(self, call: Call, candidates: Candidates) -> Granted | Static | Replay:
        """Return the first answer worth showing.

        Raises:
            RefusedError: there is none, and the upstream said nothing that could be passed on.
        """
        if self._admission.degraded:
            candidates = self._descend(call, candidates)
        journey = Journey(call, candidates)
        for position, candidate in enumerate(candidates):
            journey.position = position
            if candidate.upstream:
                found: Granted | Static | Replay | None = await self._try(journey, candidate)
            else:
                found = candidate.replay or _static(call, candidate)
            if found is not None:
                call.fallback = candidate.fallback
                return found
            if journey.given_up:
                break
        if (stopped := journey.stopped()) is not None:
            for candidate in self.levels.where_stopped(call, candidates, stopped):
                call.fallback = candidate.fallback
                if (found := candidate.replay or _static(call, candidate)) is not None:
                    return found
        raise journey.end()

    async def admit(self, call: Call, candidate: Candidate) -> Grant:
        """Return what a conversation needs, which is not repeated; what it will use is not known.

        Raises:
            RefusedError: a limit, the breakers or missing keys forbid it.
        """
        upstream = self._governor.upstreams.get(candidate.upstream)
        if upstream is None:
            raise gone()
        self._descend(call, (candidate,))
        plan = self._plan(call, candidate, upstream)
        ask = Ask(model=call.model, tokens=1, user=call.user, user_class=call.user_class)
        while True:
            try:
                return self._entrance.walk_in(call, plan, ask, set()) or await self._entrance.line_up(
                    call, plan, ask, set()
                )
            except HeldError as held:
                await self._waiters.wait_out(held, call, plan, falls_back=False)

    def refusal_of_more(self, call: Call, grant: Grant) -> Refusal | None:
        """Count one more answer within a conversation, or return what is said if there is to be none now."""
        return refusal_of_more(call, grant.reservation, self._gate)

    def charge(self, call: Call, cost_usd_micros: int) -> None:
        """Charge what a call that goes on has cost so far."""
        self._governor.charge(call, cost_usd_micros)

    async def _try(self, journey: Journey, candidate: Candidate) -> Granted | None:
        """Try one candidate as often as the rules allow; None if the next one is to be tried, or none."""
        call = journey.call
        upstream = self._governor.upstreams.get(candidate.upstream)
        if upstream is None:
            journey.refused(gone())
            return None
        plan = self._plan(call, candidate, upstream)
        tried: set[str | None] = set()
        upstream.in_use += 1  # its connections stay open between two attempts, even if the policy drops it meanwhile
        try:
            ask = self._ask(call, plan, first=journey.attempts == 0)
            while True:
                try:
                    grant = self._entrance.walk_in(call, plan, ask, tried) or await self._entrance.line_up(
                        call, plan, ask, tried
                    )
                except HeldError as held:
                    falls_back = journey.next_fallback() is not NextFallback.NONE
                    await self._waiters.wait_out(held, call, plan, falls_back=falls_back)
                    continue
                tried.add(grant.key.name)
                result = await self._attempt(journey, plan, grant)
                self._note_pace(grant, result)
                if not isinstance(result, Failed):
                    return Granted(result=result, grant=grant)
                step = self._after(journey, plan, result.failure, tried)
                if isinstance(step, GiveUp) and result.whole is not None:
                    return Granted(result=result.whole, grant=grant, failure=result.failure)
                grant.failed(result.failure)
                if result.failure.outcome is Outcome.TRUNCATED and call.generating:
                    likely = self._estimator.likely_output(call.facts, call.model, plan.max_output_tokens)
                    lose(call, grant, 0 if call.facts.stream else likely)
                if not await self._proceed(journey, step):
                    journey.failed(result, upstream)
                    return None
        except RefusedError as refused:
            if candidate.fallback is None and not _opens_fallbacks(refused):
                raise  # over a limit: another upstream is no way around it
            journey.refused(refused)
            return None
        finally:
            upstream.in_use -= 1

    async def _proceed(self, journey: Journey, step: Step) -> bool:
        """Prepare the next attempt at the same candidate; tell whether there is to be one."""
        match step:
            case Retry(delay_seconds=delay):
                await asyncio.sleep(delay)
                return True
            case RotateKey():
                return True
            case ShrinkAndRetry():
                journey.shrink()
                return True
            case Fallback():
                return False
            case GiveUp():
                journey.given_up = True
                return False
            case _:
                assert_never(step)

    def _descend(self, call: Call, candidates: Candidates) -> Candidates:
        upstream = self._governor.upstreams.get(candidates[0].upstream)
        if upstream is not None:
            self._name_account(call, candidates[0], upstream)
        return self.levels.descend(call, candidates)

    def _name_account(self, call: Call, candidate: Candidate, upstream: Upstream) -> Plan:
        plan = candidate.plan
        if plan is None or plan.upstream is not upstream:  # the first call, or the upstream has gone and come back
            plan = candidate.plan = Plan(candidate, upstream, self._admission.account(candidate.upstream))
        name_account(call, plan)
        return plan

    def _plan(self, call: Call, candidate: Candidate, upstream: Upstream) -> Plan:
        """Settle how this candidate is tried, and note whose limits apply."""
        plan = self._name_account(call, candidate, upstream)
        call.upstream, call.model = plan.key, candidate.model or call.facts.model
        if call.opaque_body:  # it goes as it is
            call.model = call.facts.model or candidate.model
        if self._admission.degraded and (cheaper := self.levels.economy(call, plan.key)) is not None:
            call.model = cheaper.model or call.model
            plan = degraded_plan(plan, cheaper.max_output_tokens)
        return plan

    def _ask(self, call: Call, plan: Plan, *, first: bool) -> Ask:
        """Return what an attempt asks of the limits, by estimate.

        Raises:
            RefusedError: the input is longer than the rule allows.
        """
        facts = call.facts
        estimate = self._estimator.estimate(facts, call.model, smaller(plan.max_output_tokens, facts.max_output_tokens))
        if first:
            if plan.candidate.max_input_tokens is not None:
                check_input(call, plan.candidate.max_input_tokens, estimate)
            plan.upstream.retry_budget.count_call(call.clock())
        call.reserved_tokens, call.estimated_input_tokens = estimate.tokens, estimate.input_tokens
        return ask_for(call, plan.upstream, estimate) if call.generating else Ask()

    # --- one attempt and what follows

    async def _attempt(self, journey: Journey, plan: Plan, grant: Grant) -> Result:
        call = journey.call
        done = False
        call.sent = True
        try:
            large = call.request_bytes > LARGE_BYTES
            order = await aside(order_for, call, plan, grant.key) if large else order_for(call, plan, grant.key)
            with self._deadlines.until(call.answer_deadline, call.task):
                result = await attempt(plan.upstream.transport, order)
            if isinstance(result, Failed):
                if result.failure.code == _TOO_LONG:
                    await journey.look_for_less()
                result = with_refill(result, call.reserved_tokens)
            done = True
            return result
        except TimeoutError:
            done = True
            return Failed(failure=TOO_LATE)
        except BadFieldError:
            done = True
            return Failed(failure=UNSENDABLE)
        finally:
            if not done:
                grant.abandoned()

    def _note_pace(self, grant: Grant, result: Result) -> None:
        upstream, model, now = grant.upstream.policy.key, grant.model, self._governor.clock()
        if isinstance(result, Whole):
            self._pacing.answered(upstream, model, result.fields, now)
        elif not isinstance(result, Failed):
            self._pacing.answered(upstream, model, result.response.fields, now)
        elif result.failure.outcome is Outcome.THROTTLED:
            slow_down = result.failure.code == "slow_down"
            self._pacing.throttled(upstream, model, grant.started, now, slow_down=slow_down)
            if result.whole is not None:
                self._pacing.refused(upstream, model, result.whole.fields, now)
            if (seconds := result.failure.retry_after_seconds) is not None:
                cap = float(grant.upstream.policy.retry.max_delay_seconds)
                self._holds.ask((upstream, model, grant.key.name), seconds, cap, now)

    def _after(self, journey: Journey, plan: Plan, failure: Failure, tried: set[str | None]) -> Step:
        call = journey.call
        journey.attempts += 1
        if not call.replayable:
            return GiveUp(reason="body_sent")
        if call.abandoned:
            return GiveUp(reason="client_gone")
        situation = Situation(
            attempt=journey.attempts,
            elapsed_seconds=call.clock() - call.started,
            deadline_seconds=call.answer_deadline - call.started,
            keys_left=sum(key.name not in tried for key in plan.upstream.keys),
            can_shrink=failure.code == _TOO_LONG and journey.can_shrink,
            next_fallback=journey.next_fallback(),
        )
        upstream = plan.upstream
        draw = random.random()  # noqa: S311 - spreads retries in time
        return next_step(failure, situation, upstream.policy.retry, upstream.retry_budget, draw, call.clock())


def _opens_fallbacks(refused: RefusedError) -> bool:
    return isinstance(refused, HeldError) or refused.refusal.code in _OPENS_FALLBACKS


def _static(call: Call, candidate: Candidate) -> Static | None:
    answer = static_answer(
        call.endpoint,
        candidate.static_message or "",
        model=call.facts.model or "",
        call_id=call.id,
        created=int(call.unix_time),
        stream=call.facts.stream,
        include_usage=call.facts.include_usage,
    )
    return Static(content_type=answer[0], body=answer[1]) if answer is not None and call.generating else None
