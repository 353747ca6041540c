"""A sidecar that ends with the session that began it, however that one ends: `python -m sluice_cli.dev.tethered`.

The session holds the other end of its standard input. A session that is killed cannot stop its sidecars; they would
go on under a policy that nobody can change any more, on ports that the next session wants.
"""

from __future__ import annotations

import os
import sys
import threading

from sluice_sidecar.__main__ import main


def _end_with_session() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)  # nobody is left to read the records, and a mock upstream has died with the session


if __name__ == "__main__":
    threading.Thread(target=_end_with_session, name="tether", daemon=True).start()
    sys.exit(main())
