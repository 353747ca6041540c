"""The caching example at work: the same question again, another user, an outage."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "caching"


class Dev:
    """A running `sluice dev` over the example, and what it has printed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "sluice_cli.main", "dev", "-f", str(EXAMPLE), "--pod", "app=support"),
                *("--port", "0", "--control-port", "0", "--plain"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.printed = ""
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                self.printed += line
                self._grown.notify_all()

    def told(self, pattern: str) -> str:
        """Wait until it prints something; return the first group."""
        with self._grown:
            assert self._grown.wait_for(lambda: re.search(pattern, self.printed), 40), self.printed
        found = re.search(pattern, self.printed)
        assert found is not None
        return found.group(1)

    def stop(self) -> None:
        """End it with Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def dev() -> Iterator[Dev]:
    """Local mode over the example."""
    running = Dev()
    try:
        yield running
    finally:
        running.stop()


def ask(client: openai.OpenAI, question: str = "hello", **headers: str) -> Any:
    """Ask a question at temperature 0."""
    return client.chat.completions.with_raw_response.create(
        model="gpt-4.1-mini",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        extra_headers=headers,
    )


def test_the_caching_example_keeps_answers(dev: Dev) -> None:
    """The mock is asked once for each answer; the table of decisions and `sluice explain` tell of the kept ones."""
    address, faults = dev.told(r"OPENAI_BASE_URL=(\S+)"), dev.told(r"mock of default/openai\s+(\S+)")
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        first, again = ask(client), ask(client)
        assert first.headers["x-sluice-cache"] == "miss"
        assert again.headers["x-sluice-cache"].startswith("hit; age=")
        assert first.content == again.content
        private = [ask(client, **{"x-tier": "private", "x-user-id": user}) for user in ("a", "b", "a")]
        assert [each.headers["x-sluice-cache"].partition(";")[0] for each in private] == ["miss", "miss", "hit"]
        vectors = [client.embeddings.with_raw_response.create(model="text-embedding-3-small", input="a") for _ in "ab"]
        assert vectors[1].headers["x-sluice-cache"].startswith("hit")
        with urllib.request.urlopen(faults.replace("faults", "ledger"), timeout=10) as ledger:
            assert json.loads(ledger.read())["total"] == 4
        fault = json.dumps({"error": "server_error"}).encode()
        order = urllib.request.Request(faults, fault, {"Content-Type": "application/json"})
        urllib.request.urlopen(order, timeout=10).close()
        assert "try again in a minute" in ask(client, "another question").parse().choices[0].message.content
        assert ask(client).headers["x-sluice-cache"].startswith("hit")
    dev.told(r"(cache: hit)")
    command = ["explain", again.headers["x-sluice-call-id"], "--dev", dev.told(r"control\s+(\S+)")]
    told = subprocess.run(
        [sys.executable, "-m", "sluice_cli.main", *command], capture_output=True, text=True, timeout=30
    )
    assert "answered by a kept answer" in told.stdout
