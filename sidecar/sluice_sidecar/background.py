"""Responses that are made in the background: their usage comes with a later call, and is booked exactly once."""

from __future__ import annotations

from collections import OrderedDict

from sluice_sidecar.call import Call

MAX_PENDING = 10_000
_PENDING = frozenset({"queued", "in_progress"})


class BackgroundResponses:
    """The responses of which no usage has been seen yet. The oldest are forgotten."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: OrderedDict[str, None] = OrderedDict()

    def note(self, call: Call) -> None:
        """Remember a response that has only begun; take usage off a call that reports it a second time."""
        name = call.response_id
        if call.generating:
            if name is not None and call.response_status in _PENDING:
                self._pending[name] = None
                if len(self._pending) > MAX_PENDING:
                    self._pending.popitem(last=False)
            return
        if call.usage is None:
            return
        if name is None or call.response_status in _PENDING or name not in self._pending:
            call.usage = None
        else:
            del self._pending[name]
