"""`sluice validate`: what it prints, for which files, and how it exits."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sluice_cli import manifest_files
from sluice_cli.cel_rules import evaluate
from sluice_cli.main import main
from sluice_core.api.validation import RuleError

UPSTREAM = """\
apiVersion: sluice.dev/v1alpha1
kind: Upstream
metadata: {name: openai}
spec:
  baseURL: http://mock/v1
"""
BAD_LIMITS = """\
  limits:
    requestsPerMinute: 10
    tokensPerMinute: -1
"""


def write(folder: Path, name: str, text: str) -> str:
    """Write a file and return its path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_valid_resources_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other kinds in the same files are passed over."""
    other = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: b}\n"
    file = write(tmp_path, "a.yaml", UPSTREAM + other)
    assert main(["validate", file]) == 0
    assert capsys.readouterr().out == "1 resource valid\n"


def test_a_problem_is_told_with_file_line_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line is that of the field, so that an editor can jump to it."""
    file = write(tmp_path, "a.yaml", UPSTREAM + BAD_LIMITS)
    assert main(["validate", file]) == 1
    assert capsys.readouterr().out == (
        f"{file}:8 Upstream/openai: spec.limits.tokensPerMinute: Invalid value: -1: "
        "spec.limits.tokensPerMinute in body should be greater than or equal to 0\n"
    )


def test_a_missing_field_is_told_at_the_line_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not there has no line of its own."""
    text = UPSTREAM + "  credentials:\n    - secretKeyRef: {name: a, key: b}\n"
    file = write(tmp_path, "a.yaml", text)
    assert main(["validate", file]) == 1
    assert capsys.readouterr().out == f"{file}:7 Upstream/openai: spec.credentials[0].name: Required value\n"


def test_folders_are_searched_and_resources_of_all_files_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A route may refer to an upstream of another file; the same resource twice is a mistake."""
    write(tmp_path, "b/upstream.yml", UPSTREAM)
    write(tmp_path, "notes.txt", "not: [a manifest")
    write(
        tmp_path,
        "a.json",
        '{"apiVersion": "sluice.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "chat"},'
        ' "spec": {"rules": [{"name": "a", "targets": [{"upstreamRef": {"name": "openai"}}]}]}}',
    )
    assert main(["validate", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "2 resources valid\n"
    again = write(tmp_path, "c.yaml", UPSTREAM)
    assert main(["validate", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith(f"{again}:3 Upstream/openai: metadata.name: default/openai is in ")


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`helm template ... | sluice validate -` works."""
    monkeypatch.setattr("sys.stdin", io.StringIO(UPSTREAM + BAD_LIMITS))
    assert main(["validate", "-"]) == 1
    assert capsys.readouterr().out.startswith("<stdin>:8 Upstream/openai: ")


def test_items_of_a_list_are_resources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`kubectl get upstreams -o yaml` can be checked as it comes."""
    items = "".join(f"{'- ' if number == 0 else '  '}{line}\n" for number, line in enumerate(UPSTREAM.splitlines()))
    file = write(tmp_path, "a.yaml", f"apiVersion: v1\nkind: List\nitems:\n{items}    tier: Tier9\n")
    assert main(["validate", file]) == 1
    assert capsys.readouterr().out.startswith(f"{file}:9 Upstream/openai: spec.tier: Unsupported value")


def test_references_can_be_left_unchecked(tmp_path: Path) -> None:
    """For a repository that holds only part of a cluster's resources."""
    route = UPSTREAM.replace("Upstream", "ModelRoute").partition("spec:")[0]
    file = write(tmp_path, "a.yaml", route + "spec: {rules: [{name: a, targets: [{upstreamRef: {name: gone}}]}]}\n")
    assert main(["validate", file]) == 1
    assert main(["validate", "--schema-only", file]) == 0


def test_a_namespace_can_be_given(tmp_path: Path) -> None:
    """Resources that name no namespace belong to the one that they will be applied to."""
    write(tmp_path, "a.yaml", UPSTREAM.replace("{name: openai}", "{name: openai, namespace: shop}"))
    route = UPSTREAM.replace("Upstream", "ModelRoute").partition("spec:")[0]
    write(tmp_path, "b.yaml", route + "spec: {rules: [{name: a, targets: [{upstreamRef: {name: openai}}]}]}\n")
    assert main(["validate", str(tmp_path)]) == 1
    assert main(["validate", "--namespace", "shop", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", ":2: not YAML"),
        ("- just\n- a list\n", ":1: not a manifest: a mapping is expected"),
        ("kind: A\nkind: B\n", ":2: kind is written twice"),
        ("a: \x00\n", ": not YAML"),
        ("a: *nowhere\n", ":1: not YAML"),
        ("a: !!python/object:os.system {}\n", ":1: not YAML"),
    ],
)
def test_what_cannot_be_read_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    """A mistake of YAML is told with its line, on standard error."""
    file = write(tmp_path, "a.yaml", text)
    assert main(["validate", file]) == 2
    assert f"{file}{message}" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So is a folder with nothing to check in it: silence would look like success."""
    assert main(["validate", str(tmp_path / "gone.yaml")]) == 2
    assert main(["validate", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "No such file" in captured.err
    assert "no YAML or JSON file in this folder" in captured.err


def test_a_date_stays_text(tmp_path: Path) -> None:
    """As for the tools of Kubernetes, which know no dates in YAML."""
    file = write(tmp_path, "a.yaml", "a: 2026-01-01\nb: on\n")
    (document,) = manifest_files.read([file])
    assert document.content == {"a": "2026-01-01", "b": True}


@pytest.mark.parametrize(
    ("rule", "value", "holds"),
    [
        ("self.map(x, x).sum() <= 3", [1, 2], True),
        ("self.isSorted()", [1, 1, 2], True),
        ("self.isSorted()", [2, 1], False),
        ("has(self.a) != has(self.b)", {"a": 1, "b": 2}, False),
        ("self.matches('(?i)^(host|connection)$')", "HOST", True),
    ],
)
def test_rules_are_evaluated_as_kubernetes_does(rule: str, value: object, holds: bool) -> None:
    """The functions that Kubernetes adds to CEL are there."""
    assert evaluate(rule, value) is holds


@pytest.mark.parametrize("rule", ["self.gone == 1", "unknown(self)", "self ==="])
def test_a_rule_that_fails_says_so(rule: str) -> None:
    """It neither passes nor ends the program."""
    with pytest.raises(RuleError):
        evaluate(rule, {"a": 1})
