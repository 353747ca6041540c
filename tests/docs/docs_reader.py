"""Follows a page: runs its programs and commands as they stand, in local mode where they need it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

from docs_pages import ROOT, Block

_SHELL = """
set -eu -o pipefail
sluice() {{
    case "$1" in
    dev | demo | mock-openai) ;;
    *) "{python}" -m sluice_cli.main "${{@/#--dev/--dev={control}}}" ;;
    esac
}}
kubectl() {{ :; }}; helm() {{ :; }}; make() {{ :; }}; python() {{ :; }}; pytest() {{ :; }};
"""


class Session:
    """A running `sluice dev` over the quick start, for one workload."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "sluice_cli.main", "dev", "-f", "examples/quickstart"),
                *("--pod", "app=chat", "--port", "0", "--control-port", "0", "--plain"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        intro = ""
        while "control " not in intro:
            line = self._process.stdout.readline()
            assert line, "local mode ended"
            intro += line
        self.base_url = _found(r"OPENAI_BASE_URL=(\S+)", intro)
        self.mock = _found(r"mock of default/openai\s+(\S+)", intro)
        self.control = _found(r"control\s+(\S+)", intro)
        self._reader = threading.Thread(target=self._process.stdout.read)
        self._reader.start()

    def close(self) -> None:
        """Stop it as Ctrl-C would."""
        self._process.terminate()
        assert self._process.wait(20) == 0
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Reader:
    """Does what a page says, and starts local mode when something on it needs that."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def close(self) -> None:
        """Stop local mode, if it was started."""
        if self._session is not None:
            self._session.close()

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        """Run a block of shell or Python as it stands, but for the addresses of this session."""
        base_url = mock = control = ""
        if block.language == "python" or "--dev" in block.text or "curl" in block.text:
            session = self._session = self._session or Session()
            base_url, mock, control = session.base_url, session.mock, session.control
        environment = os.environ | {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "sk-placeholder", "MOCK": mock}
        text = block.text.replace("http://127.0.0.1:4141/v1", base_url)
        if block.language == "python":
            command = [sys.executable, "-c", text]
        else:
            command = ["bash", "-c", _SHELL.format(python=sys.executable, control=control) + text]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=False
        )


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, text
    return found[1]
