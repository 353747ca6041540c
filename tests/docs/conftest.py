"""What reads the documentation and does what it says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # test folders are no packages

from docs_reader import Reader


@pytest.fixture
def reader() -> Iterator[Reader]:
    """Follow one page."""
    following = Reader()
    yield following
    following.close()
