"""What the sidecar under test runs on: manifests, compiled as the operator compiles them, mounted as a kubelet does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from sluice_cli.manifest_files import read
from sluice_core.api.canarysplit_status import CanarySplit, Phase
from sluice_core.api.manifests import AnyResource, parse
from sluice_core.compile import Compiled, compile_namespaces
from sluice_core.problems import Problem, Severity
from sluice_core.rollout.revisions import content_of, revision_of
from sluice_core.snapshot import Snapshot, encode

FOLDER = Path(__file__).parent / "policies"
NAMESPACE = "bench"
LABELS = {"app": "chat"}


def compiled(name: str, upstream: str, weight: int = 50) -> Snapshot:
    """Return the snapshot of one of the policies beside this file.

    Raises:
        ValueError: the compiler finds fault with it.
    """
    resources = [in_rollout(each, weight) for each in _resources(FOLDER / f"{name}.yaml", upstream)]
    result = compile_namespaces(resources, {NAMESPACE: {}}, {NAMESPACE: [LABELS]})
    refuse_errors(result)
    return result.snapshots[NAMESPACE]


def refuse_errors(result: Compiled) -> None:
    """Raise `ValueError` if a resource has an error: what is measured must be what was written."""
    for resource, problems in result.problems.items():
        for problem in problems:
            if problem.severity is Severity.ERROR:
                raise ValueError(f"{resource.kind} {resource.key}: {problem.path}: {problem.message}")


def in_rollout(resource: AnyResource, weight: int) -> AnyResource:
    """Return the resource; a split as it is after its first step has begun."""
    if not isinstance(resource, CanarySplit):
        return resource
    status = msgspec.structs.replace(
        resource.status,
        phase=Phase.PROGRESSING,
        weight=weight,
        revision=revision_of(content_of(resource.spec.candidate), 1),
        salt="bench",
    )
    return msgspec.structs.replace(resource, status=status)


def _resources(path: Path, upstream: str) -> list[AnyResource]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(path.read_text(encoding="utf-8").replace("${UPSTREAM}", upstream))
        file.flush()
        return [parsed({**each.content, "metadata": _named(each.content)}) for each in read([file.name])]


def parsed(manifest: dict[str, object]) -> AnyResource:
    """Return the resource that a manifest describes.

    Raises:
        ValueError: it describes none.
    """
    resource = parse(manifest)
    if isinstance(resource, Problem):
        message = f"{resource.path}: {resource.message}"
        raise ValueError(message)  # noqa: TRY004 - the manifest is wrong, not the code
    return resource


def _named(content: dict[str, object]) -> dict[str, object]:
    metadata = content["metadata"]
    assert isinstance(metadata, dict)
    return {"namespace": NAMESPACE, **metadata}


class Mount:
    """A folder whose one file is replaced behind a `..data` link, as the kubelet replaces a ConfigMap."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writes = 0
        folder.mkdir()
        (folder / "snapshot.json").symlink_to("..data/snapshot.json")

    def write(self, snapshot: Snapshot) -> None:
        """Put a snapshot in place."""
        self._writes += 1
        version = self._folder / f"..{self._writes}"
        version.mkdir()
        (version / "snapshot.json").write_bytes(encode(snapshot))
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self._folder / "..data")


def write_keys(folder: Path, snapshot: Snapshot) -> None:
    """Write a key for every credential that the snapshot names."""
    folder.mkdir()
    for upstream in snapshot.upstreams:
        for credential in upstream.credentials:
            (folder / credential.file).write_text(f"sk-bench-{credential.name}")
