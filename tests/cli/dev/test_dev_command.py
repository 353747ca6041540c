"""`sluice dev` as a user runs it: a process, the official client, the other verbs beside it, edits, Ctrl-C."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import openai
import pytest

EXAMPLES = Path(__file__).parents[3] / "examples" / "quickstart"
KEY = "sk-the-application-has-no-key"


class Dev:
    """A running `sluice dev` and what it has printed so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if name != "SLUICE_DEV_URL"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sluice_cli.main", "dev", "-f", str(folder), "--port", "0", "--control-port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"OPENAI_API_KEY": "sk-secret-of-the-developer", "COLUMNS": "300"},
        )
        self.printed = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line

    def until(self, condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended: {self.process.stderr and self.process.stderr.read()}"
            assert time.monotonic() < end, f"{what} did not happen:\n{self.printed}"
            time.sleep(0.05)

    def url(self, label: str) -> str:
        found = re.search(rf"{label}\s+export OPENAI_BASE_URL=(\S+)", self.printed)
        assert found, self.printed
        return found.group(1)

    @property
    def control(self) -> str:
        found = re.search(r"^control\s+(\S+)", self.printed, re.MULTILINE)
        assert found, self.printed
        return found.group(1)

    def sluice(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sluice_cli.main", *arguments, "--dev", self.control]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)

    def stop(self) -> str:
        """End it with Ctrl-C and return what it wrote to standard error; again, nothing."""
        if self.process.stdout is None or self.process.stdout.closed:
            return ""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=20)
        self._reader.join()
        assert self.process.stderr is not None
        errors = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return errors


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    shutil.copytree(EXAMPLES, tmp_path / "policies")
    running = Dev(tmp_path / "policies")
    try:
        running.until(lambda: "canarysplits.sluice.dev" in running.printed, "the first table")
        yield running
    finally:
        running.stop()


class Answered(NamedTuple):
    """What a call brought."""

    model: str
    call_id: str
    version: str | None


def ask(base_url: str, **headers: str) -> Answered:
    with openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="gpt-4.1",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=16,
            extra_headers=headers,
        )
    return Answered(raw.parse().model, raw.headers["x-sluice-call-id"], raw.headers.get("x-sluice-arm"))


def test_a_day_with_local_mode(dev: Dev) -> None:
    """Calls work, the verbs show and steer, edits are taken up, bad ones are not, and Ctrl-C ends it cleanly."""
    answer = ask(dev.url("app=chat"), **{"x-user-id": "user-1", "x-sluice-arm": "candidate"})
    assert answer.model.startswith("gpt-4.1-mini")
    assert answer.version == "v2"
    assert ask(dev.url("app=tools")).model.startswith("gpt-4.1-")

    dev.until(lambda: "ChatCompletions" in dev.printed, "the last decisions")
    explained = dev.sluice("explain", answer.call_id)
    assert "version v2, forced by header" in explained.stdout
    assert "default/openai gpt-4.1-mini key primary: Success (200)" in explained.stdout

    status = dev.sluice("status", "chat-prompt")
    assert "weight 5 %" in status.stdout
    assert "InsufficientData" in status.stdout
    assert "chat-prompt" in dev.sluice("status", "-o", "wide").stdout
    assert dev.sluice("pause", "chat-prompt").returncode == 0
    dev.until(lambda: "Paused" in dev.sluice("status", "chat-prompt").stdout, "the pause")
    assert dev.sluice("abort", "nobody").returncode == 2
    with urllib.request.urlopen(f"{dev.control}/metrics", timeout=10) as metrics:
        page = metrics.read().decode()
    assert 'sluice_rollout_phase{name="chat-prompt",namespace="default",phase="Paused"} 1.0' in page
    assert 'sluice_allocation_used{allocation="chat",name="openai",namespace="default",unit="requests"}' in page

    split = dev.folder / "4-split.yaml"
    text = split.read_text()
    split.write_text(text.replace("weight: 25", "weight: 250"))
    dev.until(lambda: "not in force" in dev.printed, "the refusal of the edit")
    assert "Paused" in dev.sluice("status", "chat-prompt").stdout
    split.write_text(text.replace("version: v2", "version: v3"))
    dev.until(lambda: ask_version(dev) == "v3", "the new candidate")

    errors = dev.stop()
    assert dev.process.returncode == 0, errors
    assert dev.printed.endswith("stopped\n")
    assert "secret-of-the-developer" not in dev.printed + errors


def ask_version(dev: Dev) -> str | None:
    return ask(dev.url("app=chat"), **{"x-sluice-arm": "candidate"}).version


def test_an_empty_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    """Exit status 2 and one line."""
    result = subprocess.run(
        [sys.executable, "-m", "sluice_cli.main", "dev", "-f", str(tmp_path), "--port", "0", "--control-port", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert result.returncode == 2
    assert "nothing to run" in result.stderr
    assert len(result.stderr.splitlines()) == 1
