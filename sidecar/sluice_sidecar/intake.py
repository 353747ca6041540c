"""The first stages of the pipeline: reading what a decision needs, and finding out what the caller can wait for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl

import msgspec

from sluice_core.api.modelroute import Endpoint
from sluice_core.errors import BadRequestError, RefusalCode, refuse
from sluice_core.form import LONGEST_VALUE, boundary_of, field
from sluice_core.records import Outcome
from sluice_core.request import peek
from sluice_sidecar.aside import LARGE_BYTES, aside
from sluice_sidecar.call import Call
from sluice_sidecar.downstream import MAX_BODY_BYTES, BodyTooLargeError, BrokenBodyError
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.exact import ExactCounter
from sluice_sidecar.headers import media_type
from sluice_sidecar.incoming import Incoming
from sluice_sidecar.telemetry.trace import traceparent

_SMALL_BODY_BYTES = 1024 * 1024
"""JSON up to this size is read whole on every path, so that the call can be repeated."""

_MOST_QUERY_FIELDS = 32

_EDGE_BYTES = 64 * 1024
"""How much of the beginning and of the end of a large form is looked through for its fields."""


async def read(call: Call, request: Incoming, counter: ExactCounter) -> None:
    """Read a JSON body whole, and look into it where something is generated; any other body is left to be streamed,
    but for a look at the model that it names.

    Raises:
        RefusedError: the body is too large, does not arrive, or is no JSON object where one is needed.
    """
    if not request.body_exists:
        if call.endpoint is Endpoint.REALTIME and call.target.query:
            _note_query_model(call)
        return
    kind = media_type(call.fields.first.get("content-type", ""))
    looked_into = call.generating and not kind.startswith("multipart/")  # whatever it claims to be: some servers guess
    if not looked_into:
        await _read_form(call, request.content_length)
        return
    call.body = call.downstream.body_at_hand() or await _whole_body(call)
    call.request_bytes = len(call.body)
    if call.fields.first.get("content-encoding", "identity").lower() != "identity":
        raise _bad_request("A compressed request body is not accepted here; send it plain.")
    try:
        if len(call.body) <= LARGE_BYTES:
            call.facts = peek(call.endpoint, call.body)
        else:
            call.facts = await aside(peek, call.endpoint, call.body)
    except BadRequestError as error:
        if kind in ("application/json", ""):
            raise RefusedError(error.refusal(), Outcome.CLIENT_ERROR) from None
        call.opaque_body = True
        return
    if counter.enabled:
        tokens = await counter.count(call.endpoint, call.facts.model, call.body)
        call.facts = msgspec.structs.replace(call.facts, text_tokens=tokens)


async def _read_form(call: Call, length: int | None) -> None:
    """Read a body that is not looked into, but for the model that a form names: limits and prices hang on it."""
    boundary = boundary_of(call.fields.first.get("content-type", "")) if call.generating else None
    call.opaque_body = call.generating
    if length is None or length > _SMALL_BODY_BYTES:
        parts = call.downstream.iterate_body()
        call.body_stream, call.body_length = parts if boundary is None else await _begun(call, parts, boundary), length
        call.request_bytes = length or 0
        return
    call.body = await _whole_body(call)
    call.request_bytes = len(call.body)
    if boundary is not None:
        _note_model(call, call.body, boundary)


async def _begun(call: Call, parts: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[bytes]:
    """Return a large form as it is, once as much of it has come as is needed to find its model there."""
    head = b""
    async for part in parts:
        head += part
        if _note_model(call, head, boundary) or len(head) >= _EDGE_BYTES:
            break
    return _continued(call, head, parts, boundary)


async def _continued(call: Call, head: bytes, parts: AsyncIterator[bytes], boundary: bytes) -> AsyncIterator[bytes]:
    yield head
    tail = head
    async for part in parts:
        tail = (tail + part)[-_EDGE_BYTES:]
        yield part
    if call.facts.model is None:  # the file came first: too late for the model's limits, but not for its price
        _note_model(call, tail, boundary)


def _note_model(call: Call, form: bytes, boundary: bytes) -> bool:
    model = field(form, boundary, "model")
    if model is not None:
        call.facts = msgspec.structs.replace(call.facts, model=model)
    return model is not None


def _note_query_model(call: Call) -> None:
    """Note the model that a WebSocket names in its address, which goes to the upstream as it is."""
    try:
        named = dict(parse_qsl(call.target.query, max_num_fields=_MOST_QUERY_FIELDS)).get("model")
    except ValueError:
        return
    if named:
        call.facts, call.opaque_body = msgspec.structs.replace(call.facts, model=named[:LONGEST_VALUE]), True


async def _whole_body(call: Call) -> bytes:
    try:
        return await call.downstream.read_body()
    except BodyTooLargeError:
        limit = f"{MAX_BODY_BYTES // (1024 * 1024)} MiB"
        refusal = refuse(RefusalCode.BODY_TOO_LARGE, f"The request body is larger than {limit}.")
        raise RefusedError(refusal, Outcome.CLIENT_ERROR) from None
    except BrokenBodyError:
        raise _bad_request("The request body stopped arriving.") from None


def _bad_request(message: str) -> RefusedError:
    return RefusedError(refuse(RefusalCode.INVALID_REQUEST, message), Outcome.CLIENT_ERROR)


def identify(call: Call) -> None:
    """Note when the call began, which trace it belongs to, and how long the application's SDK waits for it."""
    call.unix_time = time.time()
    call.traceparent = traceparent(call.fields.first.get("traceparent"), call.trace_id, call.span_id)
