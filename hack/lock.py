"""Renew requirements/*.txt: exact versions with hashes, and no index address in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TARGETS = {
    "sidecar": ["--extra", "sidecar"],
    "exact": ["--extra", "sidecar", "--extra", "exact"],
    "operator": ["--extra", "operator"],
    "dev": ["--all-extras", "--group", "dev"],
}


def compile_one(name: str, selection: list[str]) -> None:
    output = ROOT / "requirements" / f"{name}.txt"
    subprocess.run(
        [
            sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--upgrade",
            "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-header",
            "--python-version", "3.11", "--no-emit-package", "sluice-k8s",
            *selection, "--output-file", str(output),
        ],
        cwd=ROOT,
        check=True,
    )  # fmt: skip


def main() -> None:
    for name, selection in TARGETS.items():
        compile_one(name, selection)


if __name__ == "__main__":
    main()
