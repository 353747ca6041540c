"""Objects that are not the chart's, against the API's own schemas: injected pods, and what the stories apply."""

from __future__ import annotations

from pathlib import Path

import jsonpatch
import pytest
import yaml

from sluice_operator.injector import inject
from sluice_operator.injector_settings import InjectorSettings, SidecarSettings

from .rendering import ROOT, Json, Schema, require_tools

MANIFESTS = ROOT / "tests" / "e2e" / "manifests"


@pytest.fixture(scope="module")
def schema() -> Schema:
    require_tools()
    return Schema(ROOT / ".tools" / "schemas")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("spec", [{}, {"initContainers": [{"name": "first", "image": "a", "env": []}], "volumes": []}])
def test_an_injected_pod_is_one_that_the_api_server_takes(schema: Schema, spec: Json, native: bool) -> None:
    """No field of the sidecar or its volumes is unknown, of a wrong type or missing."""
    settings = InjectorSettings(version="1", sidecar=SidecarSettings(image="s", sync_url="https://o.s.svc:8443"))
    pod: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "a-"},
        "spec": {"containers": [{"name": "app", "image": "a"}], **spec},
    }
    patch = [{"op": "add", "path": one.path, "value": one.value} for one in inject(pod, settings, native=native).patch]

    assert schema.faults(jsonpatch.apply_patch(pod, patch)) == []


FILLED_IN = {"REPLICAS": "2", "POD_LABELS": "{app: chat}", "HOST_NETWORK": "false"}
"""Words of the manifests that stand for something else than text."""


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_stories_manifests_are_valid(schema: Schema, path: Path) -> None:
    """What the stories apply is well-formed, as far as it is of built-in kinds."""
    text = path.read_text()
    for word, value in FILLED_IN.items():
        text = text.replace(word, value)
    for item in yaml.safe_load_all(text):
        assert item["apiVersion"].startswith("sluice.dev/") or schema.faults(item) == []
