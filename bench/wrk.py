"""Closed-loop load by `wrk`: so many connections, each with one call in flight."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import msgspec

from bench.processes import pinned

USERS = 64

_SCRIPT = """
local requests, turn = {}, 0
init = function(args)
  local body = io.open(os.getenv("BENCH_BODY"), "rb"):read("*a")
  local headers = {
    ["Content-Type"] = "application/json", ["Authorization"] = "Bearer sk-bench", ["User-Agent"] = "OpenAI/Python 2.0",
    ["Accept"] = "application/json", ["x-stainless-lang"] = "python", ["x-stainless-read-timeout"] = "600",
    ["x-stainless-retry-count"] = "0", ["x-user-class"] = "paid"
  }
  for user = 1, tonumber(os.getenv("BENCH_USERS")) do
    headers["x-user-id"] = "user-" .. user
    requests[user] = wrk.format("POST", os.getenv("BENCH_PATH"), headers, body)
  end
end
request = function()
  turn = turn % #requests + 1
  return requests[turn]
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"requests":%d,"duration_us":%d,"bad_statuses":%d,"broken":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d}',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
"""


class Load(msgspec.Struct, frozen=True):
    """What one run of `wrk` measured; latencies in microseconds. A bad status is one of 400 and above."""

    requests: int
    duration_us: int
    bad_statuses: int
    broken: int
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
    head = {"model": model} | ({"stream": True} if stream else {}) | {"max_tokens": 100}
    message["content"] = "word " * ((size - len(json.dumps(head)) - 50) // 5 + 1)
    return json.dumps({**head, "messages": [message]}).encode()


def run(
    port: int,
    *,
    body: bytes,
    connections: int,
    seconds: int,
    core: int | None,
    path: str = "/v1/chat/completions",
    scheme: str = "http",
) -> Load:
    """Put load on a server and return what was measured."""
    with tempfile.TemporaryDirectory() as directory:
        script, body_file = Path(directory, "load.lua"), Path(directory, "body.json")
        script.write_text(_SCRIPT)
        body_file.write_bytes(body)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
        result = subprocess.run(
            [*pinned(core), *command, f"{scheme}://127.0.0.1:{port}"],
            env={
                "BENCH_BODY": str(body_file),
                "BENCH_USERS": str(USERS),
                "BENCH_PATH": path,
                "PATH": os.environ.get("PATH", ""),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 60,
        )
    return msgspec.json.decode(result.stderr, type=Load)
