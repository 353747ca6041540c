"""One page per kind: its columns, every field of spec and status with its bounds, and the rules across fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from reference.markdown import code, table
from reference.markdown import page as whole_page
from sluice_core.api import crd
from sluice_core.api.schema import LIST_TYPE, RULES, Schema

_WRITTEN_BY = {
    "Upstream": "the platform team",
    "QuotaAllocation": "the platform team",
    "ModelRoute": "the application team",
    "CanarySplit": "the application team",
}


class Field(NamedTuple):
    """One field at any depth."""

    path: str
    schema: Schema
    required: bool


def page(kind: crd.Kind) -> str:
    """Return a kind's page."""
    schema = crd.schema(kind)["properties"]
    names = (
        f"`{kind.plural}.{crd.GROUP}`, short name `{kind.short_name}`, category `{crd.CATEGORY}`, namespaced, "
        f"version `{crd.VERSION}`. Usually written by {_WRITTEN_BY[kind.name]}."
    )
    columns = table(
        ("Column", "Shown", "From"),
        ((each.name, "`-o wide`" if each.priority else "always", code(each.path)) for each in kind.columns),
    )
    return whole_page(
        kind.name,
        (kind.resource.__doc__ or "").strip(),
        names,
        "[] marks the items of a list, {} the values of a map; a field in **bold** is required where its parent is.",
        "## spec",
        _fields(schema["spec"]),
        "## Rules across fields",
        _rules(schema["spec"]),
        "## status",
        "Written by Sluice alone.",
        _fields(schema["status"]),
        "## Columns of `kubectl get`",
        columns,
    )


def _fields(schema: Schema) -> str:
    rows = (
        (
            f"**{code(field.path)}**" if field.required else code(field.path),
            _type(field.schema),
            _default(field.schema),
            " ".join(filter(None, (field.schema.get("description", ""), _bounds(field.schema)))),
        )
        for field in _walk(schema, "")
    )
    return table(("Field", "Type", "Default", "Meaning and bounds"), rows)


def _walk(schema: Schema, path: str) -> Iterator[Field]:
    required = schema.get("required", ())
    for name, inner in schema.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        yield Field(where, inner, name in required)
        yield from _below(inner, where)


def _below(schema: Schema, path: str) -> Iterator[Field]:
    match schema.get("type"):
        case "object":
            yield from _walk(schema, path)
            values = schema.get("additionalProperties")
            if isinstance(values, dict) and "properties" in values:
                yield from _walk(values, f"{path}{{}}")
        case "array":
            yield from _below(schema["items"], f"{path}[]")


def _type(schema: Schema) -> str:
    match schema.get("type"):
        case "array":
            keys = schema.get("x-kubernetes-list-map-keys")
            how = f", map by {', '.join(keys)}" if keys and schema.get(LIST_TYPE) == "map" else ""
            return f"list of {_type(schema['items'])}{how}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"map of {_type(schema['additionalProperties'])}"
        case "string" if "enum" in schema:
            return "one of " + ", ".join(code(each) for each in schema["enum"])
        case other:
            return str(other)


def _default(schema: Schema) -> str:
    default = schema.get("default")
    if default is None or isinstance(default, dict):  # an object's default is that of its fields
        return ""
    return code(default if isinstance(default, str) else json.dumps(default))


def _bounds(schema: Schema) -> str:
    parts: list[str] = []
    if "minimum" in schema or "maximum" in schema:
        parts.append(_range(schema.get("minimum"), schema.get("maximum")))
    for low, high, unit in (
        ("minLength", "maxLength", "characters"),
        ("minItems", "maxItems", "items"),
        ("minProperties", "maxProperties", "entries"),
    ):
        if high in schema:
            parts.append(f"{_range(schema.get(low), schema[high])} {unit}")
    if "pattern" in schema:
        parts.append(f"pattern {code(schema['pattern'])}")
    return f"({'; '.join(parts)})" if parts else ""


def _range(low: Any, high: Any) -> str:
    if low is None:
        return f"up to {high:,}"
    return f"at least {low:,}" if high is None else f"{low:,} to {high:,}"


def _rules(schema: Schema) -> str:
    found = list(_all_rules(schema, "spec"))
    if not found:
        return "None."
    return table(("Where", "Refused with", "Unless"), found)


def _all_rules(schema: Schema, path: str) -> Iterator[tuple[str, str, str]]:
    for rule in schema.get(RULES, ()):
        yield code(path), rule["message"], code(rule["rule"])
    for name, inner in schema.get("properties", {}).items():
        yield from _all_rules(inner, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from _all_rules(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _all_rules(schema["additionalProperties"], f"{path}{{}}")
