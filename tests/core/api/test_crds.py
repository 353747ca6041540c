"""The generated custom resource definitions, held against the rules that a Kubernetes API server applies to them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from msgspec import Meta

from sluice_cli.cel_rules import evaluate
from sluice_core.api import crd
from sluice_core.api.base import UpstreamRef, Value
from sluice_core.api.schema import SchemaError, spec_schema, with_defaults
from sluice_core.api.validation import FieldError, _rule_errors, _schema_errors

ROOT = Path(__file__).resolve().parents[3]
KINDS = pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.name)

# What `apiextensions.k8s.io/v1` knows of JSON Schema within a structural schema.
ALLOWED = {
    *("description", "type", "format", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "pattern"),
    *("properties", "required", "additionalProperties", "maxProperties", "items", "minItems", "maxItems"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations"),
    "x-kubernetes-preserve-unknown-fields",
}
CEL_RESERVED = {"as", "break", "const", "continue", "else", "for", "function", "if", "import", "in", "let", "loop"} | {
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
}
COST_LIMIT = 10_000_000


def nodes(node: dict[str, Any], path: str, repeats: int = 1) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield every node of a schema, with how often it can occur in one resource."""
    yield path, node, repeats
    for name, inner in node.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}", repeats)
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]", repeats * node["maxItems"])
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}{{}}", repeats * node["maxProperties"])


def written(kind: crd.Kind) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield the nodes of spec and status."""
    properties = crd.schema(kind)["properties"]
    yield from nodes(properties["spec"], "spec")
    yield from nodes(properties["status"], "status")


@KINDS
def test_schema_is_structural(kind: crd.Kind) -> None:
    """Every node has a type and only keywords that a structural schema may have, and those that its type can use."""
    for path, node, _ in written(kind):
        assert node.keys() <= ALLOWED, path
        assert node["type"] in {"object", "array", "string", "integer", "boolean"}, path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert node.get("format") in {None, "int64", "date-time"}, path
        assert set(node.get("required", ())) <= node.get("properties", {}).keys(), path
        assert ("items" in node) == (node["type"] == "array"), path


@KINDS
def test_every_field_is_described_and_bounded(kind: crd.Kind) -> None:
    """`kubectl explain` says something about every field, and nothing can grow without end."""
    for path, node, _ in written(kind):
        for name, inner in node.get("properties", {}).items():
            assert inner["description"].endswith("."), f"{path}.{name}"
        if node["type"] == "string":
            assert "maxLength" in node or "enum" in node, path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if node["type"] == "object" and ("additionalProperties" in node or "properties" not in node):
            assert "maxProperties" in node, path


@KINDS
def test_list_maps_have_keys_that_always_exist(kind: crd.Kind) -> None:
    """Server-side apply can merge every list that says it is a map."""
    for path, node, _ in written(kind):
        if node["type"] != "array":
            continue
        assert node["x-kubernetes-list-type"] in {"atomic", "map", "set"}, path
        if node["x-kubernetes-list-type"] != "map":
            assert "x-kubernetes-list-map-keys" not in node, path
            continue
        item = node["items"]
        for key in node["x-kubernetes-list-map-keys"]:
            assert item["properties"][key]["type"] == "string", path
            observed = path.startswith("status")  # its defaults are taken out; whoever writes it always writes the key
            assert observed or key in item["required"] or "default" in item["properties"][key], path


@KINDS
def test_defaults_are_complete_and_valid(kind: crd.Kind) -> None:
    """The API server checks a default as it is written, rules included, and fills nothing in before it does."""
    for path, node, _ in written(kind):
        if "default" not in node:
            continue
        default = node["default"]
        assert with_defaults(node, default) == default, path
        errors: list[FieldError] = [*_schema_errors(node, default, path), *_rule_errors(node, default, path, evaluate)]
        assert errors == [], path


@KINDS
def test_status_has_no_rules_and_no_defaults_but_zero(kind: crd.Kind) -> None:
    """Nothing stands between the operator and its status; a count of none reads as 0, not as a blank."""
    for path, node, _ in nodes(crd.schema(kind)["properties"]["status"], "status"):
        assert node.get("default", 0) == 0, path
        assert "default" not in node or node["type"] == "integer", path
        assert "x-kubernetes-validations" not in node, path


@KINDS
def test_patterns_are_re2(kind: crd.Kind) -> None:
    """No pattern needs what Go's engine lacks: look-around, back references, possessive quantifiers."""
    for path, node, _ in written(kind):
        pattern = node.get("pattern", "")
        re.compile(pattern)
        outside_classes = re.sub(r"\[[^\]]*\]", "", pattern)
        assert not re.search(r"\(\?[=!<]|\\[1-9]|[*+?}]\+", outside_classes), path


@KINDS
def test_rules_stay_far_below_the_cost_limit(kind: crd.Kind) -> None:
    """Even when every list is full, a rule costs a tenth of the limit at most: 10 steps for each element visited."""
    total = 0
    for path, node, repeats in written(kind):
        for rule in node.get("x-kubernetes-validations", ()):
            walked = re.findall(r"self\.(\w+)\.(?:all|exists|exists_one|map|filter)\(", rule["rule"])
            visits = 1
            for name in walked:
                visits *= node["properties"][name]["maxItems"]
            cost = 10 * repeats * visits
            assert cost <= COST_LIMIT / 10, f"{path}: {rule['rule']}"
            total += cost
    assert total <= COST_LIMIT


@KINDS
def test_rules_compile_and_have_one_line_messages(kind: crd.Kind) -> None:
    """Each rule names fields that exist, in CEL's own escaping, and says in one line what is wrong."""
    for path, node, _ in written(kind):
        for rule in node.get("x-kubernetes-validations", ()):
            assert rule.keys() == {"rule", "message"}, path
            assert rule["message"].strip(), path
            assert "\n" not in rule["message"] + rule["rule"], path
            for name in re.findall(r"self\.(\w+)\b(?!\()", rule["rule"]):
                assert name not in CEL_RESERVED, path
                assert name in node.get("properties", {}), f"{path}: {name}"


@KINDS
def test_columns_show_fields_that_exist(kind: crd.Kind) -> None:
    """A column's path leads to a field of the column's type, so none is blank for ever."""
    types = {"integer": "integer", "string": "string", "date": "string"}
    for column in crd.manifest(kind)["spec"]["versions"][0]["additionalPrinterColumns"]:
        if column["jsonPath"] == ".metadata.creationTimestamp":
            assert column["type"] == "date"
            continue
        node = crd.schema(kind)
        for step in re.findall(r"\w+(?:\[[^\]]*\])?", column["jsonPath"]):
            node = node["properties"][step.partition("[")[0]]
            node = node.get("items", node)
        assert node["type"] == types[column["type"]], column["name"]


def test_names_are_short_and_distinct() -> None:
    """`kubectl get up,qa,mr,cs` and `kubectl get sluice` work."""
    names = [crd.manifest(kind)["spec"]["names"] for kind in crd.KINDS]
    assert [each["shortNames"] for each in names] == [["up"], ["qa"], ["mr"], ["cs"]]
    assert all(each["categories"] == ["sluice"] for each in names)
    assert all(each["singular"] == each["kind"].lower() for each in names)


def test_files_are_what_the_types_make() -> None:
    """A change of a type without `make crds` is noticed."""
    location = importlib.util.spec_from_file_location("generate", ROOT / "hack" / "generate.py")
    assert location is not None
    assert location.loader is not None
    generate = importlib.util.module_from_spec(location)
    location.loader.exec_module(generate)
    assert "\n".join(generate.differences()) == ""
    files = {path.name for path in (ROOT / "crds").glob("*.yaml")}
    assert files == {f"sluice.dev_{kind.plural}.yaml" for kind in crd.KINDS}


@KINDS
def test_files_read_back_as_the_manifest(kind: crd.Kind) -> None:
    """What YAML makes of the file is what was generated: no number has become text, nor text a number."""
    text = (ROOT / "crds" / f"sluice.dev_{kind.plural}.yaml").read_text()
    assert yaml.safe_load(text) == crd.manifest(kind)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (int, "needs a description"),
        (Annotated[str, Meta(description="Text.")], "a string needs max_length"),
        (Annotated[tuple[int, ...], Meta(description="Numbers.")], "a list needs max_length"),
        (Annotated[dict[str, int], Meta(description="Map.")], "a map needs max_length"),
        (Annotated[float, Meta(description="Fraction.")], "cannot hold a value of type number"),
        (Annotated[int | str, Meta(description="Either.")], "a union of types"),
        (Annotated[UpstreamRef, Meta(description="Its rules would be lost.")] | None, "write Annotated"),
    ],
)
def test_what_cannot_be_said_in_a_schema_fails_generation(annotation: Any, message: str) -> None:
    """A field without a description or a bound, or of a kind that CRDs lack, is noticed when it is written."""
    kind = type("Wrong", (Value,), {"__annotations__": {"field": annotation}}, frozen=True, kw_only=True)
    with pytest.raises(SchemaError, match=message):
        spec_schema(kind, {})
