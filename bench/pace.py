"""Five sidecars, one account, more demand than it allows: `python -m bench.pace [--trouble Churn]`.

The account is the mock's own rate limiter, the leader is that of local mode, the sidecars are real processes. Demand is
skewed and comes in an open loop at 130 % of the limit. Judged by the mock's counters alone: how many calls it had to
throttle, and how much of the limit was used in the best and in the last whole minute. Limits count over a minute, so a
run takes more than one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter
from enum import StrEnum
from pathlib import Path

import aiohttp
import msgspec

from sluice_cli.dev.session import Session
from sluice_cli.dev.upstreams import MockUpstreams
from sluice_cli.dev.workloads import Workload
from sluice_cli.mock import MockOpenAI
from sluice_cli.mock.limiter import ModelLimit

MODEL = "gpt-4.1-mini"
TOKENS_PER_CALL = 100
PARTS = (40, 25, 15, 12, 8)
"""Of the demand, for each sidecar, in percent."""
ONE_BUSY = (90, 4, 3, 2, 1)
BURST_SECONDS = 7.0
CHURN_SECONDS = 10.0
WINDOW_SECONDS = 60.0
DEMAND_PERCENT = 130
MAX_THROTTLED_PERCENT = 0.5
LEAST_USE_PERCENT = 90.0

_POLICY = """
apiVersion: sluice.dev/v1alpha1
kind: Upstream
metadata: {{name: openai}}
spec:
  limits: {{requestsPerMinute: {requests}, tokensPerMinute: {tokens}, requestsPerDay: 0, concurrency: 0}}
---
apiVersion: sluice.dev/v1alpha1
kind: QuotaAllocation
metadata: {{name: openai}}
spec:
  upstreamRef: {{name: openai}}
  allocations:
    - {{name: chat, sharePercent: 100, queue: {{maxWaitSeconds: 5, maxLength: 200}}}}
"""


class Trouble(StrEnum):
    """What makes a run harder than steady demand."""

    NONE = "None"
    ONE_BUSY = "OneBusy"  # one of the sidecars has nine tenths of the demand
    BURSTS = "Bursts"  # twice the demand for seven seconds, none for the next seven
    KILL = "Kill"  # the busiest is killed half way; another process takes its place
    CHURN = "Churn"  # every ten seconds another one is killed
    LEADER = "Leader"  # half way another leader takes over, which knows nothing


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run shows. `throttled` are the upstream's own 429s; percentages of use are of the limit, over a minute.

    The mean is of the minutes that end at each second after the first minute. The last minute alone is the one of a
    moment: permits come back in the waves in which they went.
    """

    limit_per_minute: int
    offered: int
    admitted: int
    throttled: int
    refused: int
    throttled_percent: float
    best_minute_percent: float
    last_minute_percent: float
    mean_minute_percent: float
    most_in_a_minute: int


def judge(starts: list[float], throttled: int, limit: int, offered: int, refused: int) -> Figures:
    """Return the figures of a run from the times at which the upstream began to serve."""
    starts = sorted(starts)
    most = first = 0
    for index, at in enumerate(starts):
        while starts[first] <= at - WINDOW_SECONDS:
            first += 1
        most = max(most, index - first + 1)
    last = sum(at > starts[-1] - WINDOW_SECONDS for at in starts) if starts else 0
    ends = (
        [starts[0] + second for second in range(int(WINDOW_SECONDS), int(starts[-1] - starts[0]) + 1)] if starts else []
    )
    minutes = [bisect_right(starts, end) - bisect_right(starts, end - WINDOW_SECONDS) for end in ends]
    return Figures(
        limit_per_minute=limit,
        offered=offered,
        admitted=len(starts),
        throttled=throttled,
        refused=refused,
        throttled_percent=round(100.0 * throttled / max(1, len(starts) + throttled), 3),
        best_minute_percent=round(100.0 * most / limit, 1),
        last_minute_percent=round(100.0 * last / limit, 1),
        mean_minute_percent=round(100.0 * sum(minutes) / max(1, len(minutes)) / limit, 1),
        most_in_a_minute=most,
    )


async def run(
    seconds: float,
    limit: int,
    *,
    by_tokens: bool,
    trouble: Trouble = Trouble.NONE,
    offered_per_minute: float = 0.0,
    seed: int = 1,
) -> Figures:
    """Offer calls for some seconds, 130 % of the limit if nothing else is said, and return the mock's verdict."""
    requests, tokens = (0, limit * TOKENS_PER_CALL) if by_tokens else (limit, 0)
    with tempfile.TemporaryDirectory(prefix="sluice-pace-") as folder:
        Path(folder, "policy.yaml").write_text(_POLICY.format(requests=requests, tokens=tokens))
        upstreams = MockUpstreams()
        pods = tuple(Workload(labels={"app": "chat", "pod": str(number)}) for number in range(len(PARTS)))
        async with Session(Path(folder), upstreams, workloads=pods) as session:
            (mock,) = upstreams.mocks.values()
            rows = [ModelLimit(model="*", requests_per_minute=requests, tokens_per_minute=tokens, shared=True)]
            mock.limiter.configure(rows)
            bases = [session.sidecars[pod.name].base_url for pod in pods]
            per_second = (offered_per_minute or limit * DEMAND_PERCENT / 100) / 60
            causing = asyncio.create_task(_cause(trouble, session, [pod.name for pod in pods], seconds))
            statuses = await _offer(bases, per_second, seconds, random.Random(seed), trouble)
            causing.cancel()
            await asyncio.gather(causing, return_exceptions=True)
            return _verdict(mock, limit, statuses)


async def _cause(trouble: Trouble, session: Session, names: list[str], seconds: float) -> None:
    """Bring the trouble about, for as long as the run lasts."""
    match trouble:
        case Trouble.KILL:
            await asyncio.sleep(seconds / 2)
            _kill(session, names[0])
        case Trouble.CHURN:
            for name in itertools.cycle(names):
                await asyncio.sleep(CHURN_SECONDS)
                _kill(session, name)
        case Trouble.LEADER:
            await asyncio.sleep(seconds / 2)
            session.plane.leader.lead(True, time.monotonic())
        case Trouble.NONE | Trouble.ONE_BUSY | Trouble.BURSTS:
            pass


def _kill(session: Session, name: str) -> None:
    pid = session.sidecars[name].pid
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _verdict(mock: MockOpenAI, limit: int, statuses: Counter[int]) -> Figures:
    served = [entry.started_at for entry in mock.ledger if entry.status == 200]
    return judge(served, sum(mock.limiter.refused.values()), limit, statuses.total(), statuses[429])


async def _offer(
    bases: list[str], per_second: float, seconds: float, draw: random.Random, trouble: Trouble
) -> Counter[int]:
    statuses: Counter[int] = Counter()
    parts = ONE_BUSY if trouble is Trouble.ONE_BUSY else PARTS
    bursts = trouble is Trouble.BURSTS
    body = {"model": MODEL, "max_tokens": TOKENS_PER_CALL, "messages": [{"role": "user", "content": "hello"}]}

    async def call(session: aiohttp.ClientSession, base: str) -> None:
        try:
            async with session.post(f"{base}/chat/completions", json=body) as response:
                await response.read()
                statuses[response.status] += 1
        except aiohttp.ClientError:  # its sidecar was killed
            statuses[0] += 1

    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": "Bearer x"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session, asyncio.TaskGroup() as group:
        begin = at = time.monotonic()
        while at < begin + seconds:
            (base,) = draw.choices(bases, parts)
            group.create_task(call(session, base))
            at += draw.expovariate(2 * per_second if bursts else per_second)
            if bursts and (at - begin) // BURST_SECONDS % 2:
                at += BURST_SECONDS
            await asyncio.sleep(max(0.0, at - time.monotonic()))
    return statuses


def main() -> int:
    """Run by requests and by tokens; tell whether the bars are met."""
    parser = argparse.ArgumentParser(prog="python -m bench.pace", description=__doc__)
    parser.add_argument("--seconds", type=float, default=75.0, help="length of each run")
    parser.add_argument("--limit", type=int, default=1200, help="calls a minute that the account allows")
    parser.add_argument("--trouble", type=Trouble, choices=list(Trouble), default=Trouble.NONE)
    given = parser.parse_args()
    met = True
    print("| limit | offered | served | upstream 429s | % | refused by Sluice | best minute | last minute | mean |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for by_tokens in (False, True):
        found = asyncio.run(run(given.seconds, given.limit, by_tokens=by_tokens, trouble=given.trouble))
        unit = f"{found.limit_per_minute * TOKENS_PER_CALL} tokens" if by_tokens else f"{found.limit_per_minute} calls"
        print(
            f"| {unit} a minute | {found.offered} | {found.admitted} | {found.throttled} | {found.throttled_percent} "
            f"| {found.refused} | {found.best_minute_percent} % | {found.last_minute_percent} % "
            f"| {found.mean_minute_percent} % |",
            flush=True,
        )
        met &= found.throttled_percent < MAX_THROTTLED_PERCENT and found.best_minute_percent > LEAST_USE_PERCENT
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
