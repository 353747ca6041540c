"""The pipeline: one call, from the application's request to its decision record, in the order in which it happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

import msgspec
from aiohttp import web

from sluice_core.api.modelroute import Endpoint
from sluice_core.classify import Failure
from sluice_core.errors import Refusal, RefusalCode, refuse
from sluice_core.records import Outcome
from sluice_core.request import endpoint_of, generates
from sluice_core.retry import deadline_seconds
from sluice_sidecar import feedback
from sluice_sidecar.attempt import Opaque, Stream, Whole
from sluice_sidecar.call import Call
from sluice_sidecar.downstream import BodyTooLargeError, BrokenBodyError, ClientGoneError, Downstream
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.governor import Governor
from sluice_sidecar.guard import Granted, Guard, Static
from sluice_sidecar.headers import Field, RequestFields
from sluice_sidecar.incoming import Incoming
from sluice_sidecar.intake import identify, read
from sluice_sidecar.ladder import decision
from sluice_sidecar.realtime import serve_websocket
from sluice_sidecar.relay import relay_opaque, relay_stream, relay_whole
from sluice_sidecar.replay import Replay, relay_replay
from sluice_sidecar.settle import price
from sluice_sidecar.steering import Candidates
from sluice_sidecar.target import BadTargetError, Target, parse
from sluice_sidecar.telemetry.logs import report_fault
from sluice_sidecar.websocket import is_websocket

_NEVER_PASSED = frozenset({"CONNECT", "TRACE"})
"""The one would turn the upstream's connection into a tunnel, the other would show the application our key."""


MAX_OPERATIONS = 256
LONGEST_KNOWN_PATH = 256


class _Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What a method and a path mean."""

    target: Target
    endpoint: Endpoint
    generating: bool


class Proxy:
    """Serves the application's calls."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._guard = Guard(governor)
        self._operations: dict[tuple[str, str], _Operation] = {}
        self._last_has_left: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle(self, request: Incoming) -> web.StreamResponse:
        """Serve one request. Every way out leaves the call settled, or in the hands of a task that settles it."""
        downstream = Downstream(request, closing=self._governor.stopping)
        name = request.method, request.raw_path
        operation = self._operations.get(name) or await self._find(name, request, downstream)
        if operation is None:
            return downstream.reply
        call = Call(
            method=request.method,
            target=operation.target,
            endpoint=operation.endpoint,
            generating=operation.generating,
            fields=RequestFields(request.fields),
            downstream=downstream,
            clock=self._governor.clock,
        )
        self._governor.in_flight += 1
        call.task = task = request.task or asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler runs in a task
        self._tasks.add(task)
        try:
            return await self._serve(call, request)
        finally:
            self._tasks.discard(task)

    async def _serve(self, call: Call, request: Incoming) -> web.StreamResponse:
        candidates: Candidates | None = None
        try:
            await read(call, request, self._governor.counter)  # 1. what a decision needs, and no more
            identify(call)  # 2. which trace, since when
            candidates = self._route(call)  # 3. rule, arm, and what is tried in turn
        except RefusedError as refused:
            await self._refuse(call, refused)
        except ClientGoneError:
            pass
        finally:
            if candidates is None:
                self._leave(call)
        if candidates is None:
            return call.downstream.reply
        if request.handshake is not None and is_websocket(request.handshake):
            return await self._websocket(call, request.handshake, candidates)
        work = self._fulfil(call, candidates)
        await (self._outlive_client(call, work) if call.outlives_client else work)
        return call.downstream.reply

    async def _fulfil(self, call: Call, candidates: Candidates) -> None:
        try:
            if candidates[0].cache is None:
                answer = await self._guard.answer(call, candidates)  # 4. + 5. admitted, guarded, repeated by rule
                await self._relay(call, answer)  # 6. bytes as they come
            else:
                await self._fulfil_once(call, candidates)
        except RefusedError as refused:
            await self._refuse(call, refused)
        except ClientGoneError:
            pass  # the call has no outcome yet: that is what its record will say
        except Exception as error:  # noqa: BLE001 - the root of a call's task: report, answer, go on with other calls
            await self._rescue(call, error)
        finally:
            self._leave(call)

    async def _fulfil_once(self, call: Call, candidates: Candidates) -> None:
        """Answer with what was kept, or with what an identical call gets, if there is such; else as any call."""
        if self._governor.admission.degraded and self._guard.levels.asks_nobody(call, candidates):
            await self._relay(call, await self._guard.answer(call, candidates))
            return
        found = await self._governor.answers.find(call, candidates)
        if isinstance(found, Replay):
            await self._relay(call, found)
            return
        try:
            answer = await self._guard.answer(call, found.candidates)
            if isinstance(answer, Granted) and answer.failure is None:
                found.take(answer.result, answer.grant)
            else:
                found.close()
            await self._relay(call, answer)
            if isinstance(answer, Granted):
                found.finish(answer.result)
        except (asyncio.CancelledError, ClientGoneError):
            found.leave()
            raise
        finally:
            found.close()

    def _leave(self, call: Call) -> None:
        call.ended = call.clock()
        self._governor.books.add(call)  # 7. counts, record, metrics
        self._governor.in_flight -= 1
        if self._last_has_left is not None and not self._governor.in_flight:
            self._last_has_left.set()

    # --- the stages, in so far as they are not modules of their own

    async def _find(self, name: tuple[str, str], request: Incoming, downstream: Downstream) -> _Operation | None:
        """Return what a request wants to do, and remember that, or answer the request here if it is no call."""
        try:
            target = parse(request.raw_path)
        except BadTargetError as error:
            await _answer(downstream, refuse(RefusalCode.INVALID_REQUEST, f"{error}."))
            return None
        if request.method in _NEVER_PASSED:
            await _answer(downstream, refuse(RefusalCode.INVALID_REQUEST, f"{request.method} is not passed on."))
            return None
        if target is None:
            await self._own_page(request, downstream)
            return None
        operation = _Operation(
            target=target,
            endpoint=endpoint_of(request.method, target.plain),
            generating=generates(request.method, target.plain),
        )
        if len(self._operations) >= MAX_OPERATIONS:
            self._operations.clear()
        if len(request.raw_path) <= LONGEST_KNOWN_PATH:
            self._operations[name] = operation
        return operation

    def _route(self, call: Call) -> Candidates:
        view = self._governor.view()
        if view is None:
            raise RefusedError(
                refuse(RefusalCode.NOT_CONFIGURED, "No policy has been read yet.", retry_after_seconds=1.0)
            )
        call.namespace = view.policy.namespace
        facts = call.facts
        continues = facts.previous_response_id is not None or facts.conversation is not None
        candidates = view.steering.steer(call, self._governor.pinned_arm(call) if continues else None)
        if call.keeps_authorization:
            call.fields.keep_authorization()
        call.deadline = call.started + call.total_seconds
        call.answer_deadline = call.started + deadline_seconds(call.total_seconds, call.fields.first)
        return candidates

    async def _relay(self, call: Call, answer: Granted | Static | Replay) -> None:
        if not isinstance(answer, Granted):
            await self._relay_own(call, answer)
            return
        extra = _own_fields(call)
        grant, failure = answer.grant, answer.failure
        finished = False
        try:
            match answer.result:
                case Whole() as whole:
                    await relay_whole(call, whole, extra)
                case Stream() as stream:
                    failure = await relay_stream(call, stream, extra)
                case Opaque() as opaque:
                    failure = await relay_opaque(call, opaque, extra)
            finished = True
        finally:
            self._governor.background.note(call)
            price(call, grant, finished=finished, failure=failure)
            if not finished:
                grant.abandoned(call.usage, call.cost_usd_micros)
        _conclude(call, grant_failure=failure)
        if failure is None:
            grant.answered(call.status, call.usage, call.cost_usd_micros)
        else:
            grant.failed(failure, usage=call.usage, cost_usd_micros=call.cost_usd_micros)

    async def _relay_own(self, call: Call, answer: Static | Replay) -> None:
        """Show an answer that nothing was asked of an upstream for."""
        if isinstance(answer, Replay):
            self._governor.answers.give(call, answer)
            await relay_replay(call, answer, _own_fields(call))
            return
        call.status, call.outcome = 200, Outcome.SUCCESS
        fields = [("Content-Type", answer.content_type), *_own_fields(call)]
        await call.downstream.send(200, "OK", fields, answer.body)

    async def _refuse(self, call: Call, refused: RefusedError) -> None:
        call.outcome = refused.outcome
        if refused.shown is not None:
            await relay_whole(call, refused.shown, _own_fields(call))
            return
        refusal = refused.refusal
        call.status, call.error_code = refusal.status, refusal.code
        await _answer(call.downstream, refusal, _own_fields(call))

    async def _rescue(self, call: Call, error: Exception) -> None:
        report_fault("fault in a call", error)
        call.outcome, call.error_code = Outcome.PROVIDER_ERROR, "internal_error"
        if call.downstream.started:
            call.downstream.break_off()
            return
        refusal = refuse(RefusalCode.INTERNAL_ERROR, "The Sluice sidecar failed to handle this call.")
        call.status = refusal.status
        await _answer(call.downstream, refusal, _own_fields(call))

    # --- what is not a plain call

    async def _outlive_client(self, call: Call, work: Coroutine[None, None, None]) -> None:
        """Go on reading an answer to its end after the application has gone, because its rule wants its usage known, or
        because others wait for the same answer.

        A call that has not left yet, and that nobody else waits for, ends with its application.
        """
        call.task = task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            call.abandoned = True
            if not (call.awaited or (call.drains and call.sent)):
                task.cancel()
            raise

    async def _websocket(self, call: Call, request: web.BaseRequest, candidates: Candidates) -> web.StreamResponse:
        try:
            return await serve_websocket(call, request, candidates[0], self._guard)
        except RefusedError as refused:
            await self._refuse(call, refused)
            return call.downstream.reply
        finally:
            self._leave(call)

    async def _own_page(self, request: Incoming, downstream: Downstream) -> None:
        if request.method != "POST" or request.raw_path.partition("?")[0] != feedback.PATH:
            message = f"Sluice serves the API below /v1 and feedback at {feedback.PATH}; check the base URL."
            await _answer(downstream, refuse(RefusalCode.NO_ROUTE, message))
            return
        try:
            given = feedback.parse(await downstream.read_body(feedback.MAX_BODY_BYTES))
        except BodyTooLargeError:
            await _answer(downstream, refuse(RefusalCode.BODY_TOO_LARGE, "The feedback is too large."))
        except (feedback.FeedbackError, BrokenBodyError) as error:
            await _answer(downstream, refuse(RefusalCode.INVALID_REQUEST, f"{error}."))
        else:
            self._governor.books.bring_up_to_date()
            counted = self._governor.memory.score(given)
            body = b'{"counted":true}' if counted else b'{"counted":false}'
            await downstream.send(200 if counted else 404, "", [("Content-Type", "application/json")], body)

    # --- the end

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        while self._governor.in_flight:
            self._last_has_left = asyncio.Event()
            await self._last_has_left.wait()

    def break_off_all(self) -> None:
        """End every call that is in flight: its application is told, as far as its stream allows."""
        for task in list(self._tasks):
            task.cancel()


def _conclude(call: Call, grant_failure: Failure | None) -> None:
    if grant_failure is None:
        call.outcome = call.outcome or Outcome.SUCCESS
    else:
        call.outcome, call.error_code = grant_failure.outcome, grant_failure.code


def _own_fields(call: Call) -> list[Field]:
    """The header fields that Sluice adds to an answer."""
    fields = [("x-sluice-call-id", call.id)]
    if call.assignment is not None:
        fields.append(("x-sluice-arm", call.assignment.version))
    if call.fallback is not None:
        fields.append(("x-sluice-fallback", str(call.fallback)))
    if call.queue_seconds:
        fields.append(("x-sluice-queue-ms", str(round(call.queue_seconds * 1000))))
    if call.degraded:
        fields.append(("x-sluice-decision", decision(call)))
    if call.sharing is not None and call.sharing.use is not None:
        fields.append(("x-sluice-cache", call.sharing.header))
    if call.shrunk is not None:
        fields.append(("x-sluice-decision", "input_shrunk; code=context_length_exceeded"))
    return fields


async def _answer(downstream: Downstream, refusal: Refusal, extra: list[Field] | None = None) -> None:
    with contextlib.suppress(ClientGoneError):
        await downstream.send(refusal.status, "", [*refusal.headers().items(), *(extra or [])], refusal.body())
