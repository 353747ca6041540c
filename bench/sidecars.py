"""Simulated sidecars: the real admission and the real messages, over the real wire, without the traffic.

Runs as a process of its own and prints how many reports were answered and how long they took.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import ssl
import time

import msgspec
import uvloop

from bench.client import Exchange, connect, post
from bench.fleet import LABELS, PODS_PER_NAMESPACE, compiled_fleet, resources
from bench.streams import quantile
from sluice_core.limits.admission import Admission
from sluice_core.limits.decisions import Admitted, Ask
from sluice_core.records import Outcome
from sluice_core.rollout.counts import ArmCounter
from sluice_core.selection import PodPolicy, select
from sluice_core.sync import PodRef, SyncRequest, SyncResponse
from sluice_core.usage import Usage

CALLS_PER_REPORT = 10
_USAGE = Usage(input_tokens=200, output_tokens=100)


class Figures(msgspec.Struct, frozen=True):
    """What the sidecars saw; times in milliseconds."""

    reports: int
    failed: int
    pushed: int
    leased: int
    p50: float
    p99: float


class _Seen:
    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.failed = self.pushed = self.leased = 0


class Sidecar:
    """One simulated pod."""

    def __init__(self, policy: PodPolicy, number: int) -> None:
        self.policy = policy
        self.pod = PodRef(namespace=policy.namespace, name=f"chat-{number}", uid=f"chat-{number}")
        self.admission = Admission()
        self.admission.configure(policy)
        splits = [rule.split for route in policy.routes for rule in route.rules if rule.split is not None]
        self.arms = [ArmCounter(each.key, each.revision, arm) for each in splits for arm in ("stable", "candidate")]
        self.sequence = 0
        self._draw = random.Random(f"{policy.namespace}/{number}")

    def report(self, now: float) -> bytes:
        """Make a few calls and return the report of them as a request."""
        for upstream in self.policy.upstreams:
            for _ in range(self._draw.randrange(CALLS_PER_REPORT)):
                found = self.admission.reserve(upstream, Ask(model="gpt-4.1", tokens=500, floor_tokens=100), now)
                if isinstance(found, Admitted):
                    self.admission.settle(found.reservation, tokens=300, usd_micros=500, now=now)
        for arm in self.arms:
            latency, bucket = self._draw.expovariate(1.0), self._draw.randrange(10_000)
            arm.record(outcome=Outcome.SUCCESS, latency_seconds=latency, usage=_USAGE, bucket=bucket)
        self.sequence += 1
        request = SyncRequest(
            pod=self.pod,
            instance=f"{self.pod.namespace}/{self.pod.name}",
            sequence=self.sequence,
            revision=self.policy.revision,
            demands=self.admission.demands(now),
            counts=tuple(arm.export() for arm in self.arms),
            gauges=self.admission.gauges(now),
        )
        return post(msgspec.json.encode(request), "/v1/sync", Authorization=self._token())

    def wait_for_policy(self) -> bytes:
        """Return the request that is answered when the policy changes."""
        query = f"namespace={self.pod.namespace}&revision={self.policy.revision}&waitSeconds=25"
        head = f"GET /v1/policy?{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {self._token()}\r\n\r\n"
        return head.encode()

    def _token(self) -> str:
        return f"Bearer {self.pod.namespace}/{self.pod.name}"


async def _reports(sidecar: Sidecar, connection: Exchange, every: float, end: float, seen: _Seen) -> None:
    await asyncio.sleep(random.random() * every)
    while time.monotonic() < end:
        sent_at = time.monotonic()
        request = sidecar.report(sent_at)
        begin = time.perf_counter()
        status = await connection.call(request)
        if status != 200:
            seen.failed += 1
        else:
            seen.milliseconds.append((time.perf_counter() - begin) * 1000)
            answer = msgspec.json.decode(connection.body, type=SyncResponse)
            seen.leased += len(answer.leases)
            sidecar.admission.apply_leases(answer.leases, sent_at=sent_at)
        await asyncio.sleep(max(0.0, sent_at + every - time.monotonic()))


async def _pushes(sidecar: Sidecar, connection: Exchange, seen: _Seen) -> None:
    while True:
        seen.pushed += await connection.call(sidecar.wait_for_policy()) == 200


async def _simulate(port: int, namespaces: int, every: float, seconds: float) -> Figures:
    compiled = compiled_fleet(resources(namespaces))
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    sidecars = [
        Sidecar(select(snapshot, LABELS), number)
        for name, snapshot in compiled.snapshots.items()
        if name != "platform"
        for number in range(PODS_PER_NAMESPACE)
    ]
    connections = [await connect(port, tls) for _ in range(2 * len(sidecars))]
    seen = _Seen()
    print("connected", flush=True)
    end = time.monotonic() + seconds
    pairs = list(zip(sidecars, connections[::2], connections[1::2], strict=True))
    pushes = [asyncio.create_task(_pushes(sidecar, idle, seen)) for sidecar, _, idle in pairs]
    async with asyncio.TaskGroup() as group:
        for sidecar, busy, _ in pairs:
            group.create_task(_reports(sidecar, busy, every, end, seen))
    for push in pushes:
        push.cancel()
    await asyncio.gather(*pushes, return_exceptions=True)
    for connection in connections:
        connection.close()
    return Figures(
        reports=len(seen.milliseconds),
        failed=seen.failed,
        pushed=seen.pushed,
        leased=seen.leased,
        p50=quantile(seen.milliseconds, 0.5),
        p99=quantile(seen.milliseconds, 0.99),
    )


def main() -> None:
    """Simulate; print a line when all are connected, and the figures at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--namespaces", type=int, required=True)
    parser.add_argument("--every", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    figures = uvloop.run(_simulate(given.port, given.namespaces, given.every, given.seconds))
    print(msgspec.json.encode(figures).decode(), flush=True)


if __name__ == "__main__":
    main()
