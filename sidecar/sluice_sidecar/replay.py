"""Giving a kept answer: the same bytes as the first time, a stream event by event, under header fields of our own."""

from __future__ import annotations

import asyncio

import msgspec

from sluice_core.caching import CacheUse
from sluice_core.records import Outcome
from sluice_core.sse import SSESplitter
from sluice_core.stored_answers import StoredAnswer
from sluice_sidecar.call import Call
from sluice_sidecar.headers import Field


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A kept answer that is given again."""

    answer: StoredAnswer
    use: CacheUse
    age_seconds: float = 0.0


async def relay_replay(call: Call, replay: Replay, extra: list[Field]) -> None:
    """Send a kept answer, no faster than the application reads it.

    The upstream's own header fields are not repeated: request id, limits and times were those of another call.

    Raises:
        ClientGoneError: the application has gone.
    """
    answer, downstream = replay.answer, call.downstream
    call.status, call.cost_usd_micros = 200, 0
    call.served_model, call.service_tier = answer.served_model, answer.service_tier
    call.finish_reason = answer.finish_reason
    fields = [("Content-Type", answer.content_type), *extra]
    if not answer.stream:
        await downstream.send(200, "OK", fields, answer.body)
    else:
        downstream.start(200, "OK", fields, None)
        call.first_token_at = call.clock()
        try:
            async with asyncio.timeout_at(call.deadline):
                for event in _events(answer.body):
                    if downstream.put(event):
                        await downstream.drain()
        except TimeoutError:
            downstream.break_off()
            call.outcome = Outcome.CLIENT_CLOSED
            return
        downstream.finish()
    call.outcome = Outcome.SUCCESS


def _events(body: bytes) -> list[bytes]:
    splitter = SSESplitter()
    events = splitter.feed(body)
    rest = splitter.flush()
    return [*events, rest] if rest else events
