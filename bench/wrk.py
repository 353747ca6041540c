"""Closed-loop load by `wrk`: so many connections, each with one call in flight."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import msgspec

from bench.processes import pinned

_SCRIPT = """
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.body = io.open(os.getenv("BENCH_BODY"), "rb"):read("*a")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-bench"
wrk.headers["x-user-id"] = "user-1"
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"requests":%d,"duration_us":%d,"errors":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d}',
    summary.requests, summary.duration,
    e.status + e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
"""


class Load(msgspec.Struct, frozen=True):
    """What one run of `wrk` measured; latencies in microseconds. Answers of 400 and above count as errors."""

    requests: int
    duration_us: int
    errors: int
    p50_us: int
    p90_us: int
    p99_us: int
    max_us: int

    @property
    def per_second(self) -> float:
        """Return the rate of calls."""
        return self.requests / (self.duration_us / 1e6)


def chat_body(size: int, model: str = "gpt-4.1-mini", *, stream: bool = False) -> bytes:
    """Return a chat request of about `size` bytes."""
    message = {"role": "user", "content": "x"}
    request = {"model": model, "messages": [message], "max_tokens": 100} | ({"stream": True} if stream else {})
    message["content"] = "word " * ((size - len(json.dumps(request))) // 5 + 1)
    return json.dumps(request).encode()


def run(port: int, *, body: bytes, connections: int, seconds: float, core: int | None) -> Load:
    """Put load on a proxy and return what was measured."""
    with tempfile.TemporaryDirectory() as directory:
        script, body_file = Path(directory, "load.lua"), Path(directory, "body.json")
        script.write_text(_SCRIPT)
        body_file.write_bytes(body)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script)]
        result = subprocess.run(
            [*pinned(core), *command, f"http://127.0.0.1:{port}"],
            env={"BENCH_BODY": str(body_file), "PATH": "/usr/bin:/bin:/usr/local/bin"},
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 60,
        )
    return msgspec.json.decode(result.stderr, type=Load)
