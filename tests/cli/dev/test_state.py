"""What local mode remembers from one run to the next, and where its Secrets come from."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sluice_cli.dev.folder import LocalStore, read_folder
from sluice_cli.dev.judges import EnvironmentSecrets
from sluice_cli.dev.state import LocalState, StateError, StateFile
from sluice_core.api.base import SecretKeyRef
from sluice_core.api.upstream import UpstreamStatus
from sluice_operator.webhooks import SecretError

UPSTREAM = (
    "apiVersion: sluice.dev/v1alpha1\nkind: Upstream\nmetadata: {name: openai}\nspec: {limits: {concurrency: %d}}\n"
)


def test_the_next_run_goes_on_with_statuses_generations_and_requests(tmp_path: Path) -> None:
    """A spec that was edited in between is a new generation; the file is for nobody else's eyes."""
    folder, file = tmp_path / "up.yaml", StateFile(tmp_path / "state.json")
    folder.write_text(UPSTREAM % 5)
    first = LocalStore(file.read().resources)
    first.take(read_folder(folder), 0.0)
    first.set_status(first.resources[0], UpstreamStatus(consumers=3))
    first.annotate("Upstream", "default/openai", {"a": "b"})
    file.write(LocalState(resources=first.remember()))
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600

    for limit, generation in ((5, 1), (6, 2)):
        folder.write_text(UPSTREAM % limit)
        store = LocalStore(StateFile(tmp_path / "state.json").read().resources)
        store.take(read_folder(folder), 9.0)
        meta = store.resources[0].metadata
        assert (meta.generation, meta.annotations) == (generation, {"a": "b"})
        assert meta.creation_timestamp == first.resources[0].metadata.creation_timestamp
        assert store.resources[0].status == UpstreamStatus(consumers=3)


def test_a_file_of_something_else_is_refused_and_left(tmp_path: Path) -> None:
    """A mistyped name must not cost anybody a file."""
    path = tmp_path / "notes.txt"
    path.write_text("mine")

    with pytest.raises(StateError, match=r"notes\.txt"):
        StateFile(path).read()

    assert path.read_text() == "mine"


@pytest.mark.parametrize("value", [None, "", "a\nb", "é"])
async def test_a_webhook_without_its_variable_is_not_asked(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """The error names the variable, not its value."""
    if value is not None:
        monkeypatch.setenv("SLUICE_SECRET_RED_TEAM_TOKEN", value)

    with pytest.raises(SecretError, match="set SLUICE_SECRET_RED_TEAM_TOKEN"):
        await EnvironmentSecrets().authorization("team", SecretKeyRef(name="red-team", key="token"))


def test_local_mode_needs_no_kubernetes_client() -> None:
    """It asks webhooks with the operator's own caller, which has none."""
    code = "import sys, sluice_cli.dev.session; sys.exit('kubernetes' in sys.modules or 'kopf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
