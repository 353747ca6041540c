"""Pods of two clusters that share an account through Redis: use of capacity and the worst overshoot.

    python -m bench.slices --pods 40 --trouble Kill

Four fifths of the demand come from a fifth of the pods, and every two and a half minutes from others. The pods are
real admissions and the script runs on a real redis-server; only time and network are simulated. With `Kill` or `Stop` a
pod is killed or stops in order at even intervals, and another one takes its place. Needs `redis-server`.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import redis
from msgspec import Struct

from sluice_core.api.quotaallocation import StoreType
from sluice_core.api.upstream import Limits, Timeouts
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.limits.demand import left_behind
from sluice_core.limits.redis_slices import SliceCall, slice_answer, slice_call
from sluice_core.limits.safe import reserved_share, rounded_up, safe_limits
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, StorePolicy, UpstreamPolicy

UPSTREAM: Final = "bench/openai"
ACCOUNT: Final = "bench"
SERVER: Final = "a" * 40
CLUSTERS: Final = 2
CALLS_PER_POD: Final = 600
TOKENS_PER_CALL: Final = 100
WINDOW_SECONDS: Final = 60.0
MOVE_SECONDS: Final = 150.0
TICK_SECONDS: Final = 0.05
LEAST_GAP_SECONDS: Final = 0.05
IDLE_SECONDS: Final = 2.0
_CALL: Final = Ask(tokens=TOKENS_PER_CALL)


class Trouble(StrEnum):
    """What becomes of pods."""

    NONE = "None"
    STOP = "Stop"
    KILL = "Kill"


class Figures(Struct, frozen=True, kw_only=True):
    """What a run shows; percentages are of the limit, over windows of a minute."""

    pods: int
    trouble: Trouble
    use_percent_settled: float
    use_percent_from_two_rounds_after_a_move: float
    most_percent_in_a_minute: float
    calls_of_the_store_per_pod_and_second: float


class Pod:
    """One sidecar's limits and what its application wants."""

    def __init__(self, name: str, policy: PodPolicy) -> None:
        self.name = name
        self.admission = Admission()
        self.admission.configure(policy)
        self.alive = True
        self.rate = 0.0
        self.budget = 0.0
        self.sequence = 0
        self.turn = 0
        self.called_at = float("-inf")
        self.gap = LEAST_GAP_SECONDS
        self.granted: dict[str, int] = {}

    def call(self, now: float, *, stopping: bool = False) -> SliceCall:
        """Return the next call of the script."""
        self.sequence += 1
        account = self.admission.account(UPSTREAM)
        demands = left_behind(account, now) if stopping else self.admission.demands_of(UPSTREAM, now)
        return slice_call(account, demands, server=SERVER, pod=self.name, sequence=self.sequence, stopping=stopping)


class Simulation:
    """The pods, the clock, and the script on the server."""

    def __init__(self, client: redis.Redis, pods: int, demand: float, seed: int) -> None:
        self.client = client
        text = resources.files("sluice_sidecar.store").joinpath("slices.lua").read_text("utf-8")
        clock = "redis.call('LRANGE', KEYS[1] .. ':clock', 0, 1)"
        self.script: Any = client.register_script(text.replace("redis.call('TIME')", clock))
        self.draw = random.Random(seed)
        self.limit = pods * CALLS_PER_POD
        self.demand = demand
        self.now = 0.0
        self.names = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.admitted: deque[float] = deque()
        self.calls = 0
        self.policy = _policy(self.limit, rounded_up(max(1, pods // CLUSTERS)) * CLUSTERS)
        self.execute(self._pod().call(0.0, stopping=True))
        client.hset(f"sluice:{{{ACCOUNT}}}", "settled", 1)
        self.pods = [self._pod() for _ in range(pods)]
        for pod in self.pods:
            self._call_in(pod, self.draw.uniform(0, 1))
        self.move(0)

    def _pod(self) -> Pod:
        return Pod(f"pod-{next(self.names)}", self.policy)

    def move(self, number: int) -> None:
        """Let a fifth of the pods, others every time, have four fifths of the demand."""
        few = max(1, len(self.pods) // 5)
        busy = {(number * few + index) % len(self.pods) for index in range(few)}
        total = self.limit * self.demand / WINDOW_SECONDS
        for index, pod in enumerate(self.pods):
            pod.rate = total * (0.8 / few if index in busy else 0.2 / (len(self.pods) - few))

    def replace(self, trouble: Trouble) -> None:
        """Let one pod end, and another one take its place."""
        index = self.draw.randrange(len(self.pods))
        old = self.pods[index]
        old.alive = False
        if trouble is Trouble.STOP:
            self.execute(old.call(self.now, stopping=True))
        fresh = self.pods[index] = self._pod()
        fresh.rate = old.rate
        self._call_in(fresh, 0.1)

    def execute(self, call: SliceCall) -> object:
        """Run the script at this moment."""
        clock, milliseconds = f"{call.keys[0]}:clock", round(self.now * 1000)
        with self.client.pipeline(transaction=False) as pipe:
            pipe.delete(clock)
            pipe.rpush(clock, milliseconds // 1000, milliseconds % 1000 * 1000)
            pipe.execute()
        return self.script(keys=call.keys, args=call.arguments)

    def tick(self) -> None:
        """Let a moment pass."""
        end = self.now + TICK_SECONDS
        while self.events and self.events[0][0] <= end:
            at, _, action = heapq.heappop(self.events)
            self.now = max(self.now, at)
            action()
        self.now = end
        for pod in self.pods:
            self._ask(pod)
        while self.admitted and self.admitted[0] <= self.now - WINDOW_SECONDS:
            self.admitted.popleft()

    def use_percent(self) -> float:
        """Return the use within the last minute."""
        return 100.0 * len(self.admitted) / self.limit

    def _call_in(self, pod: Pod, seconds: float) -> None:
        pod.turn += 1
        turn = pod.turn
        self._after(seconds, lambda: self._take(pod) if pod.turn == turn and pod.alive else None)

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.serial), action))

    def _take(self, pod: Pod) -> None:
        """Call the script; the answer is there a few milliseconds later."""
        self.calls += 1
        pod.called_at = sent_at = self.now
        call = pod.call(self.now)
        answer = slice_answer(call, self.execute(call))
        idle = pod.admission.gauges(self.now)[0].used_requests == 0

        def arrive() -> None:
            pod.admission.apply_leases(answer.leases, sent_at=sent_at)
            grew = any(lease.amount > pod.granted.get(lease.limit, 0) for lease in answer.leases)
            pod.gap = LEAST_GAP_SECONDS if grew else min(answer.interval_seconds, 2 * pod.gap)
            pod.granted = {lease.limit: lease.amount for lease in answer.leases}
            self._call_in(pod, max(IDLE_SECONDS, answer.interval_seconds) if idle else answer.interval_seconds)

        self._after(self.draw.uniform(0.001, 0.005), arrive)

    def _ask(self, pod: Pod) -> None:
        pod.budget = min(pod.budget + pod.rate * TICK_SECONDS, pod.rate * 2 + 1)
        while pod.budget >= 1:
            pod.budget -= 1
            answer = pod.admission.reserve(UPSTREAM, _CALL, self.now)
            if isinstance(answer, Admitted):
                self.admitted.append(self.now)
                pod.admission.settle(answer.reservation, tokens=TOKENS_PER_CALL, usd_micros=None, now=self.now)
            else:
                pod.admission.deny(UPSTREAM, _CALL, self.now)
                self._call_in(pod, max(0.0, pod.called_at + pod.gap - self.now))


def _policy(limit: int, sharers: int) -> PodPolicy:
    limits = Limits(
        requests_per_minute=limit, tokens_per_minute=limit * TOKENS_PER_CALL, requests_per_day=0, concurrency=0
    )
    upstream = UpstreamPolicy(key=UPSTREAM, base_url="http://x", limits=limits, timeouts=Timeouts(total_seconds=20))
    chat = AllocationPolicy(name="chat", share_percent=100, safe=safe_limits(limits, 100, sharers))
    quota = QuotaPolicy(
        key=UPSTREAM,
        upstream=UPSTREAM,
        store=StorePolicy(type=StoreType.REDIS, url="redis://x", name=ACCOUNT),
        safe_reserve=reserved_share([100]),
        allocations=(chat,),
    )
    return PodPolicy(namespace="bench", revision="1", upstreams={UPSTREAM: upstream}, quotas={UPSTREAM: (quota, chat)})


def run(
    client: redis.Redis, pods: int, seconds: float, trouble: Trouble, every: float, demand: float = 1.3, seed: int = 1
) -> Figures:
    """Simulate and return the figures. Settled is what is measured a window and two rounds after a move of demand."""
    simulation = Simulation(client, pods, demand, seed)
    settled, moving, most = [], [], 0.0
    moves, moved_at, next_trouble = 0, 0.0, every
    while simulation.now < seconds:
        simulation.tick()
        now, use = simulation.now, simulation.use_percent()
        most = max(most, use)
        if now - moved_at >= MOVE_SECONDS:
            moves, moved_at = moves + 1, now
            simulation.move(moves)
        if trouble is not Trouble.NONE and now >= next_trouble:
            next_trouble += every
            simulation.replace(trouble)
        if now - moved_at > WINDOW_SECONDS + 10:
            settled.append(use)
        elif moves and now - moved_at > 10:
            moving.append(use)
    return Figures(
        pods=pods,
        trouble=trouble,
        use_percent_settled=round(fmean(settled), 1),
        use_percent_from_two_rounds_after_a_move=round(fmean(moving), 1),
        most_percent_in_a_minute=round(most, 1),
        calls_of_the_store_per_pod_and_second=round(simulation.calls / seconds / pods, 2),
    )


@contextmanager
def server() -> Iterator[redis.Redis]:
    """Start a server on a socket of its own."""
    with tempfile.TemporaryDirectory(prefix="sluice-slices-") as folder:
        path = str(Path(folder, "redis.sock"))
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(unix_socket_path=path) as client:
                for _ in range(200):
                    with suppress(redis.ConnectionError):
                        client.ping()
                        break
                    time.sleep(0.02)
                yield client
        finally:
            process.kill()
            process.wait()


def main() -> int:
    """Print the figures; fail if the limit was exceeded."""
    parser = argparse.ArgumentParser(prog="python -m bench.slices", description=__doc__)
    parser.add_argument("--pods", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=750.0)
    parser.add_argument("--trouble", type=Trouble, choices=list(Trouble), default=Trouble.NONE)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between pods that end")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with server() as client:
        figures = run(client, given.pods, given.seconds, given.trouble, given.every, seed=given.seed)
    for name in figures.__struct_fields__:
        print(f"{name}: {getattr(figures, name)}")
    return 0 if figures.most_percent_in_a_minute <= 100.0 else 1


if __name__ == "__main__":
    sys.exit(main())
