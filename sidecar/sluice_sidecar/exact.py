"""Exact counting of input tokens, where a vocabulary is mounted. Off unless TIKTOKEN_CACHE_DIR names its directory.

The vocabulary comes from that directory or not at all: nothing is fetched. Whatever is missing (the library, the
model's encoding, its vocabulary), the estimate stands, one warning says why, and a metric tells how many calls were
counted in which way. Small inputs are encoded in place, in less than a millisecond; larger ones in a thread, and not
for longer than a call may be held up by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import structlog

from sluice_core.api.modelroute import Endpoint
from sluice_core.input_text import InputText, input_text

INLINE_BYTES: Final = 8 * 1024
LARGEST_BYTES: Final = 1024 * 1024
"""Larger requests are estimated: the worst text of this size takes a thread about a second."""

MAX_SECONDS: Final = 0.5
"""How long a call is held up by counting; an input that takes longer is estimated."""

_MAX_MODELS: Final = 256
_THREADS: Final = 2
_MAX_COUNTING: Final = 8

log = structlog.get_logger()


class Encoding(Protocol):
    """What turns text into tokens."""

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the tokens of a text, whatever looks like a special token in it."""
        ...


class ExactCountError(Exception):
    """There is no encoding to count with. The message says what is missing."""


def load_encoding(model: str) -> Encoding:
    """Return a model's encoding. It takes up to a second: not for the event loop.

    Raises:
        ExactCountError: the library, the model's encoding or its vocabulary is missing.
    """
    try:
        import tiktoken
        import tiktoken.load
    except ImportError:
        raise ExactCountError('tiktoken is not installed; install sluice-k8s with its extra "exact"') from None
    setattr(tiktoken.load, "read_file", _fetch_nothing)  # noqa: B010 - what it would fetch over the network
    try:
        return tiktoken.encoding_for_model(model)
    except KeyError:
        raise ExactCountError("tiktoken knows no encoding for a model that is called") from None
    except (OSError, ValueError) as error:
        raise ExactCountError(f"no vocabulary: {error}") from None


def _fetch_nothing(_address: str) -> bytes:
    raise OSError("TIKTOKEN_CACHE_DIR has no intact file of the encoding that a model needs")


class ExactCounter:
    """Counts with encodings that are loaded when their first model is called."""

    def __init__(self, directory: Path | None, load: Callable[[str], Encoding] = load_encoding) -> None:
        self.enabled = directory is not None
        self.exact = 0
        self.estimated = 0
        self.error = ""
        self._load = load
        self._encodings: dict[str, Encoding | None] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "count")
        self._counting: set[Future[int | None]] = set()

    async def count(self, endpoint: Endpoint, model: str | None, body: bytes) -> int | None:
        """Return the tokens of a request's text, None where they have to be estimated."""
        encoding = self._encoding(model) if model is not None else None
        found = None
        if encoding is not None and len(body) <= INLINE_BYTES:
            found = _count(encoding, endpoint, body)
        elif encoding is not None and len(body) <= LARGEST_BYTES and len(self._counting) < _MAX_COUNTING:
            found = await self._count_aside(encoding, endpoint, body)
        if found is None:
            self.estimated += 1
        else:
            self.exact += 1
        return found

    def _encoding(self, model: str) -> Encoding | None:
        """Return the encoding of a model, None while it is being loaded and where there is none."""
        if model not in self._encodings and model not in self._loading:
            if len(self._encodings) + len(self._loading) >= _MAX_MODELS:  # callers choose these names
                return None
            self._loading[model] = asyncio.get_running_loop().create_task(self._fetch(model))
        return self._encodings.get(model)

    async def _fetch(self, model: str) -> None:
        try:
            self._encodings[model] = await asyncio.to_thread(self._load, model)
        except ExactCountError as error:
            if not self.error:
                log.warning("tokens are estimated, not counted", reason=str(error))
            self.error = str(error)
        finally:
            self._encodings.setdefault(model, None)
            del self._loading[model]

    async def _count_aside(self, encoding: Encoding, endpoint: Endpoint, body: bytes) -> int | None:
        job = self._threads.submit(_count, encoding, endpoint, body)
        self._counting.add(job)  # until it has ended: giving up on it does not stop it
        job.add_done_callback(self._counting.discard)
        try:
            async with asyncio.timeout(MAX_SECONDS):
                return await asyncio.wrap_future(job)
        except TimeoutError:
            return None

    async def loaded(self) -> None:
        """Wait for what is being loaded."""
        await asyncio.gather(*self._loading.values(), return_exceptions=True)

    async def close(self) -> None:
        """Wait for what is being loaded, and end the threads."""
        await self.loaded()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _count(encoding: Encoding, endpoint: Endpoint, body: bytes) -> int | None:
    text: InputText | None = input_text(endpoint, body)
    if text is None:
        return None
    return text.tokens + sum(len(encoding.encode_ordinary(piece)) for piece in text.pieces)
