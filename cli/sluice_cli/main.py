"""The `sluice` command, also installed as `kubectl sluice`. A verb's module is loaded when the verb is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

VERBS: Final[dict[str, tuple[str, str]]] = {
    "dev": ("sluice_cli.dev.command", "run policies from a folder on this machine, with a mock upstream"),
    "demo": ("sluice_cli.demo.command", "watch the main features work, in under two minutes"),
    "mock-openai": ("sluice_cli.mock.command", "serve a mock of the OpenAI API with faults to order"),
    "validate": ("sluice_cli.validate", "check manifests offline, as the API server and the compiler would"),
    "status": ("sluice_cli.status", "show splits and quotas"),
    "promote": ("sluice_cli.control", "move a split to its next step, or with --full to the end"),
    "abort": ("sluice_cli.control", "send all traffic back to the stable version"),
    "pause": ("sluice_cli.control", "hold a split where it is"),
    "resume": ("sluice_cli.control", "let a paused split go on"),
    "retry": ("sluice_cli.control", "try a version again that was rolled back"),
    "explain": ("sluice_cli.explain", "tell why a call was decided as it was"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sluice", description="Governs what pods send to OpenAI.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (_, summary) in VERBS.items():
        verbs.add_parser(verb, help=summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status: 0 done, 1 the answer is no, 2 it could not be done."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in VERBS:
        _parser().parse_args(arguments[:1])  # prints the help or the error, and exits
        return 2
    verb = arguments[0]
    source, summary = VERBS[verb]
    module = importlib.import_module(source)
    parser = argparse.ArgumentParser(prog=f"sluice {verb}", description=f"{summary[0].upper()}{summary[1:]}.")
    parser.set_defaults(verb=verb)
    module.add_arguments(parser)
    try:
        status: int = module.run(parser.parse_args(arguments[1:]))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
