"""Answers that end their connection: to what is no HTTP, and in place of one that could not be made."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from sluice_core.errors import Refusal, RefusalCode, refuse

MALFORMED: Final = refuse(RefusalCode.INVALID_REQUEST, "The request is not valid HTTP.")
FAILED: Final = refuse(RefusalCode.INTERNAL_ERROR, "The Sluice sidecar failed.")


def closing_answer(refusal: Refusal) -> bytes:
    """Return the whole answer. It quotes nothing of the request."""
    body = refusal.body()
    status = HTTPStatus(refusal.status)
    fields = refusal.headers() | {"Content-Length": str(len(body)), "Connection": "close"}
    head = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(head).encode("latin-1") + body
