"""The server's own endpoints under `/mock`: faults, limits, ledger, counts."""

import msgspec
from aiohttp import web

from sluice_cli.mock.errors import ApiError, bad_request, error_body, not_found, unknown_url
from sluice_cli.mock.faults import Fault, parse_faults
from sluice_cli.mock.limiter import ModelLimit
from sluice_cli.mock.state import State
from sluice_cli.mock.wire import JSON_CONTENT_TYPE, JsonObject, encode_json


async def handle(request: web.BaseRequest, state: State) -> web.StreamResponse:
    """Answer one admin request."""
    body = await request.read()
    status = 200
    try:
        payload = _answer(request, state, body)
    except ApiError as exc:
        payload, status = error_body(exc.shape), exc.shape.status
    except (msgspec.MsgspecError, ValueError, TypeError) as exc:
        payload, status = error_body(bad_request(str(exc)).shape), 400
    return web.Response(body=encode_json(payload), status=status, content_type=JSON_CONTENT_TYPE)


def _answer(request: web.BaseRequest, state: State, body: bytes) -> JsonObject:
    method, path = request.method, request.path.rstrip("/")
    if path == "/mock/faults" or path.startswith("/mock/faults/"):
        return _faults(method, path.removeprefix("/mock/faults").strip("/"), state, body)
    match method, path:
        case "GET", "/mock/ledger":
            return _ledger(state, dict(request.rel_url.query))
        case "GET", "/mock/stats":
            return stats(state)
        case "PUT", "/mock/limits":
            state.limiter.configure(msgspec.json.decode(body, type=list[ModelLimit]))
            return {"limits": msgspec.to_builtins(state.limiter.limits)}
        case "GET", "/mock/limits":
            return {"limits": msgspec.to_builtins(state.limiter.limits)}
        case "POST", "/mock/reset":
            state.reset()
            return {"reset": True}
        case _:
            raise unknown_url(method, path)


def _faults(method: str, fault_id: str, state: State, body: bytes) -> JsonObject:
    book = state.faults
    match method, fault_id:
        case "GET", "":
            pass
        case "PUT", "":
            book.replace(parse_faults(msgspec.json.decode(body)))
        case "POST", "":
            return {"id": book.put(msgspec.json.decode(body, type=Fault))}
        case "DELETE", "":
            book.clear()
        case "DELETE", _:
            if not book.remove(fault_id):
                raise not_found("fault", fault_id)
        case _:
            raise unknown_url(method, "/mock/faults")
    return {"faults": [msgspec.to_builtins(fault) | {"struck": book.struck(fault.id)} for fault in book]}


def _ledger(state: State, query: dict[str, str]) -> JsonObject:
    """List the newest entries, oldest first; `request_id`, `endpoint`, `model`, `key` and `limit` narrow it."""
    if "request_id" in query:
        entry = state.ledger.get(query["request_id"])
        found = [] if entry is None else [entry]
    else:
        found = state.ledger.find(endpoint=query.get("endpoint"), model=query.get("model"), key_name=query.get("key"))
    limit = int(query.get("limit", "1000"))
    return {"total": len(found), "entries": msgspec.to_builtins(found[-limit:] if limit > 0 else [])}


def stats(state: State) -> JsonObject:
    """Count what the server has done since it started or was reset."""
    ledger, limiter = state.ledger, state.limiter
    return {
        "requests": ledger.opened,
        "in_flight": ledger.in_flight,
        "peak_in_flight": ledger.peak_in_flight,
        "outcomes": dict(ledger.outcomes),
        "limiter": {"admitted": dict(limiter.admitted), "refused": dict(limiter.refused)},
        "faults": {fault.id: state.faults.struck(fault.id) for fault in state.faults},
    }
