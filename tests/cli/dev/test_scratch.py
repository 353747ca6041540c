"""The directory that local mode works in: private, gone at the end, and cleared away after a kill."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sluice_cli.dev.scratch import scratch_directory

HOLD = """
import sys, time
from pathlib import Path
from sluice_cli.dev.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1])) as path:
    (path / "key").write_text("secret")
    print(path, flush=True)
    time.sleep(60)
"""


def grow_old(path: Path) -> None:
    """Make a directory look as if it had been there for an hour."""
    past = time.time() - 3600
    os.utime(path, (past, past))


def test_it_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    """Nobody else may look into it, and nothing of it stays."""
    with scratch_directory(tmp_path) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "key").write_text("secret")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    """As long as the process lives its directory is safe, however old; once it was killed the next start removes it."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        held = Path(process.stdout.readline().strip())
        grow_old(held)
        with scratch_directory(tmp_path):
            assert (held / "key").exists()
        process.send_signal(signal.SIGKILL)
    assert (held / "key").exists()
    with scratch_directory(tmp_path):
        assert not held.exists()


@pytest.mark.parametrize("kind", ["young", "foreign name", "link"])
def test_nothing_else_is_touched(tmp_path: Path, kind: str) -> None:
    """A directory that was made just now may belong to a process that starts; other names and links are not ours."""
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "file").write_text("")
    name = "other-dir" if kind == "foreign name" else "sluice-dev-x"
    if kind == "link":
        (tmp_path / name).symlink_to(target)
    else:
        (tmp_path / name).mkdir()
    if kind == "foreign name":
        grow_old(tmp_path / name)
    with scratch_directory(tmp_path):
        pass
    assert (tmp_path / name).exists()
    assert (target / "file").exists()
