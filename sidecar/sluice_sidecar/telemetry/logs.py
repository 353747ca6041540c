"""Operational logs: one JSON object a line on standard error, for people on call. Never about the content of a call."""

from __future__ import annotations

import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import msgspec
import structlog


def _render(_logger: object, _name: str, event: MutableMapping[str, Any]) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)


def configure() -> None:
    """Send structlog's events to standard error."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.BytesLoggerFactory(file=sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )


def report_fault(what: str, error: Exception) -> None:
    """Report a fault of our own by its kind and place: its text might quote a call."""
    frames = traceback.extract_tb(error.__traceback__)
    at = [f"{each.filename}:{each.lineno} {each.name}" for each in frames]
    structlog.get_logger().error(what, kind=type(error).__name__, at=at)
