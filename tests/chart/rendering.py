"""The real helm, and its output as objects."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "sluice"
HELM = ROOT / ".tools" / "helm"
KUBECTL = ROOT / ".tools" / "kubectl"
NAMESPACE = "sluice-system"

Json = dict[str, Any]


def require_tools() -> None:
    """Skip where the tools are not fetched; in CI, where they have to be, fail."""
    if not HELM.exists():
        if os.environ.get("CI"):
            pytest.fail("run hack/tools.py first")
        pytest.skip("helm is not there: run hack/tools.py")


def helm(*arguments: str, values: Json | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm on values given as JSON. It speaks to no cluster and no repository."""
    require_tools()
    command = [str(HELM), *arguments, *(["--values", "-"] if values else [])]
    given = json.dumps(values) if values else None
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    return subprocess.run(command, input=given, capture_output=True, text=True, env=environment, check=False)


def render(values: Json | None = None, *, kube_version: str = "1.36.0", namespace: str = NAMESPACE) -> list[Json]:
    """Return the objects of a release with these values."""
    done = helm(
        "template", "sluice", str(CHART), "--namespace", namespace, "--kube-version", kube_version, values=values
    )
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item]


def find(objects: list[Json], kind: str, name: str) -> Json:
    """Return one object."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def pod_specs(objects: list[Json]) -> Iterator[tuple[str, Json]]:
    """Yield every pod spec with the name of what holds it."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item["metadata"]["name"], item["spec"]
        elif item["kind"] in ("Deployment", "Job"):
            yield item["metadata"]["name"], item["spec"]["template"]["spec"]


class Schema:
    """Checks objects against the API's strict schemas: unknown fields, wrong types, missing fields, wrong words."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._definitions = json.loads((directory / "_definitions.json").read_text())["$defs"]

    def faults(self, item: Json) -> list[str]:
        """Return what the API server would not take, or would silently drop."""
        group, _, version = item["apiVersion"].rpartition("/")
        place = f"-{group.removesuffix('.k8s.io').removesuffix('.authorization').split('.')[0]}" if group else ""
        path = self._directory / f"{item['kind'].lower()}{place}-{version}.json"
        if not path.exists():
            return [f"no schema {path.name}"]
        return list(self._check(json.loads(path.read_text()), item, item["kind"]))

    def _check(self, schema: Json, value: Any, where: str) -> Iterator[str]:
        if "$ref" in schema:
            yield from self._check(self._definitions[schema["$ref"].rsplit("/", 1)[1]], value, where)
            return
        if "oneOf" in schema:
            if all(list(self._check(one, value, where)) for one in schema["oneOf"]):
                yield f"{where}: matches no alternative"
            return
        types = schema.get("type", [])
        if types and not any(_TYPES[name](value) for name in ([types] if isinstance(types, str) else types)):
            yield f"{where}: {value!r} is no {types}"
        elif isinstance(value, dict):
            yield from self._check_object(schema, value, where)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._check(schema.get("items", {}), item, f"{where}[{index}]")
        elif "enum" in schema and value not in schema["enum"]:
            yield f"{where}: {value!r} is none of {schema['enum']}"

    def _check_object(self, schema: Json, value: Json, where: str) -> Iterator[str]:
        properties = schema.get("properties", {})
        for name in schema.get("required", []):
            if name not in value:
                yield f"{where}: {name} is missing"
        for name, item in value.items():
            rest = schema.get("additionalProperties", not properties)
            if name in properties:
                yield from self._check(properties[name], item, f"{where}.{name}")
            elif rest is False or (properties and not isinstance(rest, dict)):
                yield f"{where}: unknown field {name}"
            elif isinstance(rest, dict):
                yield from self._check(rest, item, f"{where}.{name}")


_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}
