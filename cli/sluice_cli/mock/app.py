"""
One request from arrival to its ledger entry: find, authenticate, read, limit, strike, answer, send.

`App.handle` reads top to bottom as that list.
"""

import asyncio
import math
import time
from collections.abc import Collection
from typing import Final

import msgspec
from aiohttp import web

from sluice_cli.mock import admin, routes
from sluice_cli.mock.answers import Answer, SentAnswer
from sluice_cli.mock.content import sha256_text
from sluice_cli.mock.effects import Delay, Effect
from sluice_cli.mock.emission import abort
from sluice_cli.mock.errors import ERRORS, ApiError, ErrorShape, bad_request, missing, unknown_url, wrong_method
from sluice_cli.mock.faults import Fault, Subject, parse_header
from sluice_cli.mock.forms import Form, read_form
from sluice_cli.mock.identity import KeyRing, note_headers
from sluice_cli.mock.ledger import LedgerEntry, Outcome
from sluice_cli.mock.limiter import UNLIMITED_HEADERS, Refused
from sluice_cli.mock.sending import Sender, refusal
from sluice_cli.mock.state import Call, State
from sluice_cli.mock.wire import JsonObject

_API_PREFIX: Final = "/v1"
# What reading a body of the wrong shape raises, wherever that is noticed.
_MALFORMED: Final = (AttributeError, IndexError, KeyError, TypeError, ValueError)
_BODY_OPTIONAL: Final = frozenset({"conversations", "vector_stores", "realtime.client_secrets"})


class App:
    """The handler of every request."""

    def __init__(self, state: State, keys: KeyRing, models: Collection[str] | None) -> None:
        self._state = state
        self._keys = keys
        self._models = models

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request and book it."""
        state = self._state
        path = request.rel_url.raw_path
        if path.startswith("/mock/"):
            return await admin.handle(request, state)
        started = time.perf_counter()
        entry = LedgerEntry(
            request_id=state.new_id("req_"),
            endpoint="unknown",
            method=request.method,
            path=path,
            started_at=time.time(),
        )
        state.ledger.open(entry)
        sender = Sender(request, entry, started, state.random.random)
        call: Call | None = None
        try:
            route, args = _find(request.method, path)
            entry.endpoint = route.endpoint
            call = Call(request, state, entry, args)
            self._authenticate(call)
            own = _own_fault(request)
            await _invite_body(request)
            await _read_body(call, route)
            self._describe(call, route)
            _limit(call, route)
            _strike(call, own)
            return await _serve(call, route, sender)
        except ApiError as exc:
            return refusal(sender, call, exc)
        except _MALFORMED as exc:
            if entry.status is not None:
                raise  # the answer had begun: this is a mistake of ours
            message = f"Invalid type or value in the body of your request ({type(exc).__name__})."
            return refusal(sender, call, bad_request(message))
        except (ConnectionError, web.RequestPayloadError):
            _close_as(entry, Outcome.CLIENT_CLOSED)
            abort(request, reset=False)
            return web.Response()  # nothing of it is sent: the connection is gone
        except asyncio.CancelledError:
            _close_as(entry, Outcome.CLIENT_CLOSED)
            raise
        finally:
            _close_as(entry, Outcome.ERROR)
            entry.duration_seconds = time.perf_counter() - started
            state.ledger.close(entry)

    def _authenticate(self, call: Call) -> None:
        headers = call.request.headers
        call.entry.key_name = self._keys.name_of(headers.get("Authorization"))
        note_headers(headers, call.entry)

    def _describe(self, call: Call, route: routes.Route) -> None:
        """Book what the request asks for; what it hides of its user stays hidden."""
        body, entry = call.body, call.entry
        model = body.get("model") or call.query.get("model")
        if isinstance(model, str):
            if self._models is not None and model not in self._models:
                message = f"The model `{model}` does not exist or you do not have access to it."
                raise ApiError(msgspec.structs.replace(ERRORS["model_not_found"], message=message))
            entry.model_requested = model
        entry.stream = body.get("stream") is True
        entry.temperature = body.get("temperature")
        entry.tier_requested = body.get("service_tier")
        user = body.get("safety_identifier") or body.get("user")
        if isinstance(user, str):
            entry.user_sha256 = sha256_text(user)
        if route.describe is not None:
            route.describe(body, entry)


def _close_as(entry: LedgerEntry, outcome: Outcome) -> None:
    """Book how a call ended, unless that is known."""
    if entry.outcome is Outcome.IN_FLIGHT:
        entry.outcome = outcome


def _find(method: str, path: str) -> tuple[routes.Route, tuple[str, ...]]:
    below = path.removeprefix(_API_PREFIX)
    found = routes.find(method, below) if path.startswith(_API_PREFIX + "/") else None
    if found is None:
        raise unknown_url(method, path)
    if found.route is None:
        raise wrong_method(method, path)
    return found.route, found.args


def _own_fault(request: web.BaseRequest) -> Fault | None:
    """Read the fault that the request orders for itself, in `x-mock-fault`."""
    written = request.headers.get("x-mock-fault")
    if written is None:
        return None
    try:
        return parse_header(written)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise bad_request(f"x-mock-fault: {exc}") from exc


async def _invite_body(request: web.BaseRequest) -> None:
    """Tell a client that waits for it that its body is welcome."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _read_body(call: Call, route: routes.Route) -> None:
    if route.reader == "form" and call.request.content_type.startswith("multipart/"):
        form = await read_form(call.request)
        call.form = form
        call.body = _typed(form)
        call.entry.received_bytes = form.size_bytes
    elif route.reader in ("json", "form"):
        raw = await call.request.read()
        call.entry.received_bytes = len(raw)
        if not raw and route.endpoint not in _BODY_OPTIONAL:
            raise missing("body")
        try:
            decoded = msgspec.json.decode(raw or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise ApiError(ERRORS["invalid_request"]) from exc
        if not isinstance(decoded, dict):
            raise ApiError(ERRORS["invalid_request"])
        call.body = decoded


def _typed(form: Form) -> JsonObject:
    """Read the form's fields as a body: what is a JSON number or boolean becomes one."""
    body: JsonObject = {}
    for name, text in form.fields.items():
        body[name] = text
        if text in ("true", "false") or text.replace(".", "", 1).isdigit():
            body[name] = msgspec.json.decode(text) if text[0] != "0" or text == "0" or "." in text else text
    return body


def _limit(call: Call, route: routes.Route) -> None:
    """Charge the rate limiter; 429 when the request is over a limit."""
    limiter = call.state.limiter
    if route.charge is None:
        return
    if not limiter.limits:
        call.rate_headers = UNLIMITED_HEADERS  # the charge is not worth computing
        return
    tokens = route.charge(call.body)
    now = asyncio.get_running_loop().time()
    decision = limiter.admit(call.entry.model_requested or "", tokens, now)
    call.rate_headers = decision.headers
    if not isinstance(decision, Refused):
        return
    headers: dict[str, str] = {}
    if decision.retry_after_seconds is not None:
        headers["retry-after"] = str(max(1, math.ceil(decision.retry_after_seconds)))
        headers["retry-after-ms"] = str(math.ceil(decision.retry_after_seconds * 1000))
    shape = ErrorShape(status=429, type=decision.kind, code="rate_limit_exceeded", message=decision.message)
    raise ApiError(shape, headers)


def _strike(call: Call, own: Fault | None) -> None:
    entry = call.entry
    subject = Subject(
        endpoint=entry.endpoint, model=entry.model_requested, key_name=entry.key_name, stream=entry.stream
    )
    struck = call.state.faults.strike(subject, call.state.random.random, own)
    call.effect = struck.effect
    entry.fault_ids = struck.fault_ids
    if entry.model_requested is not None:
        entry.model_served = call.model_served
        entry.tier_served = call.tier_served


async def _serve(call: Call, route: routes.Route, sender: Sender) -> web.StreamResponse:
    """Do to the call what its faults order before an answer, then answer."""
    effect, entry = call.effect, call.entry
    await _wait(call)
    if effect.reset and effect.cut_at_byte is None and effect.cut_at_event is None:
        abort(call.request, reset=True)
        entry.outcome = Outcome.CUT
        return web.Response()  # nothing of it is sent: the connection is gone
    if effect.error is not None or effect.status is not None:
        raise _ordered_error(effect)
    if effect.html_body:
        return sender.html(effect)
    answer: Answer = await route.handler(call)
    if isinstance(answer, SentAnswer):
        if entry.outcome is Outcome.IN_FLIGHT:
            entry.outcome = Outcome.COMPLETED
        return answer.response
    return await sender.send(call, answer)


async def _wait(call: Call) -> None:
    effect = call.effect
    seconds = 0.0
    if effect.latency_seconds is not None:
        seconds += Delay.parse(effect.latency_seconds).draw(call.state.random.random())
    if effect.stall_seconds is not None and effect.stall_at_event is None:
        seconds += effect.stall_seconds
    if seconds > 0:
        await asyncio.sleep(seconds)


def _ordered_error(effect: Effect) -> ApiError:
    shape = ERRORS[effect.error or "server_error"]
    shape = msgspec.structs.replace(
        shape,
        status=effect.status or shape.status,
        message=effect.error_message or shape.message,
        type=effect.error_type or shape.type,
    )
    return ApiError(shape)
