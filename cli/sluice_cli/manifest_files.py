"""Reads manifests from files, folders or standard input, and remembers on which line each field is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sluice_core.api.base import Value

_SUFFIXES = (".yaml", ".yml", ".json")
_LARGEST_BYTES = 16 * 1024 * 1024


class ManifestFileError(ValueError):
    """A file cannot be read, or is not YAML. The message begins with the file and, where known, the line."""


class Document(Value, frozen=True, kw_only=True):
    """One manifest: where it is, what it says, and the line of each field by path, such as `spec.rules[0].name`."""

    source: str
    content: dict[str, Any]
    lines: dict[str, int]

    def line(self, path: str) -> int:
        """Return the line of a field; of one that is not there, the line of what it would be in."""
        while path not in self.lines and path:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines[path]


class _Loader(yaml.SafeLoader):
    """YAML as the Kubernetes tools read it: a date stays text, and a key may be written once."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(paths: Sequence[str]) -> Iterator[Document]:
    """Yield the manifests in files, in the YAML and JSON files of folders (sorted, sub-folders too), or in "-".

    Raises:
        ManifestFileError: something cannot be read.
    """
    for path in paths:
        for source, text in _texts(path):
            yield from _documents(source, text)


def _texts(path: str) -> Iterable[tuple[str, str]]:
    if path == "-":
        yield "<stdin>", sys.stdin.read(_LARGEST_BYTES)
        return
    given = Path(path)
    files = sorted(each for each in given.rglob("*") if each.suffix in _SUFFIXES) if given.is_dir() else [given]
    if not files:
        raise ManifestFileError(f"{path}: no YAML or JSON file in this folder")
    for file in files:
        try:
            with file.open(encoding="utf-8") as stream:
                yield str(file), stream.read(_LARGEST_BYTES)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ManifestFileError(f"{file}: {reason}") from error


def _documents(source: str, text: str) -> Iterator[Document]:
    try:
        loader = _Loader(text)
        while loader.check_node():
            yield from _items(source, loader, loader.get_node())
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ManifestFileError(f"{source}{line}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ManifestFileError(f"{source}: not YAML: {' '.join(str(error).split())}") from error


def _items(source: str, loader: _Loader, node: yaml.Node | None) -> Iterator[Document]:
    """Yield a document; of a `kind: List`, its items."""
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return
    if not isinstance(node, yaml.MappingNode):
        raise ManifestFileError(f"{source}:{node.start_mark.line + 1}: not a manifest: a mapping is expected")
    lines: dict[str, int] = {}
    _note_lines(node, "", lines, source)
    content = loader.construct_document(node)
    if content.get("kind") == "List" and isinstance(content.get("items"), list):
        for index, item in enumerate(content["items"]):
            prefix = f"items[{index}]"
            inner = {path[len(prefix) :].lstrip("."): line for path, line in lines.items() if path.startswith(prefix)}
            if isinstance(item, dict):
                yield Document(source=source, content=item, lines=inner)
        return
    yield Document(source=source, content=content, lines=lines)


def _note_lines(node: yaml.Node, path: str, lines: dict[str, int], source: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{path}.{key.value}" if path else str(key.value)
            if inner in lines:
                raise ManifestFileError(f"{source}:{key.start_mark.line + 1}: {inner} is written twice")
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, f"{path}[{index}]", lines, source)
