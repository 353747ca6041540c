"""Which pods local mode plays."""

from __future__ import annotations

from pathlib import Path

import pytest

from sluice_cli.dev.folder import read_folder
from sluice_cli.dev.workloads import Workload, discover, parse_workload

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize(
    ("text", "workload"),
    [
        ("app=chat", Workload(labels={"app": "chat"})),
        ("team-a/app=chat,tier=x", Workload(namespace="team-a", labels={"app": "chat", "tier": "x"})),
        ("example.com/app=chat", Workload(namespace="example.com", labels={"app": "chat"})),
        ("app.kubernetes.io=chat", Workload(labels={"app.kubernetes.io": "chat"})),
    ],
)
def test_a_pod_is_named_by_its_labels(text: str, workload: Workload) -> None:
    """A namespace may stand before them."""
    assert parse_workload(text) == workload


@pytest.mark.parametrize("text", ["chat", "", "a=b,c", "=x"])
def test_a_pod_that_names_no_labels_is_refused(text: str) -> None:
    """The message says how it is written."""
    with pytest.raises(ValueError, match="key=value"):
        parse_workload(text)


def test_each_selector_gets_one_workload() -> None:
    """A route and an allocation that select the same pods share a sidecar."""
    resources = read_folder(EXAMPLES / "quickstart").resources

    assert [each.name for each in discover(resources)] == ["default/app=chat", "default/app=batch", "default/app=tools"]


def test_a_policy_for_any_pod_has_a_workload_too(tmp_path: Path) -> None:
    """Without any selector there is one pod without labels."""
    (tmp_path / "route.yaml").write_text(
        "apiVersion: sluice.dev/v1alpha1\nkind: ModelRoute\nmetadata: {name: all}\n"
        "spec: {rules: [{name: default, targets: [{upstreamRef: {name: openai}}]}]}\n"
    )

    assert [each.name for each in discover(read_folder(tmp_path).resources)] == ["default/any"]


def test_accounts_alone_are_enough(tmp_path: Path) -> None:
    """Without any policy there is one pod that can call them."""
    (tmp_path / "upstream.yaml").write_text(
        "apiVersion: sluice.dev/v1alpha1\nkind: Upstream\nmetadata: {name: openai}\nspec: {}\n"
    )

    assert [each.name for each in discover(read_folder(tmp_path).resources)] == ["default/any"]
