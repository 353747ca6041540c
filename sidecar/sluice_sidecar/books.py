"""Calls that are over, booked a few at a time: the processor does the same steps for one call after the other in half
of the time that they take it in between other work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from sluice_sidecar.call import Call
from sluice_sidecar.telemetry.logs import report_fault

MOST_AT_ONCE: Final = 16
"""More would save little, and hold other calls up."""

LARGEST_KEPT_BYTES: Final = 64 * 1024
"""A larger call is booked at once: what waits holds its request."""

LATEST_SECONDS: Final = 0.005


class Books:
    """The calls that are over and not booked yet. Whoever reads what they add up to calls `bring_up_to_date` first."""

    __slots__ = ("_book", "_timer", "_waiting")

    def __init__(self, book: Callable[[Call], None]) -> None:
        self._book = book
        self._waiting: list[Call] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        """Have a call booked within a few milliseconds."""
        self._waiting.append(call)
        if len(self._waiting) >= MOST_AT_ONCE or call.request_bytes > LARGEST_KEPT_BYTES:
            self.bring_up_to_date()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATEST_SECONDS, self._late)

    def _late(self) -> None:
        self._timer = None
        self.bring_up_to_date()

    def bring_up_to_date(self) -> None:
        """Book all calls that are over."""
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            try:
                self._book(call)
            except Exception as error:  # noqa: BLE001 - a fault in one call must not cost others their record
                report_fault("fault in booking a call", error)
