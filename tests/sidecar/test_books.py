"""Calls that are over are booked a few at a time: soon, in order, none left out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from sluice_sidecar.books import LARGEST_KEPT_BYTES, MOST_AT_ONCE, Books


def _call(number: int, request_bytes: int = 1000) -> Any:
    return SimpleNamespace(number=number, request_bytes=request_bytes)


async def test_a_call_is_booked_soon_though_no_other_follows() -> None:
    """Nobody has to ask for it."""
    booked = asyncio.Event()
    books = Books(lambda _: booked.set())
    books.add(_call(1))
    assert not booked.is_set()
    await asyncio.wait_for(booked.wait(), 10)


async def test_whoever_asks_sees_all_calls_that_are_over_in_their_order() -> None:
    """What has been booked once is not booked again."""
    seen: list[int] = []
    books = Books(lambda call: seen.append(call.number))
    for number in range(MOST_AT_ONCE + 3):
        books.add(_call(number))
    assert seen == list(range(MOST_AT_ONCE))
    books.bring_up_to_date()
    books.bring_up_to_date()
    assert seen == list(range(MOST_AT_ONCE + 3))


async def test_a_large_call_does_not_wait() -> None:
    """Its request would stay in memory."""
    seen: list[int] = []
    books = Books(lambda call: seen.append(call.number))
    books.add(_call(1))
    books.add(_call(2, LARGEST_KEPT_BYTES + 1))
    assert seen == [1, 2]


async def test_a_fault_in_one_call_costs_no_other_its_record() -> None:
    """It is reported, and the next one is booked."""
    seen: list[int] = []

    def book(call: Any) -> None:
        if call.number == 1:
            raise RuntimeError
        seen.append(call.number)

    books = Books(book)
    for number in range(3):
        books.add(_call(number))
    books.bring_up_to_date()
    assert seen == [0, 2]
