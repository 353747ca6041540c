"""Checks an installation from inside the cluster: the chart's `helm test` runs it.

Asks the injector for a sidecar over TLS as the API server would, trusting what the API server trusts, and asks all
parts whether they are ready. Exit status 0 if all is well, 1 with a sentence for each thing that is not.
"""

from __future__ import annotations

import argparse
import base64
import json
import ssl
import sys
import urllib.request
from collections.abc import Sequence
from typing import Final

from sluice_operator.injector import INJECT_LABEL
from sluice_operator.injector_sidecar import CONTAINER_NAME

TIMEOUT_SECONDS: Final = 10.0

_POD: Final = {
    "metadata": {"name": "check", "labels": {INJECT_LABEL: "true"}},
    "spec": {"containers": [{"name": "app", "image": "app"}]},
}
_REVIEW: Final = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "check",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": "default",
        "operation": "CREATE",
        "dryRun": True,
        "object": _POD,
    },
}


def check_ready(url: str) -> str | None:
    """Return what is wrong with a readiness address, None if it is ready."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS):  # noqa: S310 - the chart gives the address
            return None
    except OSError as error:
        return f"{url}: {error}"


def check_admission(url: str, authority: str) -> str | None:
    """Return what is wrong with the webhook, None if it adds a sidecar."""
    try:
        trust = ssl.create_default_context(cafile=authority)
        question = urllib.request.Request(  # noqa: S310 - the chart gives the address
            url, data=json.dumps(_REVIEW).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(question, timeout=TIMEOUT_SECONDS, context=trust) as answer:  # noqa: S310
            response = json.load(answer)["response"]
        patch = json.loads(base64.b64decode(response.get("patch", "W10=")))
    except (OSError, ValueError, KeyError) as error:
        return f"{url}: {error}"
    added = [operation for operation in patch if operation["path"].startswith("/spec/")]
    if not response["allowed"] or CONTAINER_NAME not in json.dumps(added):
        return f"{url}: the answer adds no sidecar"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and print what failed."""
    parser = argparse.ArgumentParser(description="Check an installation of Sluice from inside its cluster.")
    parser.add_argument("--admission", required=True, help="address of the webhook")
    parser.add_argument("--authority", required=True, help="file with the authorities to trust")
    parser.add_argument("--ready", action="append", default=[], help="address that must answer 200; may be repeated")
    options = parser.parse_args(arguments)
    results = [check_admission(options.admission, options.authority), *map(check_ready, options.ready)]
    faults = [result for result in results if result is not None]
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print("the injector adds sidecars and all parts are ready")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
