"""Makes the benchmark importable, whose simulation is a test too: it is no part of the package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))
