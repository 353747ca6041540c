"""Whatever the documentation shows can be done as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from docs_commands import commands, mistakes
from docs_pages import ROOT, Block, Page, pages
from docs_reader import Reader

from sluice_cli.main import VERBS
from sluice_cli.manifest_files import read
from sluice_cli.validate import check
from sluice_core.api.base import GROUP
from sluice_core.problems import Severity

PAGES = pages()
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir())
of_each_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
_NO_METRICS = {"sluice_core", "sluice_sidecar", "sluice_operator", "sluice_cli", "sluice_error"}
_LIVE = ("sluice status", "sluice promote", "sluice validate", "curl ")


def _is_live(block: Block) -> bool:
    return block.language == "python" or (block.language == "sh" and any(word in block.text for word in _LIVE))


LIVE_PAGES = [page for page in PAGES if any(map(_is_live, page.blocks))]


@of_each_page
def test_links_lead_somewhere(page: Page) -> None:
    """Each link within the repository names a file, and a heading of it where it names one."""
    for link in page.links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.path.parent / unquote(name)).resolve() if name else page.path
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in Page(target, target.read_text()).anchors, f"{page.name}: {link}"


@of_each_page
def test_manifests_are_valid(page: Page, tmp_path: Path) -> None:
    """Each resource that is shown would be taken by the API server."""
    for block in page.blocks:
        if block.language != "yaml":
            continue
        documents: list[Any] = list(yaml.safe_load_all(block.text))
        if not any(str(document.get("apiVersion", "")).startswith(GROUP) for document in documents):
            continue
        file = tmp_path / f"{block.line}.yaml"
        file.write_text(block.text)
        found = check(list(read([str(file)])), schema_only=True)
        assert found.ok, f"{page.name}:{block.line}: {found.findings}"
        assert found.resources


@of_each_page
def test_json_can_be_read(page: Page) -> None:
    """Each message that is shown as JSON is JSON."""
    for block in page.blocks:
        if block.language == "json":
            assert json.loads(block.text)


@of_each_page
def test_metrics_exist(page: Page) -> None:
    """Each metric that a page or a query names is one that a process serves."""
    reference = next(each for each in PAGES if each.name == "docs/reference/metrics.md")
    served = {code for code in reference.inline_code if code.startswith("sluice_")}
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bsluice_[a-z_]+\b", page.text)}
    assert not named - served - _NO_METRICS


@of_each_page
def test_commands_exist(page: Page) -> None:
    """Each command that is shown names verbs, options, files and labels that there are."""
    for block in page.blocks:
        if block.language == "sh":
            wrong = [problem for words in commands(block.text) for problem in mistakes(words)]
            assert not wrong, f"{page.name}:{block.line}: {wrong}"
    for code in page.inline_code:
        for words in [code.split()] if code.startswith(("sluice ", "kubectl sluice ")) else []:
            verb = words[1 + (words[0] == "kubectl")]
            assert verb in {*VERBS, "VERB"}, f"{page.name}: {code}"


@pytest.mark.parametrize("page", LIVE_PAGES, ids=[page.name for page in LIVE_PAGES])
def test_programs_run(page: Page, reader: Reader) -> None:
    """The page's programs and commands work one after the other in local mode."""
    for block in page.blocks:
        if _is_live(block):
            done = reader.run(block)
            assert done.returncode == 0, f"{page.name}:{block.line}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("folder", EXAMPLES, ids=[folder.name for folder in EXAMPLES])
def test_examples_are_valid_without_warnings(folder: Path) -> None:
    """Each folder of examples is a whole: it refers to nothing outside and has nothing that is never used."""
    found = check(list(read([str(folder)])))
    assert found.ok
    assert not [each for each in found.findings if each.severity is Severity.WARNING]
    assert found.resources >= 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sluice validate examples/nowhere", "no such file"),
        ("kubectl sluice dance", "no such verb"),
        ("sluice dev --folder examples/quickstart --fast", "--fast"),
        ("KEY=1 sluice dev -f examples/quickstart --upstream imaginary", "imaginary"),
        ("kubectl get pods && helm install sluice charts/slice", "charts/slice"),
        ("helm install sluice charts/sluice --set operator.replica=2", "no such value"),
        ("kubectl annotate canarysplit chat sluice.dev/promtoe=$(date +%s)", "no such label"),
        ("kubectl delete crd canarysplit.sluice.dev", "no such definition"),
        ("make everything", "no such target"),
        ("curl localhost | frobnicate", "nobody checks"),
    ],
)
def test_wrong_commands_are_noticed(command: str, said: str) -> None:
    """The check of commands is not blind: a mistake in a verb, option, file or name is said."""
    (wrong,) = [problem for words in commands(command) for problem in mistakes(words)]
    assert said in wrong


def test_pages_are_listed() -> None:
    """The index of the documentation links to every page, or it would never be found."""
    index = next(page for page in PAGES if page.name == "docs/README.md")
    linked = {(ROOT / "docs" / link).resolve() for link in index.links}
    missing = [page.name for page in PAGES if page.name.startswith("docs/") and page.path not in {*linked, index.path}]
    assert not missing
