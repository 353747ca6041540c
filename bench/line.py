"""Realtime calls beside a flood of batch calls: `python -m bench.line`.

Two real sidecars share an account by leases: one of a realtime service, which wants 60 % of the limit, one of a batch
service, whose flood wants several times the whole. The same realtime traffic runs alone first, then beside the flood. A
wait is what the answer tells in `x-sluice-queue-ms`; a refused call counts as one that waited for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import msgspec

from sluice_cli.dev.session import Session
from sluice_cli.dev.upstreams import MockUpstreams
from sluice_cli.dev.workloads import Workload
from sluice_cli.mock.limiter import ModelLimit

MODEL = "gpt-4.1-mini"
REALTIME_PERCENT = 60
FLOOD_CALLERS = 60
MAX_P99_SECONDS = 0.1
MAX_REFUSED_PERCENT = 1.0

_POLICY = """
apiVersion: sluice.dev/v1alpha1
kind: Upstream
metadata: {{name: openai}}
spec:
  limits: {{requestsPerMinute: {limit}, tokensPerMinute: 0, requestsPerDay: 0, concurrency: 0}}
---
apiVersion: sluice.dev/v1alpha1
kind: QuotaAllocation
metadata: {{name: openai}}
spec:
  upstreamRef: {{name: openai}}
  allocations:
    - name: chat
      workloads: {{matchLabels: {{app: chat}}}}
      sharePercent: 70
      priority: Realtime
      queue: {{maxWaitSeconds: 10, maxLength: 1000}}
    - name: batch
      workloads: {{matchLabels: {{app: batch}}}}
      sharePercent: 30
      priority: Batch
      queue: {{maxWaitSeconds: 60, maxLength: 1000}}
"""


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """The realtime calls of one phase. Waits in seconds; `batch` is how many batch calls were served beside them."""

    calls: int
    refused: int
    p50_seconds: float
    p99_seconds: float
    longest_seconds: float
    batch: int
    use_percent: float
    throttled: int


async def run(seconds: float, limit: int, *, seed: int = 1) -> tuple[Waits, Waits]:
    """Run both phases, each over so many seconds; return the waits without the flood and beside it."""
    with tempfile.TemporaryDirectory(prefix="sluice-line-") as folder:
        Path(folder, "policy.yaml").write_text(_POLICY.format(limit=limit))
        upstreams = MockUpstreams()
        chat, batch = (Workload(labels={"app": app}) for app in ("chat", "batch"))
        async with Session(Path(folder), upstreams, workloads=(chat, batch)) as session:
            (mock,) = upstreams.mocks.values()
            mock.limiter.configure([ModelLimit(model="*", requests_per_minute=limit, shared=True)])
            urls = [session.sidecars[each.name].base_url for each in (chat, batch)]
            found = []
            for flooded in (False, True):
                draw = random.Random(seed)  # the same arrivals twice
                throttled, served = sum(mock.limiter.refused.values()), len(mock.ledger)
                waits, batches = await _phase(urls, limit * REALTIME_PERCENT / 6000, seconds, draw, flooded=flooded)
                use = 100.0 * (len(mock.ledger) - served) / (limit * seconds / 60)
                refused = sum(mock.limiter.refused.values()) - throttled
                found.append(_waits(waits, batches, use, refused))
            return found[0], found[1]


def _waits(waits: list[float], batch: int, use_percent: float, throttled: int) -> Waits:
    waits = sorted(waits)
    answered = [each for each in waits if each < float("inf")]
    return Waits(
        calls=len(waits),
        refused=len(waits) - len(answered),
        p50_seconds=waits[len(waits) // 2],
        p99_seconds=waits[len(waits) * 99 // 100],
        longest_seconds=max(answered, default=0.0),
        batch=batch,
        use_percent=round(use_percent, 1),
        throttled=throttled,
    )


async def _phase(
    urls: list[str], per_second: float, seconds: float, draw: random.Random, *, flooded: bool
) -> tuple[list[float], int]:
    connector = aiohttp.TCPConnector(limit=0)
    batches = 0
    async with aiohttp.ClientSession(connector=connector, headers={"Authorization": "Bearer x"}) as session:

        async def flood() -> None:
            nonlocal batches
            while time.monotonic() < until:
                status, _ = await _call(session, urls[1])
                batches += status == 200
                await asyncio.sleep(0.0 if status == 200 else 0.5)

        begun = time.monotonic()
        until = begun + seconds
        flooding = [asyncio.create_task(flood()) for _ in range(FLOOD_CALLERS if flooded else 0)]
        calls: list[asyncio.Task[tuple[int, float]]] = []
        at = begun
        while at < until:
            calls.append(asyncio.create_task(_call(session, urls[0])))
            at += draw.expovariate(per_second)
            await asyncio.sleep(max(0.0, at - time.monotonic()))
        answers = await asyncio.gather(*calls)
        for each in flooding:
            each.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)
    return [wait if status == 200 else float("inf") for status, wait in answers], batches


async def _call(session: aiohttp.ClientSession, url: str) -> tuple[int, float]:
    body = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
    async with session.post(f"{url}/chat/completions", json=body) as response:
        await response.read()
        return response.status, float(response.headers.get("x-sluice-queue-ms", "0")) / 1000


def main() -> int:
    """Run both phases and print their waits; tell whether the flood has moved them."""
    parser = argparse.ArgumentParser(prog="python -m bench.line", description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="length of each phase")
    parser.add_argument("--limit", type=int, default=1200, help="calls a minute that the account allows")
    given = parser.parse_args()
    print("| realtime calls | calls | refused | p50 wait | p99 wait | longest | batch served | use | upstream 429s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    phases = asyncio.run(run(given.seconds, given.limit))
    for name, found in zip(("alone", "beside the flood"), phases, strict=True):
        print(
            f"| {name} | {found.calls} | {found.refused} | {found.p50_seconds * 1000:.0f} ms "
            f"| {found.p99_seconds * 1000:.0f} ms | {found.longest_seconds * 1000:.0f} ms | {found.batch} "
            f"| {found.use_percent} % | {found.throttled} |",
            flush=True,
        )
    flooded = phases[1]
    few = flooded.refused * 100 <= MAX_REFUSED_PERCENT * flooded.calls
    return 0 if few and flooded.p99_seconds <= phases[0].p99_seconds + MAX_P99_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
