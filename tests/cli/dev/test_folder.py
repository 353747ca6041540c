"""The folder that stands in for the API server."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluice_cli.dev.folder import FolderWatch, LocalStore, ManifestFileError, read_folder
from sluice_cli.dev.mounts import Mount
from sluice_core.api.upstream import UpstreamStatus

UPSTREAM = """
apiVersion: sluice.dev/v1alpha1
kind: Upstream
metadata: {name: %s}
spec: {limits: {requestsPerMinute: %d}}
"""


def test_a_bad_manifest_does_not_keep_the_good_ones_out(tmp_path: Path) -> None:
    """It is named with its file, field and reason."""
    (tmp_path / "good.yaml").write_text(UPSTREAM % ("good", 5))
    (tmp_path / "bad.yaml").write_text(UPSTREAM % ("bad", -5))

    reading = read_folder(tmp_path)

    assert [each.metadata.name for each in reading.resources] == ["good"]
    assert "bad.yaml" in reading.refused[0]
    assert "spec.limits.requestsPerMinute" in reading.refused[0]


def test_a_file_that_is_no_yaml_is_an_error(tmp_path: Path) -> None:
    """Half an edit must not read as an empty folder."""
    (tmp_path / "half.yaml").write_text("spec: [")

    with pytest.raises(ManifestFileError, match=r"half\.yaml"):
        read_folder(tmp_path)


def test_generation_counts_changes_of_spec_and_status_survives(tmp_path: Path) -> None:
    """As in a cluster: a new spec is a new generation; the same spec again is not."""
    file, store = tmp_path / "up.yaml", LocalStore()
    file.write_text(UPSTREAM % ("openai", 5))
    store.take(read_folder(tmp_path), 0.0)
    store.set_status(store.resources[0], UpstreamStatus(consumers=3))
    store.take(read_folder(tmp_path), 1.0)
    assert store.resources[0].metadata.generation == 1

    file.write_text(UPSTREAM % ("openai", 6))
    store.take(read_folder(tmp_path), 2.0)

    assert store.resources[0].metadata.generation == 2
    assert store.resources[0].status == UpstreamStatus(consumers=3)


def test_annotations_set_by_hand_outlive_a_reload(tmp_path: Path) -> None:
    """They are not in the file, as with kubectl annotate."""
    (tmp_path / "up.yaml").write_text(UPSTREAM % ("openai", 5))
    store = LocalStore()
    store.take(read_folder(tmp_path), 0.0)

    assert store.annotate("Upstream", "default/openai", {"a": "b"})
    assert not store.annotate("Upstream", "default/other", {"a": "b"})
    store.take(read_folder(tmp_path), 1.0)

    assert store.resources[0].metadata.annotations == {"a": "b"}


def test_a_watch_says_once_that_something_changed(tmp_path: Path) -> None:
    """Additions, edits and removals of manifests count; other files do not."""
    watch = FolderWatch(tmp_path)
    assert watch.changed()
    assert not watch.changed()
    (tmp_path / "notes.txt").write_text("x")
    assert not watch.changed()
    (tmp_path / "a.yaml").write_text("x: 1")
    assert watch.changed()
    (tmp_path / "a.yaml").write_text("x: 12")
    assert watch.changed()
    (tmp_path / "a.yaml").unlink()
    assert watch.changed()


def test_a_mount_changes_all_its_files_at_once(tmp_path: Path) -> None:
    """As a kubelet does: files are links through `..data`, which is swapped; nothing old is left behind."""
    mount = Mount(tmp_path / "config")
    mount.write({"snapshot.json": b"1", "other": b"1"})
    mount.write({"snapshot.json": b"2", "other": b"2"})

    assert (mount.path / "snapshot.json").read_bytes() == (mount.path / "other").read_bytes() == b"2"
    assert (mount.path / "snapshot.json").is_symlink()
    assert len([entry for entry in mount.path.iterdir() if entry.is_dir() and not entry.is_symlink()]) == 1
