"""Where the verbs find resources: a cluster, by the user's own kubectl, or a running `sluice dev`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Final, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from sluice_core.api.base import GROUP

DEV_URL: Final = "http://127.0.0.1:4140"
TIMEOUT_SECONDS: Final = 30

Document = dict[str, Any]


class ClusterError(RuntimeError):
    """The resources cannot be reached, or there are none of that name. The message says what to do."""


class Source(Protocol):
    """Reads resources and sets annotations on them."""

    def get(self, plural: str) -> list[Document]:
        """Return the resources of one kind."""
        ...

    def annotate(self, kind: str, plural: str, name: str, annotations: dict[str, str]) -> None:
        """Set annotations on one resource."""
        ...

    def records(self, pod: str | None) -> Sequence[bytes]:
        """Return the decision records there are, one JSON line each."""
        ...


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say where the resources are."""
    parser.add_argument("-n", "--namespace", help="namespace (default: that of kubectl's context)")
    parser.add_argument(
        "--dev",
        nargs="?",
        const=DEV_URL,
        default=os.environ.get("SLUICE_DEV_URL"),
        metavar="URL",
        help=f"speak to `sluice dev` instead of a cluster (default address: {DEV_URL}; or set SLUICE_DEV_URL)",
    )


def source_of(args: argparse.Namespace) -> Source:
    """Return the source that the arguments name."""
    if args.dev:
        return Dev(args.dev, args.namespace or "default")
    return Kubectl(args.namespace)


class Kubectl:
    """A cluster, with the rights and the context of whoever calls."""

    def __init__(self, namespace: str | None) -> None:
        self._namespace = ["--namespace", namespace] if namespace else []

    def _run(self, *arguments: str) -> bytes:
        executable = shutil.which("kubectl")
        if executable is None:
            raise ClusterError("kubectl is not on the PATH; install it, or use --dev to speak to `sluice dev`")
        try:
            result = subprocess.run(  # noqa: S603 - a fixed program with arguments of the user's own
                [executable, *self._namespace, *arguments], capture_output=True, timeout=TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"kubectl did not answer within {TIMEOUT_SECONDS} s") from None
        if result.returncode:
            raise ClusterError(result.stderr.decode(errors="replace").strip() or "kubectl failed")
        return result.stdout

    def get(self, plural: str) -> list[Document]:
        """Return the resources of one kind."""
        items: list[Document] = json.loads(self._run("get", f"{plural}.{GROUP}", "--output", "json"))["items"]
        return items

    def annotate(self, kind: str, plural: str, name: str, annotations: dict[str, str]) -> None:
        """Set annotations on one resource."""
        del kind
        pairs = [f"{key}={value}" for key, value in annotations.items()]
        self._run("annotate", "--overwrite", f"{plural}.{GROUP}", name, *pairs)

    def records(self, pod: str | None) -> Sequence[bytes]:
        """Return what a pod's sidecar has printed."""
        if pod is None:
            raise ClusterError("name the pod that made the call: --pod NAME")
        return self._run("logs", pod, "--container", "sluice").splitlines()


class Dev:
    """A running `sluice dev`."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url = url.rstrip("/")
        self._namespace = namespace

    def _ask(self, path: str, body: Document | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._url + path, data=data, headers={"Content-Type": "application/json"})  # noqa: S310
        try:
            with urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - the user's own address
                content: bytes = answer.read()
                return content
        except HTTPError as error:
            raise ClusterError(error.read().decode(errors="replace") or str(error)) from None
        except (URLError, ValueError, OSError) as error:
            raise ClusterError(f"{self._url} does not answer ({error}); is `sluice dev` running?") from None

    def get(self, plural: str) -> list[Document]:
        """Return the resources of one kind."""
        items = json.loads(self._ask("/dev/resources"))["items"]
        return [
            item
            for item in items
            if item["kind"].lower() + "s" == plural and item["metadata"].get("namespace", "default") == self._namespace
        ]

    def annotate(self, kind: str, plural: str, name: str, annotations: dict[str, str]) -> None:
        """Set annotations on one resource."""
        del plural
        self._ask("/dev/annotate", {"kind": kind, "key": f"{self._namespace}/{name}", "annotations": annotations})

    def records(self, pod: str | None) -> Sequence[bytes]:
        """Return the last decision records of all sidecars."""
        del pod
        return self._ask("/dev/records").splitlines()
