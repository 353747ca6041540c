"""What the server served: one entry per request id, the truth that a client's own books are compared with."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Iterator
from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    """How a call ended, seen from the server."""

    IN_FLIGHT = "in_flight"
    COMPLETED = "completed"
    ERROR = "error"  # an error status
    FAILED = "failed"  # a failure inside a 200
    CUT = "cut"  # the server ended it early, as ordered
    CLIENT_CLOSED = "client_closed"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """
    Billed quantities of one call, in tokens unless the name says otherwise.

    `cached_tokens`, `cache_write_tokens`, `audio_input_tokens` and `image_input_tokens` are part of `input_tokens`;
    `reasoning_tokens` and `audio_output_tokens` are part of `output_tokens`.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    audio_input_tokens: int = 0
    image_input_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    audio_seconds: float = 0.0

    @property
    def total_tokens(self) -> int:
        """All tokens of the call."""
        return self.input_tokens + self.output_tokens


class LedgerEntry(msgspec.Struct, kw_only=True):
    """
    One call. It is open, and changes, until `outcome` is no longer `in_flight`.

    `usage` is what was billed: of a stream that was cut or closed early, the input and what had been generated
    by then; of an error, nothing. `usage_sent` tells whether the client was given that usage.
    Text that a user wrote is only kept as a SHA-256.
    """

    request_id: str
    endpoint: str
    method: str
    path: str
    started_at: float  # Unix seconds
    key_name: str | None = None
    model_requested: str | None = None
    model_served: str | None = None
    status: int | None = None
    error_code: str | None = None
    outcome: Outcome = Outcome.IN_FLIGHT
    usage: Usage | None = None
    usage_sent: bool = False
    stream: bool = False
    sent_bytes: int = 0
    sent_events: int = 0
    sent_sha256: str | None = None  # of the body's bytes, for JSON and event streams
    received_bytes: int = 0
    duration_seconds: float | None = None
    retry_count: int | None = None
    client_request_id: str | None = None
    organization: str | None = None
    project: str | None = None
    fault_ids: tuple[str, ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    instructions_sha256: str | None = None
    user_sha256: str | None = None
    tier_requested: str | None = None
    tier_served: str | None = None
    usage_asked: bool = False  # stream_options.include_usage
    object_id: str | None = None  # the response, file or batch that the call made or named
    turns: int = 0  # answers given over one WebSocket


class Ledger:
    """The last `capacity` entries, oldest first, and counts over all of them."""

    __slots__ = ("_capacity", "_changed", "_entries", "in_flight", "opened", "outcomes", "peak_in_flight")

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._changed = asyncio.Event()
        self.clear()

    def clear(self) -> None:
        """Forget every entry and count."""
        self._entries: OrderedDict[str, LedgerEntry] = OrderedDict()
        self.outcomes: Counter[str] = Counter()
        self.opened = 0
        self.in_flight = 0
        self.peak_in_flight = 0

    def open(self, entry: LedgerEntry) -> None:
        """Take in a call that has just arrived; the oldest entry makes room."""
        self._entries[entry.request_id] = entry
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        self.opened += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def close(self, entry: LedgerEntry) -> None:
        """Book the end of a call."""
        self.outcomes[entry.outcome] += 1
        self.in_flight = max(0, self.in_flight - 1)
        self._changed.set()

    async def settled(self) -> None:
        """Wait until no call is in flight, so that every entry is final."""
        while self.in_flight:
            self._changed.clear()
            await self._changed.wait()

    def get(self, request_id: str) -> LedgerEntry | None:
        """Find the entry of one request id."""
        return self._entries.get(request_id)

    def find(
        self, *, endpoint: str | None = None, model: str | None = None, key_name: str | None = None
    ) -> list[LedgerEntry]:
        """List the entries that match, oldest first. `model` matches the requested or the served name."""
        return [
            entry
            for entry in self._entries.values()
            if (endpoint is None or entry.endpoint == endpoint)
            and (model is None or model in (entry.model_requested, entry.model_served))
            and (key_name is None or entry.key_name == key_name)
        ]

    @property
    def last(self) -> LedgerEntry:
        """The newest entry; `IndexError` when there is none."""
        return next(reversed(self._entries.values()))

    def __iter__(self) -> Iterator[LedgerEntry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)
