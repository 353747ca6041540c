"""W3C trace context: the application's trace goes on through the sidecar; without one, a new trace begins."""

from __future__ import annotations

import re

_TRACEPARENT = re.compile(r"^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")


def traceparent(incoming: str | None, trace_id: str, span_id: str) -> str:
    """Return the context to send: the incoming trace with our span, or a new one, sampled by whoever asks later.

    `trace_id` (32 hex digits) and `span_id` (16) are used where a new one is needed.
    """
    match = _TRACEPARENT.match(incoming) if incoming else None
    if match is None or match[1] == "ff" or match[2] == "0" * 32 or match[3] == "0" * 16:
        return f"00-{trace_id}-{span_id}-00"
    if match[1] == "00" and match[5]:
        return f"00-{trace_id}-{span_id}-00"
    return f"00-{match[2]}-{span_id}-{match[4]}"
