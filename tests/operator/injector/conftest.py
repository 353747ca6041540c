"""What the injector's tests share."""

from __future__ import annotations

import time

import pytest


class RealClock:
    """Starts at the real time, for handshakes in which OpenSSL looks at its own clock."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def real_clock() -> RealClock:
    return RealClock()
