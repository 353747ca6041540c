"""Checks a manifest as the API server does, offline and in its words: first the schema, then the rules across fields.

CEL rules are evaluated by a function that the caller brings, so that this package needs no CEL library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from sluice_core.api.base import API_VERSION, Value
from sluice_core.api.crd import BY_NAME, schema
from sluice_core.api.manifests import without_nulls
from sluice_core.api.schema import LIST_TYPE, PRESERVE, RULES, Schema, with_defaults

Evaluate = Callable[[str, Any], bool]
"""Tells whether a CEL rule holds for `self`. Raises `RuleError` if the rule cannot be evaluated."""


class RuleError(ValueError):
    """A CEL rule could not be evaluated."""


class FieldError(Value, frozen=True, kw_only=True):
    """What is wrong with one field. `path` is written as in `spec.rules[0].name`; empty for the whole manifest."""

    path: str
    message: str


_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_NAME_MESSAGE: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character"
)
_ROOT_FIELDS: Final = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})


def validate(manifest: Mapping[str, Any], evaluate: Evaluate) -> tuple[FieldError, ...]:
    """Return what the API server would refuse in this manifest; nothing if it would accept it.

    The status is not looked at, because the API server takes it from nobody but the operator.
    """
    kind = BY_NAME.get(str(manifest.get("kind")))
    if kind is None or manifest.get("apiVersion") != API_VERSION:
        message = f'no matches for kind "{manifest.get("kind")}" in version "{manifest.get("apiVersion")}"'
        return (FieldError(path="", message=message),)
    found = [*_metadata_errors(manifest.get("metadata"))]
    found += [_unknown(name) for name in manifest if name not in _ROOT_FIELDS]
    spec_schema: Schema = _schema(kind.name)["properties"]["spec"]
    if manifest.get("spec") is None:
        return (*found, FieldError(path="spec", message="Required value"))
    spec = with_defaults(spec_schema, without_nulls(manifest["spec"]))
    errors = [*_schema_errors(spec_schema, spec, "spec")]
    if not errors:  # as the API server does: rules over a malformed object would say nothing useful
        errors = [*_rule_errors(spec_schema, spec, "spec", evaluate)]
    return (*found, *errors)


@lru_cache(maxsize=len(BY_NAME))
def _schema(kind: str) -> Schema:
    return schema(BY_NAME[kind])


def _metadata_errors(metadata: Any) -> Iterable[FieldError]:
    if not isinstance(metadata, Mapping) or not metadata.get("name"):
        yield FieldError(path="metadata.name", message="Required value: name or generateName is required")
        return
    name = metadata["name"]
    if not isinstance(name, str) or len(name) > 253 or not _NAME.match(name):
        yield FieldError(path="metadata.name", message=f"Invalid value: {_shown(name)}: {_NAME_MESSAGE}")


def _schema_errors(schema: Schema, value: Any, path: str) -> Iterable[FieldError]:
    expected = schema.get("type")
    if expected is None:
        return
    actual = _type_of(value)
    if actual != expected and not (expected == "number" and actual == "integer"):
        # A fraction is told of in the words of the format that it does not have.
        fraction = expected == "integer" and actual == "number"
        shown, expected = ('"float64"', "int64") if fraction else (json.dumps(actual), expected)
        detail = f"{path} in body must be of type {expected}: {shown}"
        yield FieldError(path=path, message=f"Invalid value: {shown}: {detail}")
        return
    match expected:
        case "object":
            yield from _object_errors(schema, value, path)
        case "array":
            yield from _array_errors(schema, value, path)
        case "string":
            yield from _string_errors(schema, value, path)
        case "integer":
            yield from _integer_errors(schema, value, path)


def _object_errors(schema: Schema, value: Mapping[str, Any], path: str) -> Iterable[FieldError]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield FieldError(path=f"{path}.{name}", message="Required value")
    if len(value) > schema.get("maxProperties", len(value)):
        limit = schema["maxProperties"]
        yield FieldError(path=path, message=f"Too many: {len(value)}: must have at most {limit} items")
    for name, inner in value.items():
        if name in properties:
            yield from _schema_errors(properties[name], inner, f"{path}.{name}")
        elif "additionalProperties" in schema:
            yield from _schema_errors(schema["additionalProperties"], inner, f"{path}.{name}")
        elif not schema.get(PRESERVE):
            yield _unknown(f"{path}.{name}")


def _array_errors(schema: Schema, value: list[Any], path: str) -> Iterable[FieldError]:
    if len(value) > schema.get("maxItems", len(value)):
        yield FieldError(path=path, message=f"Too many: {len(value)}: must have at most {schema['maxItems']} items")
    if len(value) < schema.get("minItems", 0):
        detail = f"{path} in body should have at least {schema['minItems']} items"
        yield FieldError(path=path, message=f"Invalid value: {len(value)}: {detail}")
    for index, item in enumerate(value):
        yield from _schema_errors(schema["items"], item, f"{path}[{index}]")
    if schema.get(LIST_TYPE) == "map":
        yield from _duplicates(schema["x-kubernetes-list-map-keys"], value, path)


def _duplicates(keys: list[str], items: list[Any], path: str) -> Iterable[FieldError]:
    seen: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            continue
        key = {name: item.get(name) for name in keys}
        if key in seen:
            yield FieldError(path=f"{path}[{index}]", message=f"Duplicate value: {_compact(key)}")
        seen.append(key)


def _string_errors(schema: Schema, value: str, path: str) -> Iterable[FieldError]:
    if "enum" in schema:
        if value not in schema["enum"]:
            supported = ", ".join(json.dumps(each) for each in schema["enum"])
            yield FieldError(path=path, message=f"Unsupported value: {_shown(value)}: supported values: {supported}")
        return
    if len(value) > schema["maxLength"]:
        yield FieldError(path=path, message=f"Too long: may not be more than {schema['maxLength']} bytes")
    if len(value) < schema.get("minLength", 0):
        yield _invalid(path, value, f"should be at least {schema['minLength']} chars long")
    pattern = schema.get("pattern")
    if pattern is not None and not _pattern(pattern).search(value):
        yield _invalid(path, value, f"should match '{pattern}'")


@lru_cache(maxsize=256)
def _pattern(pattern: str) -> re.Pattern[str]:
    # "$" is the very end in RE2, but in Python also the place before a last line break.
    return re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", pattern), re.ASCII)


def _integer_errors(schema: Schema, value: int, path: str) -> Iterable[FieldError]:
    if value < schema.get("minimum", value):
        yield _invalid(path, value, f"should be greater than or equal to {schema['minimum']}")
    if value > schema.get("maximum", value):
        yield _invalid(path, value, f"should be less than or equal to {schema['maximum']}")


def _rule_errors(schema: Schema, value: Any, path: str, evaluate: Evaluate) -> Iterable[FieldError]:
    for rule in schema.get(RULES, ()):
        try:
            message = None if evaluate(rule["rule"], value) else rule["message"]
        except RuleError as error:
            message = f"rule cannot be evaluated: {error}"
        if message is not None:
            # Of an object or a list the API server does not repeat the content.
            shown = "" if schema["type"] in ("object", "array") else f" {_shown(value)}:"
            yield FieldError(path=path, message=f"Invalid value:{shown} {message}")
    if isinstance(value, Mapping):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield from _rule_errors(inner, value[name], f"{path}.{name}", evaluate)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rule_errors(schema["items"], item, f"{path}[{index}]", evaluate)


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list() | tuple():
            return "array"
        case _:
            return "object"


def _invalid(path: str, value: Any, detail: str) -> FieldError:
    return FieldError(path=path, message=f"Invalid value: {_shown(value)}: {path} in body {detail}")


def _unknown(path: str) -> FieldError:
    return FieldError(path=path, message=f'unknown field "{path}"')


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}..."
