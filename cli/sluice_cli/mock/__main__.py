"""`python -m sluice_cli.mock`: the mock server alone, as `sluice mock-openai` starts it."""

import argparse
import sys

from sluice_cli.mock.command import add_parser


def main() -> int:
    """Run the command of the arguments given."""
    parser = argparse.ArgumentParser(prog="sluice")
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["mock-openai", *sys.argv[1:]])
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
