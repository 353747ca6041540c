"""Calls under way that identical ones wait for, and what becomes of their answers beside being shown."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sluice_core.answer import Answer
from sluice_core.caching import worth_keeping
from sluice_core.records import Outcome
from sluice_core.stored_answers import StoredAnswer
from sluice_sidecar.attempt import Opaque, Stream, Whole
from sluice_sidecar.call import Call
from sluice_sidecar.grant import Grant
from sluice_sidecar.recording import RecordingDownstream
from sluice_sidecar.relay import stream_answer
from sluice_sidecar.steering import Candidates

if TYPE_CHECKING:
    from sluice_sidecar.cache import Answers


class Flight:
    """A call under way that identical ones wait for. `left` tells that it ended because its application went away."""

    __slots__ = ("_call", "_done", "followers", "left")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._done: asyncio.Future[StoredAnswer | None] = asyncio.get_running_loop().create_future()
        self.followers = 0
        self.left = False

    def land(self, answer: StoredAnswer | None) -> None:
        """Give those who wait the answer; None lets them go on by themselves."""
        if not self._done.done():
            self._done.set_result(answer)

    async def wait(self, seconds: float) -> StoredAnswer | None:
        """Return the answer; None if there is none to share, or none in time."""
        self.followers += 1
        try:
            await asyncio.wait((self._done,), timeout=max(0.0, seconds))
        finally:
            self.followers -= 1
            leader = self._call
            if not self.followers and leader.abandoned and not leader.drains and leader.task is not None:
                leader.task.cancel()  # it went on for others alone, and they have gone too
        return self._done.result() if self._done.done() else None


class Lead:
    """A call that asks the upstream, and owes its answer to identical ones: those that wait and those to come.

    `candidates` are what it tries. Without a key, its answer is of no use to others.
    """

    __slots__ = ("_answers", "_call", "_grant", "_key", "_left", "_recording", "candidates")

    def __init__(self, answers: Answers, call: Call, candidates: Candidates, key: bytes | None = None) -> None:
        self._answers = answers
        self._call = call
        self._key = key
        self._grant: Grant | None = None
        self._recording: RecordingDownstream | None = None
        self._left = False
        self.candidates = candidates

    def take(self, result: Whole | Stream | Opaque, grant: Grant) -> None:
        """See an answer before it is shown: a whole one is kept, a stream is recorded while it passes.

        What a fallback gave, or what a degraded call or one with a smaller input got, is not the answer that others of
        the same kind are due.
        """
        call = self._call
        others = self._key is None or call.fallback is not None or call.degraded or call.shrunk is not None
        self._grant = grant
        if isinstance(result, Whole) and not others:
            content_type = result.fields.get("content-type", "application/json")
            self._keep(result.status, result.answer, content_type, result.body, stream=False)
        if others or not isinstance(result, Stream):
            self.close()  # whoever still waits need not wait until this answer has been read
        else:
            self._recording = RecordingDownstream(call.downstream, self._answers.room, lambda: call.awaited)
            call.downstream = self._recording

    def finish(self, result: Whole | Stream | Opaque) -> None:
        """Keep a stream that has been shown, if all of it was recorded."""
        recording, call = self._recording, self._call
        if recording is None or not isinstance(result, Stream) or call.outcome is not Outcome.SUCCESS:
            return
        body = recording.recorded
        if body is not None and result.tap.terminal_seen:
            content_type = result.response.fields.get("content-type", "text/event-stream")
            self._keep(call.status, stream_answer(result.tap), content_type, body, stream=True)

    def leave(self) -> None:
        """Note that the application has gone: of those who wait, one takes its place, and the others wait on."""
        self._left = True

    def close(self) -> None:
        """Let those who still wait go on by themselves, all at once, and give back what recording took."""
        if self._recording is not None:
            self._recording.forget()
        self._land(None)

    def _keep(self, status: int, said: Answer, content_type: str, body: bytes, *, stream: bool) -> None:
        call, grant = self._call, self._grant
        if not worth_keeping(call.endpoint, status, said.finish_reason, said.response_status):
            return
        if grant is None or self._key is None or len(body) > self._answers.stored.largest_body_bytes:
            return
        model = said.served_model or grant.model
        answer = StoredAnswer(
            content_type=content_type,
            body=body,
            stream=stream,
            stored_at=call.clock(),
            served_model=said.served_model,
            service_tier=said.service_tier,
            finish_reason=said.finish_reason,
            usage=said.usage,
            cost_usd_micros=None
            if said.usage is None
            else grant.upstream.prices.cost_usd_micros(said.usage, model, said.service_tier, call.unix_time),
        )
        rule = self.candidates[0].cache
        if rule is not None:
            self._answers.stored.put(self._key, answer, rule.keep_seconds)
        self._land(answer)

    def _land(self, answer: StoredAnswer | None) -> None:
        sharing, key = self._call.sharing, self._key
        flight = sharing.flight if sharing is not None else None
        if sharing is None or flight is None or key is None:
            return
        sharing.flight = None
        flight.left = self._left
        if self._answers.flights.get(key) is flight:
            del self._answers.flights[key]
        flight.land(answer)
