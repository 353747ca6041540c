"""Writes the files that are made from code; with `--check`, only tells whether they are what the code makes.

A generated file is registered in `GENERATED`: its path within the repository, and the function that makes its text.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from sluice_core.api import crd
from sluice_core.api.base import GROUP

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "hack"), str(ROOT)]  # this file is also loaded by its path, by the test that compares

from bench.page import page as benchmark_page  # noqa: E402
from reference import PAGES  # noqa: E402


class _Dumper(yaml.SafeDumper):
    """Writes values in place: no anchors, which a reader would have to follow."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  the base class has it
        return True


def crd_text(kind: crd.Kind) -> str:
    """Return the text of a CustomResourceDefinition's file."""
    heading = "# Generated from core/sluice_core/api by `make crds`; edits are lost.\n"
    return heading + yaml.dump(crd.manifest(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


GENERATED: Mapping[str, Callable[[], str]] = {
    **{f"crds/{GROUP}_{kind.plural}.yaml": partial(crd_text, kind) for kind in crd.KINDS},
    # the chart has to hold its own copy: helm packages nothing from outside
    **{f"charts/sluice/files/crds/{GROUP}_{kind.plural}.yaml": partial(crd_text, kind) for kind in crd.KINDS},
    **PAGES,
    "docs/reference/benchmark.md": benchmark_page,
}


def differences() -> list[str]:
    """Return, for each file that is not what the code makes, the difference."""
    found: list[str] = []
    for path, make in GENERATED.items():
        there = (ROOT / path).read_text() if (ROOT / path).exists() else ""
        if there != (text := make()):
            lines = difflib.unified_diff(there.splitlines(True), text.splitlines(True), path, f"{path} (generated)")
            found.append("".join(lines))
    return found


def main() -> int:
    """Write or check all generated files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 with a diff if a file is stale")
    if parser.parse_args().check:
        stale = differences()
        sys.stdout.writelines(stale)
        if stale:
            print(f"{len(stale)} generated files are stale; run `make crds`", file=sys.stderr)
        return 1 if stale else 0
    for path, make in GENERATED.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(make())
    return 0


if __name__ == "__main__":
    sys.exit(main())
