"""Answers that are kept: the least recently used go first, and never more of them than fit."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from sluice_core.api.base import Value
from sluice_core.usage import Usage

OVERHEAD_BYTES: Final = 2048
"""What an answer takes beside its body: the key, the objects that hold it, its place in the order."""

MAX_ANSWERS: Final = 16_384
_LARGEST_PART: Final = 8


class StoredAnswer(Value, frozen=True, kw_only=True):
    """A whole answer with status 200, as an application got it. `usage` and `cost_usd_micros` are what it spares."""

    content_type: str
    body: bytes
    stream: bool
    stored_at: float
    served_model: str | None = None
    service_tier: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    cost_usd_micros: int | None = None

    @property
    def size_bytes(self) -> int:
        """Return what it takes of the memory that there is for answers."""
        return len(self.body) + OVERHEAD_BYTES

    def __repr__(self) -> str:
        return f"StoredAnswer({len(self.body)} bytes)"


class StoredAnswers:
    """Answers by key, within a bound of bytes and of number. Times are monotonic seconds."""

    __slots__ = ("_answers", "bytes", "evicted", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evicted = 0
        self._answers: OrderedDict[bytes, tuple[StoredAnswer, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many answers there are."""
        return len(self._answers)

    @property
    def largest_body_bytes(self) -> int:
        """Return how large an answer may be: no single one takes more than an eighth of the room."""
        return max(0, self.max_bytes // _LARGEST_PART - OVERHEAD_BYTES)

    def get(self, key: bytes, max_age_seconds: float, now: float) -> StoredAnswer | None:
        """Return the answer of this key that is younger than that."""
        found = self._answers.get(key)
        if found is None:
            return None
        answer, until = found
        if now >= until:
            self._drop(key)
            return None
        if now - answer.stored_at >= max_age_seconds:
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: StoredAnswer, keep_seconds: float) -> None:
        """Keep an answer for so long, in the place of an older one and of what is needed least."""
        self._drop(key)
        if len(answer.body) > self.largest_body_bytes or keep_seconds <= 0:
            return
        self._answers[key] = (answer, answer.stored_at + keep_seconds)
        self.bytes += answer.size_bytes
        while self.bytes > self.max_bytes or len(self._answers) > MAX_ANSWERS:
            _, (oldest, _) = self._answers.popitem(last=False)
            self.bytes -= oldest.size_bytes
            self.evicted += 1

    def tidy(self, now: float) -> None:
        """Drop what is past its time."""
        for key in [key for key, (_, until) in self._answers.items() if now >= until]:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        found = self._answers.pop(key, None)
        if found is not None:
            self.bytes -= found[0].size_bytes
