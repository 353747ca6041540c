"""A WebSocket call: admitted and guarded like any other at its beginning, then relayed message by message."""

from __future__ import annotations

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Raw

from sluice_core.answer import Answer, read_usage
from sluice_core.classify import classify_response
from sluice_core.errors import Refusal, RefusalCode, refuse
from sluice_core.records import Outcome
from sluice_core.usage import Usage
from sluice_sidecar.attempt import Whole, failure_of
from sluice_sidecar.call import Call
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.grant import Grant
from sluice_sidecar.guard import Guard
from sluice_sidecar.order import our_fields
from sluice_sidecar.refusals import unanswered
from sluice_sidecar.settle import price
from sluice_sidecar.steering import Candidate
from sluice_sidecar.transport import TransportError
from sluice_sidecar.websocket import MAX_MESSAGE_BYTES, is_handshake_field, protocols, relay
from sluice_sidecar.websocket_dialer import DeclinedError


class _Response(msgspec.Struct, frozen=True, gc=False):
    model: str | None = None
    usage: Raw = Raw(b"null")


class _Event(msgspec.Struct, frozen=True, gc=False):
    response: _Response = _Response()


_decode_event = msgspec.json.Decoder(_Event).decode


async def serve_websocket(
    call: Call, request: web.BaseRequest, candidate: Candidate, guard: Guard
) -> web.StreamResponse:
    """Open a WebSocket to the upstream, then one to the application, and relay between them.

    Raises:
        RefusedError: a limit, a breaker or the upstream does not let it begin.
    """
    grant = await guard.admit(call, candidate)
    try:
        upstream = await _connect(call, request, grant)
        call.status = 101
        application = web.WebSocketResponse(
            protocols=(upstream.protocol,) if upstream.protocol else (),
            max_msg_size=MAX_MESSAGE_BYTES,
            autoping=False,
            autoclose=False,
        )
        application.headers["x-sluice-call-id"] = call.id
        call.outcome = Outcome.SUCCESS  # whichever side ends it: a conversation has no other end
        try:
            await application.prepare(request)
            meter = _Meter(call, grant, guard)
            await relay(application, upstream, meter.see, meter.ask)
        finally:
            price(call, grant, finished=True)
            grant.answered(101, call.usage, call.cost_usd_micros)
            await upstream.close()
        return application
    finally:
        grant.abandoned()


async def _connect(call: Call, request: web.BaseRequest, grant: Grant) -> aiohttp.ClientWebSocketResponse:
    upstream, key = grant.upstream, grant.key
    sent = call.fields.with_fields(our_fields(call, upstream, key))
    fields = [field for field in sent if not is_handshake_field(field[0])]
    try:
        return await upstream.websockets.dial(upstream.base + call.target.suffix, fields, protocols(request))
    except DeclinedError as declined:
        raise _declined(grant, declined) from None
    except TransportError as error:
        failure = failure_of(error)
        grant.failed(failure)
        raise RefusedError(unanswered(failure, upstream.policy.key), failure.outcome) from None


def _declined(grant: Grant, declined: DeclinedError) -> RefusedError:
    """Show the application what the upstream said instead of opening a WebSocket."""
    failure = classify_response(declined.status, declined.fields, declined.body)
    if failure is not None:
        grant.failed(failure)
    said = f"The upstream declined the WebSocket with {declined.status}."
    return RefusedError(
        refuse(RefusalCode.UPSTREAM_INVALID_RESPONSE, said),
        failure.outcome if failure is not None else Outcome.PROVIDER_ERROR,
        shown=Whole(
            status=declined.status,
            reason=declined.reason,
            fields=declined.fields,
            body=declined.body,
            answer=Answer(failure=failure),
        ),
    )


class _Meter:
    """Adds up the usage that the answers within one WebSocket report, and charges it: it may be open for an hour.

    So each answer after the first has to be allowed by the limits and budgets of its moment. Of those that the upstream
    begins by itself, when somebody has spoken, the one that a spent budget forbids ends the conversation.
    """

    __slots__ = ("_asked", "_begun", "_call", "_grant", "_guard")

    def __init__(self, call: Call, grant: Grant, guard: Guard) -> None:
        self._call = call
        self._grant = grant
        self._guard = guard
        self._asked = self._begun = 0

    def ask(self, message: str | bytes) -> str | None:
        """Return what the application is told instead of the answer that it asks for; None if it may have one."""
        data = message.encode() if isinstance(message, str) else message
        if b'"response.create"' not in data:
            return None
        refusal = self._refusal_of_more()
        if refusal is None:
            self._asked += 1
        return _error(refusal) if refusal is not None else None

    def see(self, message: str | bytes) -> str | None:
        """Take the usage out of a message that ends an answer; return what is told if one has begun that must not."""
        data = message.encode() if isinstance(message, str) else message
        if b'"response.created"' in data:
            return self._begin()
        if b'"response.done"' in data or b'"response.completed"' in data:
            self._charge(data)
        return None

    def _begin(self) -> str | None:
        if self._begun < self._asked:
            self._begun += 1
            return None
        refusal = self._refusal_of_more()
        self._asked = self._begun = self._begun + 1
        return _error(refusal) if refusal is not None and refusal.code is RefusalCode.BUDGET_EXCEEDED else None

    def _refusal_of_more(self) -> Refusal | None:
        first = not (self._asked or self._begun)  # it was admitted with the call
        return None if first else self._guard.refusal_of_more(self._call, self._grant)

    def _charge(self, data: bytes) -> None:
        try:
            response = _decode_event(data).response
            usage = read_usage(response.usage)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if usage is not None:
            self._call.served_model = response.model or self._call.served_model
            self._call.usage = usage if self._call.usage is None else _sum(self._call.usage, usage)
            price(self._call, self._grant, finished=True)
            self._grant.used(self._call.usage, self._call.cost_usd_micros)
            if self._call.cost_usd_micros:
                self._guard.charge(self._call, self._call.cost_usd_micros)


def _error(refusal: Refusal) -> str:
    """Return a refusal as an event, in the shape that both kinds of conversation have."""
    error = {"type": refusal.type, "code": refusal.code, "message": refusal.message, "param": None}
    return msgspec.json.encode({"type": "error", "status": refusal.status, "error": error}).decode()


def _sum(first: Usage, second: Usage) -> Usage:
    pairs = ((name, getattr(first, name) + getattr(second, name)) for name in Usage.__struct_fields__)
    return Usage(**dict(pairs))
