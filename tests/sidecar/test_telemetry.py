"""What is counted and recorded of settled calls, and how it looks to whoever reads it."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Histogram

from sluice_core.api.modelroute import Endpoint
from sluice_core.records import Attempt, CallRecord, Outcome
from sluice_core.usage import Usage
from sluice_sidecar.telemetry.metrics import Metrics
from sluice_sidecar.telemetry.records import RecordWriter
from sluice_sidecar.telemetry.series import LATENCY_SECONDS, Distribution


def _record(**changes: Any) -> CallRecord:
    record = CallRecord(
        call_id="call-1",
        time=0.0,
        namespace="team",
        endpoint=Endpoint.CHAT_COMPLETIONS,
        method="POST",
        stream=False,
        model="gpt-4.1",
        route="team/chat",
        rule="default",
        upstream="team/openai",
        allocation="chat",
        status=200,
        outcome=Outcome.SUCCESS,
        attempts=(Attempt(upstream="team/openai", outcome=Outcome.SUCCESS, duration_ms=80.0),),
        duration_ms=100.0,
        upstream_ms=80.0,
        usage=Usage(input_tokens=10, output_tokens=5),
        cost_usd_micros=250,
    )
    return msgspec.structs.replace(record, **changes)


def test_calls_add_up_over_the_labels_that_a_metric_has() -> None:
    """Two kinds of calls that differ in user class are one series of calls, and two of tokens."""
    metrics = Metrics()
    metrics.know_models(["gpt-4.1"])
    metrics.settled(_record(user_class="paid"))
    metrics.settled(_record(user_class="free"))
    metrics.settled(_record(user_class="free", outcome=Outcome.TIMEOUT, usage=None, cost_usd_micros=None))

    read = metrics.registry.get_sample_value
    arm = {"route": "team/chat/default", "model": "gpt-4.1", "version": ""}
    calls = {"endpoint": "ChatCompletions", **arm}
    spend = {"upstream": "team/openai", "model": "gpt-4.1", "allocation": "chat", "user_class": "free"}
    assert read("sluice_calls_total", {**calls, "outcome": "Success"}) == 2
    assert read("sluice_calls_total", {**calls, "outcome": "Timeout"}) == 1
    assert read("sluice_calls_total", {**calls, "outcome": "Throttled"}) == 0
    assert read("sluice_tokens_total", {**spend, "kind": "input"}) == 10
    assert read("sluice_cost_usd_total", spend) == 0.00025
    assert read("sluice_call_duration_seconds_count", calls) == 3
    assert read("sluice_overhead_seconds_sum") == 0.06
    assert read("sluice_attempts_total", {"upstream": "team/openai", "outcome": "Success"}) == 3


def test_what_a_client_writes_makes_no_series() -> None:
    """A model that no policy names is counted under `other`, however many there are."""
    metrics = Metrics()
    metrics.know_models(["gpt-4.1"])
    for number in range(50):
        metrics.settled(_record(model=f"made-up-{number}"))

    text = metrics.render().decode()
    assert "made-up" not in text
    assert 'model="other"' in text


def test_a_distribution_is_a_histogram_as_prometheus_counts() -> None:
    """Bounds are inclusive, buckets cumulative: the same as the client library's own."""
    values = [0.0, 0.05, 0.0501, 0.1, 1.0, 119.9, 120.0, 120.1, 1e6]
    registry = CollectorRegistry()
    theirs = Histogram("x", "x", buckets=LATENCY_SECONDS, registry=registry)
    ours = Distribution(LATENCY_SECONDS)
    for value in values:
        theirs.observe(value)
        ours.observe(value)

    for bound, count in ours.buckets():
        assert registry.get_sample_value("x_bucket", {"le": bound}) == count
    assert registry.get_sample_value("x_sum") == ours.sum


class _SlowOutput(io.BytesIO):
    """An output whose first write waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def write(self, data: Any) -> int:
        self.begun.set()
        self.go_on.wait(10)
        return super().write(data)


async def test_records_that_come_while_a_batch_is_written_are_written_too() -> None:
    """At the end nothing is missing: neither what was being written nor what came meanwhile."""
    output = _SlowOutput()
    writer = RecordWriter(output)
    writer.add(_record(call_id="first"))
    assert await asyncio.to_thread(output.begun.wait, 10)
    writer.add(_record(call_id="second"))
    closing = asyncio.create_task(writer.close(5.0))
    await asyncio.sleep(0)
    output.go_on.set()
    await closing

    lines = output.getvalue().splitlines()
    assert [msgspec.json.decode(line)["callId"] for line in lines] == ["first", "second"]
    assert writer.dropped == 0


async def test_a_reader_that_is_stuck_costs_records_and_not_calls() -> None:
    """Records beyond the bound are dropped and counted, at once."""
    output = _SlowOutput()
    writer = RecordWriter(output)
    for number in range(10_010):
        writer.add(_record(call_id=f"call-{number}"))

    assert writer.dropped == 10
    output.go_on.set()
    await writer.close(5.0)
    assert len(output.getvalue().splitlines()) == 10_000
