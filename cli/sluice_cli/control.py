"""`sluice promote`, `abort`, `pause`, `resume`, `retry`: one request to a rollout, made by an annotation."""

from __future__ import annotations

import argparse
import sys
import uuid

from sluice_cli.cluster import ClusterError, add_source_arguments, source_of
from sluice_core.api.base import GROUP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", help="name of the CanarySplit")
    verb = parser.get_default("verb")
    if verb == "promote":
        parser.add_argument("--full", action="store_true", help="skip the steps that are left")
    add_source_arguments(parser)
    parser.epilog = (
        "The request is an annotation with a fresh token; the operator carries each token out once. "
        f"The same without this command: kubectl annotate canarysplit NAME --overwrite {GROUP}/{verb}=$(date +%s)"
    )


def run(args: argparse.Namespace) -> int:
    """Make the request."""
    verb = "promote-full" if getattr(args, "full", False) else args.verb
    try:
        source_of(args).annotate("CanarySplit", "canarysplits", args.name, {f"{GROUP}/{verb}": str(uuid.uuid4())})
    except ClusterError as error:
        print(f"sluice {args.verb}: {error}", file=sys.stderr)
        return 2
    look = ["sluice status", args.name]
    look += ["-n", args.namespace] if args.namespace else []
    look += ["--dev", args.dev] if args.dev else []
    print(f"canarysplit/{args.name}: {verb} requested; `{' '.join(look)}` shows what comes of it")
    return 0
