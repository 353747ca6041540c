"""Starts the sidecar: `sluice-sidecar` or `python -m sluice_sidecar`. Settings come from the environment."""

from __future__ import annotations

import os
import sys

import uvloop

from sluice_sidecar.process import serve
from sluice_sidecar.settings import SettingsError, load


def main() -> int:
    """Run until stopped; return the exit status."""
    try:
        settings = load(os.environ)
    except SettingsError as error:
        print(f"sluice-sidecar: {error}", file=sys.stderr)
        return 2
    uvloop.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
