"""`sluice validate`: says offline what the API server and the compiler would say about manifests."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sluice_cli.cel_rules import evaluate
from sluice_cli.manifest_files import Document, ManifestFileError, read
from sluice_core.api.base import Value
from sluice_core.api.manifests import AnyResource, is_sluice, parse
from sluice_core.api.validation import validate
from sluice_core.compile import Problem, ResourceId, Severity, compile_namespaces


class Finding(Value, frozen=True, kw_only=True):
    """One line of the report."""

    source: str
    line: int
    resource: str
    path: str
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        """Return `file:line kind/name: path: message`; a warning says so before its message."""
        warning = "warning: " if self.severity is Severity.WARNING else ""
        where = f"{self.path}: " if self.path else ""
        return f"{self.source}:{self.line} {self.resource}: {where}{warning}{self.message}"


class Validated(Value, frozen=True, kw_only=True):
    """What was found, in the order of the files, and how many of Sluice's resources were looked at."""

    findings: tuple[Finding, ...]
    resources: int

    @property
    def ok(self) -> bool:
        """Tell whether everything will be in force as it is written; warnings do not count."""
        return all(finding.severity is Severity.WARNING for finding in self.findings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "paths", nargs="+", metavar="FILE|DIR|-", help="YAML or JSON manifests; other kinds in them are skipped"
    )
    parser.add_argument(
        "--schema-only",
        action="store_true",
        help="check each resource by itself, not that those exist to which it refers",
    )
    parser.add_argument("--namespace", "-n", default="default", help="namespace of resources that name none")
    parser.epilog = "Exit status: 0 valid (warnings do not count), 1 problems found, 2 a file cannot be read."


def run(arguments: argparse.Namespace) -> int:
    """Print one line per problem and return the exit status."""
    try:
        documents = tuple(read(arguments.paths))
    except ManifestFileError as error:
        print(error, file=sys.stderr)
        return 2
    validated = check(documents, namespace=arguments.namespace, schema_only=arguments.schema_only)
    for finding in validated.findings:
        print(finding)
    if not validated.ok:
        return 1
    print(f"{validated.resources} {'resource' if validated.resources == 1 else 'resources'} valid")
    return 0


def check(documents: Sequence[Document], *, namespace: str = "default", schema_only: bool = False) -> Validated:
    """Return what is wrong with manifests: each by itself first, then those that are right all together."""
    findings: list[Finding] = []
    sound: dict[ResourceId, tuple[Document, AnyResource]] = {}
    namespaces: dict[str, dict[str, str]] = {}
    count = 0
    for document in documents:
        if not is_sluice(document.content):
            _note_namespace(document, namespaces)
            continue
        count += 1
        resource = _sound(document, namespace, findings)
        if resource is None:
            continue
        identity = ResourceId(type(resource).__name__, resource.key)
        if identity in sound:
            findings.append(
                _finding(document, "metadata.name", f"{resource.key} is in {sound[identity][0].source} too")
            )
            continue
        sound[identity] = (document, resource)
        namespaces.setdefault(resource.metadata.namespace, {})
    if not schema_only:
        compiled = compile_namespaces([resource for _, resource in sound.values()], namespaces)
        for identity, problems in compiled.problems.items():
            findings.extend(_compiler_finding(sound[identity][0], problem) for problem in problems)
    order = {source: index for index, source in enumerate(dict.fromkeys(document.source for document in documents))}
    findings.sort(key=lambda finding: (order[finding.source], finding.line))
    return Validated(findings=tuple(findings), resources=count)


def _sound(document: Document, namespace: str, findings: list[Finding]) -> AnyResource | None:
    """Return the resource if nothing is wrong with it by itself; else None, with the findings noted."""
    errors = validate(document.content, evaluate)
    if errors:
        findings.extend(_finding(document, error.path, error.message) for error in errors)
        return None
    content = document.content
    content = {**content, "metadata": {"namespace": namespace, **content["metadata"]}}
    parsed = parse({name: value for name, value in content.items() if name != "status"})
    if isinstance(parsed, Problem):
        findings.append(_finding(document, parsed.path, parsed.message))
        return None
    return parsed


def _note_namespace(document: Document, namespaces: dict[str, dict[str, str]]) -> None:
    metadata = document.content.get("metadata")
    if document.content.get("kind") == "Namespace" and isinstance(metadata, dict) and metadata.get("name"):
        labels = metadata.get("labels") or {}
        namespaces[str(metadata["name"])] = {str(key): str(value) for key, value in labels.items()}


def _compiler_finding(document: Document, problem: Problem) -> Finding:
    return _finding(document, problem.path, problem.message, problem.severity)


def _finding(document: Document, path: str, message: str, severity: Severity = Severity.ERROR) -> Finding:
    metadata = document.content.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return Finding(
        source=document.source,
        line=document.line(path),
        resource=f"{document.content.get('kind')}/{name or '?'}",
        path=path,
        message=message,
        severity=severity,
    )
