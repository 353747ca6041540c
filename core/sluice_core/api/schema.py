"""Structural OpenAPI v3 schemas, as Kubernetes demands them, from the types of the resources.

What msgspec generates is JSON Schema; the API server takes a strict part of it. References are put in place, "X or
None" becomes an optional X, other unions are refused, and a field without a description or a bound fails generation:
bounds are what keeps the cost of CEL rules finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sluice_core.api.base import Value

Schema = dict[str, Any]

_KEY_ORDER = ("description", "type", "format", "enum", "default", "minimum", "maximum", "minLength", "maxLength")
_UNUSED = {"title", "$ref", "anyOf", "default", "description"}
PRESERVE = "x-kubernetes-preserve-unknown-fields"
RULES = "x-kubernetes-validations"
LIST_TYPE = "x-kubernetes-list-type"


class SchemaError(TypeError):
    """A type says something that a custom resource cannot say, or leaves out what every field needs."""


def spec_schema(kind: type[Value], rules: Mapping[str, Any]) -> Schema:
    """Return the schema of a spec. `rules` holds CEL rules over the whole of it."""
    schema = _flattened(kind, "spec")
    return _ordered({**schema, **rules})


def status_schema(kind: type[Value]) -> Schema:
    """Return the schema of a status: bounded as a spec, but nothing is filled in or checked across fields."""
    return _observed(_flattened(kind, "status"))


def with_defaults(schema: Mapping[str, Any], value: Any) -> Any:
    """Return the value as the API server completes it: defaults at every depth, absent objects included."""
    if isinstance(value, dict) and "properties" in schema:
        completed = dict(value)
        for name, inner in schema["properties"].items():
            if name in completed:
                completed[name] = with_defaults(inner, completed[name])
            elif "default" in inner:
                completed[name] = inner["default"]
        return completed
    if isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        return {name: with_defaults(schema["additionalProperties"], inner) for name, inner in value.items()}
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(schema["items"], inner) for inner in value]
    return value


def _flattened(kind: type[Value], path: str) -> Schema:
    (root,), components = msgspec.json.schema_components([kind], ref_template="{name}")
    return _node(root, components, path)


def _node(written: Mapping[str, Any], components: Mapping[str, Schema], path: str) -> Schema:
    schema = _resolved(written, components, path)
    node: Schema = {name: value for name, value in schema.items() if name not in _UNUSED}
    if "enum" in node:
        node = {"type": "string", **node}
    match node.get("type"):
        case "object":
            _check_object(node, components, path)
        case "array":
            node["items"] = _node(node["items"], components, f"{path}[]")
            node.setdefault(LIST_TYPE, "atomic")
            _require("maxItems" in node, path, "a list needs max_length")
            _check_list_map(node, path)
        case "string":
            _require("maxLength" in node or "enum" in node, path, "a string needs max_length")
        case "integer":
            node["format"] = "int64"
        case "boolean":
            pass
        case other:
            raise SchemaError(f"{path}: a custom resource cannot hold a value of type {other}")
    if "description" in schema:
        node["description"] = schema["description"]
    default = with_defaults(node, msgspec.json.decode(msgspec.json.encode(schema.get("default"))))
    if default not in (None, [], {}):
        node["default"] = default
    return _ordered(node)


def _resolved(written: Mapping[str, Any], components: Mapping[str, Schema], path: str) -> Schema:
    """Return the schema with its reference put in place and "or null" taken away; what is said nearer wins."""
    schema = dict(written)
    if "anyOf" in schema:
        options = [option for option in schema.pop("anyOf") if option != {"type": "null"}]
        _require(len(options) == 1, path, "a union of types cannot be written as a structural schema")
        # msgspec drops the Meta of an object inside a union, and with it the object's rules.
        lost = set(options[0]) == {"$ref"} and "description" not in schema
        _require(not lost, path, "write Annotated[X | None, Meta(...)], not Annotated[X, Meta(...)] | None")
        schema = {**_resolved(options[0], components, path), **schema}
    if "$ref" in schema:
        schema = {**components[schema.pop("$ref")], **schema}
    return schema


def _check_object(node: Schema, components: Mapping[str, Schema], path: str) -> None:
    for name, inner in node.get("properties", {}).items():
        flat = _node(inner, components, f"{path}.{name}")
        _require(bool(flat.get("description")), f"{path}.{name}", "a field needs a description")
        node["properties"] = {**node["properties"], name: flat}
    if not node.get("required"):
        node.pop("required", None)
    if isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _node(node["additionalProperties"], components, f"{path}{{}}")
    is_open = "additionalProperties" in node or PRESERVE in node
    _require("properties" in node or is_open, path, "an object needs fields")
    _require("maxProperties" in node or not is_open, path, "a map needs max_length")
    _require(
        "properties" not in node or "additionalProperties" not in node, path, "fields and a map exclude each other"
    )


def _check_list_map(node: Schema, path: str) -> None:
    for key in node.get("x-kubernetes-list-map-keys", ()):
        items = node["items"]
        has_value = key in items.get("required", ()) or "default" in items["properties"][key]
        _require(has_value, path, f"the list's key {key} must be required or have a default")


def _observed(schema: Schema) -> Schema:
    """Return the schema of what the operator writes: no rules, and of the defaults only the zeros of counts.

    Zeros are left out where a status is written; people are to read 0 in a column, not a blank.
    """
    dropped = (RULES,) if schema.get("type") == "integer" else ("default", RULES)
    kept = {name: value for name, value in schema.items() if name not in dropped}
    if "properties" in kept:
        kept["properties"] = {name: _observed(inner) for name, inner in kept["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(kept.get(name), dict):
            kept[name] = _observed(kept[name])
    return kept


def _require(condition: bool, path: str, message: str) -> None:
    if not condition:
        raise SchemaError(f"{path}: {message}")


def _ordered(node: Schema) -> Schema:
    first = {name: node[name] for name in _KEY_ORDER if name in node}
    return first | {name: value for name, value in node.items() if name not in first}
