"""What all tests share."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture(scope="session", autouse=True)
def _no_loop_left_over() -> None:
    """Keep a synchronous test from being given an event loop that nobody closes."""
    asyncio.set_event_loop(None)
