"""The live state of one server, and the call that an endpoint answers."""

import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from aiohttp import web

from sluice_cli.mock.effects import NO_EFFECT, Effect
from sluice_cli.mock.errors import not_found
from sluice_cli.mock.faults import FaultBook
from sluice_cli.mock.ledger import Ledger, LedgerEntry
from sluice_cli.mock.limiter import RateLimiter
from sluice_cli.mock.wire import JsonObject, served_model, served_tier

T = TypeVar("T")
STABLE_CREATED_AT: Final = 1_750_000_000  # what `created` shows where answers must not depend on the clock


class Shelf(Generic[T]):
    """Stored objects of one kind by id, bounded: a new one pushes out the oldest."""

    __slots__ = ("_capacity", "_items", "_kind")

    def __init__(self, kind: str, capacity: int = 10_000) -> None:
        self._kind = kind
        self._capacity = capacity
        self._items: OrderedDict[str, T] = OrderedDict()

    def put(self, identifier: str, item: T) -> T | None:
        """Store an item; return the one that was pushed out."""
        self._items[identifier] = item
        if len(self._items) > self._capacity:
            return self._items.popitem(last=False)[1]
        return None

    def get(self, identifier: str) -> T:
        """Find an item; the API's 404 when there is none."""
        item = self._items.get(identifier)
        if item is None:
            raise not_found(self._kind, identifier)
        return item

    def pop(self, identifier: str) -> T:
        """Take an item out; the API's 404 when there is none."""
        item = self.get(identifier)
        del self._items[identifier]
        return item

    def values(self) -> list[T]:
        """List the items, oldest first."""
        return list(self._items.values())

    def clear(self) -> None:
        """Forget every item."""
        self._items.clear()

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._items

    def __len__(self) -> int:
        return len(self._items)


class State:
    """Everything that outlives a call. Shells read the clock and draw here, and nowhere deeper."""

    def __init__(self, *, seed: int, stable: bool, ledger_capacity: int) -> None:
        self.ledger = Ledger(ledger_capacity)
        self.faults = FaultBook()
        self.limiter = RateLimiter()
        self.folder = Path()  # where uploads are kept; the server gives one while it runs
        self._seed = seed
        self._stable = stable
        # Named shelves are made by the endpoints that own them, so that this module knows none of them.
        self._shelves: dict[str, Shelf[Any]] = {}
        self.restart()

    def restart(self) -> None:
        """Start the random draws and the ids over."""
        self.random = random.Random(self._seed)  # noqa: S311 - reproducible, not secret
        self._ids = itertools.count(1)

    def shelf(self, kind: str) -> Shelf[Any]:
        """The stored objects of one kind."""
        shelf = self._shelves.get(kind)
        if shelf is None:
            shelf = self._shelves[kind] = Shelf(kind)
        return shelf

    def reset(self) -> None:
        """Forget faults, ledger, counts and stored objects; limits stay, with full buckets."""
        self.faults.clear()
        self.ledger.clear()
        self.limiter.reset()
        for shelf in self._shelves.values():
            shelf.clear()
        self.restart()

    def new_id(self, prefix: str) -> str:
        """Make an id that no other object of this server has."""
        return f"{prefix}{(self._seed & 0xFFFF) << 48 | next(self._ids):032x}"

    def object_id(self, prefix: str, seed: int) -> str:
        """Make the id of an answer: new each time, or a function of the request in a stable server."""
        return f"{prefix}{seed:032x}" if self._stable else self.new_id(prefix)

    def created_at(self) -> int:
        """Unix seconds for the `created` fields."""
        return STABLE_CREATED_AT if self._stable else int(time.time())


class Call:
    """One request on its way to an answer."""

    __slots__ = ("args", "body", "effect", "entry", "form", "query", "rate_headers", "request", "state")

    def __init__(self, request: web.BaseRequest, state: State, entry: LedgerEntry, args: tuple[str, ...]) -> None:
        self.request = request
        self.state = state
        self.entry = entry
        self.args = args  # the variable parts of the path
        self.query: Mapping[str, str] = request.rel_url.query if request.rel_url.raw_query_string else {}
        self.body: JsonObject = {}
        self.form: object = None
        self.effect: Effect = NO_EFFECT
        self.rate_headers: Mapping[str, str] = {}

    @property
    def model_served(self) -> str:
        """The model that the answer names."""
        return self.effect.served_model or served_model(self.entry.model_requested or "")

    @property
    def tier_served(self) -> str:
        """The service tier that the answer names."""
        return self.effect.service_tier or served_tier(self.entry.tier_requested)
