"""Work on large bodies, done beside the loop: other calls' events pass between one step of it and the next.

Parsing holds the interpreter's lock, but only from one call into the parser to its return, which is a few milliseconds
for the largest body; done in the loop, all the steps in a row would hold everybody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

LARGE_BYTES: Final = 1024 * 1024
"""Below it, all that is done to a body takes about as long as handing it to a thread and back: a millisecond or two."""

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_thread = ThreadPoolExecutor(1, "large-bodies")  # a second one would only contend with it for the same lock


async def aside(work: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
    """Return what `work` returns; raise what it raises. It must not touch what the loop's own work touches."""
    return await asyncio.wrap_future(_thread.submit(work, *args, **kwargs))
