"""Good and bad manifests, one mistake each: what a user is told offline is what the API server would say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sluice_cli.cel_rules import evaluate
from sluice_cli.manifest_files import read
from sluice_cli.validate import Validated, check
from sluice_core.api import crd
from sluice_core.api.manifests import AnyResource, is_sluice, parse
from sluice_core.api.validation import RuleError, validate
from sluice_core.problems import Problem, Severity

MANIFESTS = Path(__file__).resolve().parents[2] / "data" / "manifests"


def files(folder: str) -> Any:
    """Return a parametrization over the files of a folder."""
    return pytest.mark.parametrize("file", sorted((MANIFESTS / folder).glob("*.yaml")), ids=lambda file: file.stem)


def expected(file: Path) -> str:
    """Return what the first line of a manifest says will be said about it."""
    return file.read_text().splitlines()[0].removeprefix("# expect: ")


def checked(*paths: Path, schema_only: bool = False) -> Validated:
    """Return what `sluice validate` finds in files or folders."""
    return check(tuple(read([str(path) for path in paths])), schema_only=schema_only)


def test_good_manifests_are_valid() -> None:
    """Every field of every kind can be written as the documentation shows it, and fits together."""
    validated = checked(MANIFESTS / "good")
    assert [str(each) for each in validated.findings if each.severity is Severity.ERROR] == []
    assert validated.resources == 9


@files("good")
def test_good_manifests_parse(file: Path) -> None:
    """What validates can be read into the types; nothing valid is refused later."""
    for document in read([str(file)]):
        if is_sluice(document.content):
            assert not isinstance(parse(document.content), Problem)


@files("bad")
def test_each_mistake_is_told_once_and_where(file: Path) -> None:
    """A manifest with one mistake gets one line, which names the field."""
    validated = checked(file, schema_only=True)
    lines = [f"{each.path}: {each.message}" if each.path else each.message for each in validated.findings]
    assert len(lines) == 1
    assert expected(file) in lines[0]
    assert not validated.ok


def test_there_is_a_bad_manifest_for_each_kind_and_rule() -> None:
    """Every CEL rule of the CRDs refuses at least one of the bad manifests."""
    assert len(list((MANIFESTS / "bad").glob("*.yaml"))) >= 40
    told = {
        each.message for file in (MANIFESTS / "bad").glob("*.yaml") for each in checked(file, schema_only=True).findings
    }
    for kind in crd.KINDS:
        for message in _rule_messages(crd.schema(kind)):
            assert any(message in each for each in told) or message in ALSO_TOLD, message


# Said by rules that stand beside one that has a manifest of its own, with the same wording in another place.
ALSO_TOLD = {
    "instructions cannot be overridden; use the arm's own field instructions",
    "input cannot be overridden; it belongs to the caller",
    "store.secretRef is only used when store.type is Redis; remove it",
}


def _rule_messages(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {rule["message"] for rule in node.get("x-kubernetes-validations", ())}
        return own.union(*(_rule_messages(inner) for inner in node.values()))
    if isinstance(node, list):
        return set().union(*(_rule_messages(inner) for inner in node))
    return set()


@files("unresolved")
def test_what_does_not_fit_together_is_told(file: Path) -> None:
    """A resource that is right by itself, but refers to what is not there, is an error with the way to mend it."""
    validated = checked(file)
    assert any(expected(file) in f"{each.path}: {each.message}" for each in validated.findings)
    assert not validated.ok
    assert checked(file, schema_only=True).findings == ()


@files("doubtful")
def test_what_is_probably_not_meant_is_a_warning(file: Path) -> None:
    """A warning says what will happen, and does not fail the check."""
    validated = checked(file)
    assert [each.severity for each in validated.findings] == [Severity.WARNING]
    assert expected(file) in str(validated.findings[0])
    assert validated.ok


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"tier": "Tier9"}, "Invalid enum value 'Tier9'"),
        ({"limits": {"requestsPerMinute": -1}}, "Expected `int` >= 0"),
        ({"credentials": [{"name": "a"}]}, "Object missing required field `secretKeyRef`"),
    ],
)
def test_a_manifest_of_the_wrong_shape_is_a_problem_not_an_exception(spec: dict[str, Any], message: str) -> None:
    """Whoever reads resources gets a value to put into a status, with the path of the field."""
    manifest = {"apiVersion": "sluice.dev/v1alpha1", "kind": "Upstream", "metadata": {"name": "a"}, "spec": spec}
    problem = parse(manifest)
    assert isinstance(problem, Problem)
    assert message in problem.message
    assert problem.path.startswith("spec.")


def test_empty_fields_are_as_if_absent_when_reading() -> None:
    """`creationTimestamp: null`, which tools write, does not keep a resource from being read."""
    manifest = {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "Upstream",
        "metadata": {"name": "a", "creationTimestamp": None},
        "spec": {"tier": None},
        "status": None,
    }
    resource = parse(manifest)
    assert isinstance(resource, AnyResource)
    assert resource.key == "default/a"


def test_a_rule_that_cannot_be_evaluated_is_an_error() -> None:
    """An evaluator that fails does not let a manifest pass."""

    def failing(rule: str, value: Any) -> bool:
        raise RuleError("no such function")

    manifest = {"apiVersion": "sluice.dev/v1alpha1", "kind": "Upstream", "metadata": {"name": "a"}, "spec": {}}
    assert "rule cannot be evaluated: no such function" in validate(manifest, failing)[0].message


def test_a_trailing_line_break_does_not_pass_a_pattern() -> None:
    """The end of a pattern is the end of the text, as in the API server and unlike in Python."""
    manifest = {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "Upstream",
        "metadata": {"name": "a"},
        "spec": {"organization": "org-x\n"},
    }
    assert [error.path for error in validate(manifest, evaluate)] == ["spec.organization"]
