"""The formats of OpenAI's wire: JSON and SSE framing, durations, names of models and tiers."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

JsonObject = dict[str, Any]

SSE_DONE: Final = b"data: [DONE]\n\n"
JSON_CONTENT_TYPE: Final = "application/json"
SSE_CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"

# An alias is answered by its dated snapshot; a name that is not here answers as itself.
MODEL_SNAPSHOTS: Final[Mapping[str, str]] = {
    "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
    "gpt-4-turbo": "gpt-4-turbo-2024-04-09",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "o3": "o3-2025-04-16",
    "o4-mini": "o4-mini-2025-04-16",
    "gpt-5": "gpt-5-2025-08-07",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
    "gpt-5-nano": "gpt-5-nano-2025-08-07",
}

_SERVED_TIERS: Final[Mapping[str, str]] = {"auto": "default", "fast": "priority"}
encode_json = msgspec.json.Encoder().encode


def sse_data(payload: object) -> bytes:
    """Frame a payload as chat completions do: a `data:` line alone."""
    return b"data: " + encode_json(payload) + b"\n\n"


def sse_event(payload: JsonObject) -> bytes:
    """Frame a payload as responses do: its `type` is the event's name."""
    name: str = payload["type"]
    return b"event: " + name.encode() + b"\ndata: " + encode_json(payload) + b"\n\n"


def served_model(requested: str) -> str:
    """Name the snapshot that answers for a requested model."""
    return MODEL_SNAPSHOTS.get(requested, requested)


def served_tier(requested: str | None) -> str:
    """Name the service tier that an answer reports when nothing else is ordered."""
    if requested is None:
        return "default"
    return _SERVED_TIERS.get(requested, requested)


def go_duration(seconds: float) -> str:
    """
    Write a duration as the `x-ratelimit-reset-*` headers do.

    Shapes: "12ms", "1s", "6m0s", "4m12.172s", "23h18m29.144s".
    """
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    shown = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if minutes == 0:
        return shown
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{shown}" if hours else f"{minutes}m{shown}"


def reframe(frame: bytes, *, crlf: bool, space_after_colon: bool, comment: bool) -> bytes:
    """Write the same SSE event another legal way: CRLF lines, no space after the colon, a comment before it."""
    if not space_after_colon:
        frame = frame.replace(b"data: ", b"data:", 1).replace(b"event: ", b"event:", 1)
    if comment:
        frame = b": keep-alive\n\n" + frame
    if crlf:
        frame = frame.replace(b"\n", b"\r\n")
    return frame


def listing(data: list[JsonObject], *, has_more: bool = False) -> JsonObject:
    """Wrap one page of objects as every list endpoint does."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def page(objects: list[JsonObject], query: Mapping[str, str]) -> JsonObject:
    """Cut one page out of `objects` (oldest first) by the `limit`, `order` and `after` parameters."""
    ordered = objects if query.get("order") == "asc" else objects[::-1]
    after = query.get("after")
    if after is not None:
        position = next((index for index, item in enumerate(ordered) if item["id"] == after), len(ordered))
        ordered = ordered[position + 1 :]
    limit = int(query.get("limit", "20")) if query.get("limit", "20").isdigit() else 20
    return listing(ordered[:limit], has_more=len(ordered) > limit)
