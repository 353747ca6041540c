"""What can go wrong when JSON that somebody else wrote is decoded."""

from __future__ import annotations

import msgspec

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Malformed or of another shape; text that is no UTF-8; nested deeper than the stack that is left."""
