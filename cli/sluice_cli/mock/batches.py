"""
Batches: each time one is asked for it goes one step on: validating, in_progress, completed.

The lines are answered by the endpoints themselves. A fault for a line is matched under the endpoint
`batches.` and the line's own (`batches.chat.completions`), and puts the line into the error file.
The usage of a batch is booked on the call that created it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from sluice_cli.mock import chat, completions, embeddings, images, moderations, responses
from sluice_cli.mock.answers import Answer, JsonAnswer
from sluice_cli.mock.errors import ERRORS, ApiError, bad_request, error_body, missing
from sluice_cli.mock.faults import Subject
from sluice_cli.mock.files import StoredFile, store
from sluice_cli.mock.ledger import LedgerEntry, Usage
from sluice_cli.mock.state import Call
from sluice_cli.mock.wire import JsonObject, encode_json, page

MAX_LINES: Final = 50_000
_LINES_PER_TURN: Final = 100  # then the event loop gets its turn
_WINDOW_SECONDS: Final = 86_400
_ENDPOINTS: Final[dict[str, tuple[str, Callable[[Call], Awaitable[Answer]]]]] = {
    "/v1/chat/completions": ("chat.completions", chat.create),
    "/v1/responses": ("responses", responses.create),
    "/v1/embeddings": ("embeddings", embeddings.create),
    "/v1/completions": ("completions", completions.create),
    "/v1/moderations": ("moderations", moderations.create),
    "/v1/images/generations": ("images.generations", images.generate),
}


class Batch:
    """One batch, the call that made it and the lines it has."""

    __slots__ = ("body", "entry", "lines", "running")

    def __init__(self, body: JsonObject, entry: LedgerEntry) -> None:
        self.body = body
        self.entry = entry
        self.lines: list[JsonObject] = []
        self.running = False


async def create(call: Call) -> Answer:
    """Answer `POST /batches`."""
    state, given = call.state, call.body
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not given.get(name):
            raise missing(name)
    if given["endpoint"] not in _ENDPOINTS:
        raise bad_request(f"Invalid 'endpoint': {given['endpoint']}", "endpoint")
    if given["completion_window"] != "24h":
        raise bad_request("Invalid 'completion_window': only '24h' is supported.", "completion_window")
    source: StoredFile = state.shelf("file").get(given["input_file_id"])
    if source.body["purpose"] != "batch":
        raise bad_request("The input file's purpose must be 'batch'.", "input_file_id")
    created_at = state.created_at()
    body: JsonObject = {
        "id": state.new_id("batch_"),
        "object": "batch",
        "endpoint": given["endpoint"],
        "errors": None,
        "input_file_id": given["input_file_id"],
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": created_at,
        "expires_at": created_at + _WINDOW_SECONDS,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": given.get("metadata") or {},
    }
    state.shelf("batch").put(body["id"], Batch(body, call.entry))
    call.entry.object_id = body["id"]
    return JsonAnswer(payload=body)


async def list_batches(call: Call) -> Answer:
    """Answer `GET /batches`."""
    return JsonAnswer(payload=page([batch.body for batch in call.state.shelf("batch").values()], call.query))


async def retrieve(call: Call) -> Answer:
    """Answer `GET /batches/{id}` with where it stands, then take it one step on."""
    batch: Batch = call.state.shelf("batch").get(call.args[0])
    seen = dict(batch.body)
    if batch.body["status"] == "validating":
        _validate(call, batch)
    elif batch.body["status"] == "in_progress" and not batch.running:
        batch.running = True
        try:
            await _run(call, batch)
        finally:
            batch.running = False
    return JsonAnswer(payload=seen)


async def cancel(call: Call) -> Answer:
    """Answer `POST /batches/{id}/cancel`."""
    batch: Batch = call.state.shelf("batch").get(call.args[0])
    if batch.body["status"] not in ("validating", "in_progress"):
        raise ApiError(ERRORS["conflict"])
    batch.body |= {"status": "cancelled", "cancelled_at": call.state.created_at()}
    return JsonAnswer(payload=batch.body)


def _validate(call: Call, batch: Batch) -> None:
    source: StoredFile = call.state.shelf("file").get(batch.body["input_file_id"])
    problems: list[JsonObject] = []
    for number, raw in enumerate(source.path.read_bytes().splitlines(), start=1):
        try:
            line = msgspec.json.decode(raw, type=JsonObject)
            if {"custom_id", "method", "url", "body"} <= line.keys() and line["url"] == batch.body["endpoint"]:
                batch.lines.append(line)
                continue
            message = "The line lacks a field or its URL is not the batch's endpoint."
        except msgspec.MsgspecError:
            message = "This line is not parseable as valid JSON."
        problems.append({"code": "invalid_json_line", "line": number, "message": message, "param": None})
    now = call.state.created_at()
    if problems or not 0 < len(batch.lines) <= MAX_LINES:
        batch.body |= {"status": "failed", "failed_at": now, "errors": {"object": "list", "data": problems[:100]}}
        return
    batch.body |= {"status": "in_progress", "in_progress_at": now}
    batch.body["request_counts"] = {"total": len(batch.lines), "completed": 0, "failed": 0}


async def _run(call: Call, batch: Batch) -> None:
    """Answer every line and write the output and the error file."""
    state = call.state
    endpoint, handler = _ENDPOINTS[batch.body["endpoint"]]
    results: dict[bool, list[bytes]] = {True: [], False: []}
    total = Usage()
    for number, line in enumerate(batch.lines, start=1):
        result, usage = await _line(call, endpoint, handler, line)
        results[result["response"]["status_code"] == 200].append(encode_json(result))
        if usage is not None:
            total = _plus(total, usage)
        if number % _LINES_PER_TURN == 0:
            await asyncio.sleep(0)
    if batch.body["status"] != "in_progress":
        return  # cancelled meanwhile
    done, failed = len(results[True]), len(results[False])
    now = state.created_at()
    batch.body |= {
        "status": "completed",
        "finalizing_at": now,
        "completed_at": now,
        "output_file_id": _file(call, batch, "output", results[True]),
        "error_file_id": _file(call, batch, "error", results[False]),
        "request_counts": {"total": done + failed, "completed": done, "failed": failed},
        "usage": _usage_body(total),
    }
    batch.entry.usage = total


def _file(call: Call, batch: Batch, kind: str, lines: list[bytes]) -> str | None:
    if not lines:
        return None
    path: Path = call.state.folder / call.state.new_id(f"batch-{kind}-")
    path.write_bytes(b"\n".join(lines) + b"\n")
    identifier: str = store(call.state, path, f"{batch.body['id']}_{kind}.jsonl", "batch_output").body["id"]
    return identifier


async def _line(
    call: Call, endpoint: str, handler: Callable[[Call], Awaitable[Answer]], line: JsonObject
) -> tuple[JsonObject, Usage | None]:
    state = call.state
    entry = msgspec.structs.replace(call.entry, request_id=state.new_id("req_"), endpoint=f"batches.{endpoint}")
    inner = Call(call.request, state, entry, ())
    inner.body = {name: value for name, value in line["body"].items() if name != "stream"}
    entry.model_requested = inner.body.get("model")
    subject = Subject(endpoint=entry.endpoint, model=entry.model_requested, key_name=entry.key_name)
    inner.effect = state.faults.strike(subject, state.random.random).effect
    refused = None if inner.effect.error is None else ERRORS[inner.effect.error]
    usage: Usage | None = None
    payload: Any = None
    if refused is None:
        try:
            answer: Any = await handler(inner)
            usage, payload = answer.usage, answer.payload
        except ApiError as exc:
            refused = exc.shape
    status = 200 if refused is None else refused.status
    if refused is not None:
        payload = error_body(refused)
    result = {
        "id": state.new_id("batch_req_"),
        "custom_id": line["custom_id"],
        "response": {"status_code": status, "request_id": entry.request_id, "body": payload},
        "error": None,
    }
    return result, usage


def _plus(left: Usage, right: Usage) -> Usage:
    return Usage(**{name: getattr(left, name) + getattr(right, name) for name in Usage.__struct_fields__})


def _usage_body(usage: Usage) -> JsonObject:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
