"""`python -m sluice_cli.mock`: the mock alone, which needs no more than the sidecar does."""

from __future__ import annotations

import argparse
import sys

from sluice_cli.mock.command import add_arguments, run


def main() -> int:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m sluice_cli.mock", description="Serve a mock of the OpenAI API.")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
