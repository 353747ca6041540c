"""A fixed answer in the shape of the endpoint, whole or as a stream: the last of a rule's fallbacks."""

from __future__ import annotations

from typing import Any

import msgspec

from sluice_core.api.modelroute import Endpoint

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

HAVE_TEXT = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.RESPONSES})
"""The operations whose answers can say something."""

_encode = msgspec.json.encode
_NO_CHAT_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_NO_RESPONSE_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def static_answer(
    endpoint: Endpoint, message: str, *, model: str, call_id: str, created: int, stream: bool, include_usage: bool
) -> tuple[str, bytes] | None:
    """Return content type and body of an answer that says `message`, or None if the endpoint has no text to say it in.

    `include_usage` is the client's own wish for a usage event in a chat stream.
    """
    match endpoint:
        case Endpoint.CHAT_COMPLETIONS | Endpoint.COMPLETIONS:
            chat = endpoint is Endpoint.CHAT_COMPLETIONS
            base = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{call_id}", "created": created, "model": model}
            if not stream:
                return JSON, _encode(_completion(base, message, chat=chat))
            return EVENT_STREAM, b"".join(map(_data, _chunks(base, message, chat, include_usage))) + b"data: [DONE]\n\n"
        case Endpoint.RESPONSES:
            response = _response(message, model, call_id, created)
            if not stream:
                return JSON, _encode(response)
            return EVENT_STREAM, b"".join(
                b"event: %b\n%b" % (event["type"].encode(), _data({**event, "sequence_number": number}))
                for number, event in enumerate(_response_events(response, message))
            )
        case _:
            return None


def _data(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode(value)


def _completion(base: dict[str, Any], message: str, *, chat: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
    if chat:
        choice["message"] = {"role": "assistant", "content": message, "refusal": None}
    else:
        choice["text"] = message
    kind = "chat.completion" if chat else "text_completion"
    return {**base, "object": kind, "choices": [choice], "usage": _NO_CHAT_USAGE}


def _chunks(base: dict[str, Any], message: str, chat: bool, include_usage: bool) -> list[dict[str, Any]]:
    base = {**base, "object": "chat.completion.chunk" if chat else "text_completion"}
    if include_usage:
        base["usage"] = None

    def chunk(delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        content = {"delta": delta} if chat else {"text": delta.get("content", "")}
        return {**base, "choices": [{"index": 0, **content, "finish_reason": finish_reason, "logprobs": None}]}

    chunks = [chunk({"role": "assistant", "content": message}, None), chunk({}, "stop")]
    if include_usage:
        chunks.append({**base, "choices": [], "usage": _NO_CHAT_USAGE})
    return chunks


def _item(message: str, call_id: str, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": message, "annotations": [], "logprobs": []}] if message else []
    return {"id": f"msg_{call_id}", "type": "message", "role": "assistant", "status": status, "content": content}


def _response(message: str, model: str, call_id: str, created: int) -> dict[str, Any]:
    return {
        "id": f"resp_{call_id}",
        "object": "response",
        "created_at": created,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": [_item(message, call_id, "completed")],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": _NO_RESPONSE_USAGE,
    }


def _response_events(response: dict[str, Any], message: str) -> list[dict[str, Any]]:
    call_id = response["id"].removeprefix("resp_")
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": f"msg_{call_id}", "output_index": 0, "content_index": 0}
    part = response["output"][0]["content"][0]
    return [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": _item("", call_id, "in_progress")},
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        {"type": "response.output_text.delta", **place, "delta": message, "logprobs": []},
        {"type": "response.output_text.done", **place, "text": message, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": response["output"][0]},
        {"type": "response.completed", "response": response},
    ]
