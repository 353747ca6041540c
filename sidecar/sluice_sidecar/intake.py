"""The first stages of the pipeline: reading what a decision needs, and finding out what the caller can wait for."""

from __future__ import annotations

import random
import time

import msgspec
from aiohttp import web

from sluice_core.errors import BadRequestError, RefusalCode, refuse
from sluice_core.records import Outcome
from sluice_core.request import peek
from sluice_sidecar.aside import LARGE_BYTES, aside
from sluice_sidecar.call import Call
from sluice_sidecar.downstream import MAX_BODY_BYTES, BodyTooLargeError, BrokenBodyError
from sluice_sidecar.errors import RefusedError
from sluice_sidecar.exact import ExactCounter
from sluice_sidecar.headers import media_type
from sluice_sidecar.telemetry.trace import traceparent

_SMALL_BODY_BYTES = 1024 * 1024
"""JSON up to this size is read whole on every path, so that the call can be repeated."""


async def read(call: Call, request: web.BaseRequest, counter: ExactCounter) -> None:
    """Read a JSON body whole, and look into it where something is generated; any other body is left to be streamed.

    Raises:
        RefusedError: the body is too large, does not arrive, or is no JSON object where one is needed.
    """
    if not request.body_exists:
        return
    kind = media_type(call.fields.first.get("content-type", ""))
    looked_into = call.generating and not kind.startswith("multipart/")  # whatever it claims to be: some servers guess
    if not looked_into:
        length = request.content_length
        if length is None or length > _SMALL_BODY_BYTES:
            call.body_stream, call.body_length = call.downstream.iterate_body(), length
            call.request_bytes = length or 0
            return
    call.body = await _whole_body(call)
    call.request_bytes = len(call.body)
    if not looked_into:
        return
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
    ids = f"{random.getrandbits(192):048x}"
    call.traceparent = traceparent(call.fields.first.get("traceparent"), ids[:32], ids[32:])
