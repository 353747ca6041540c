"""Money as whole micro-dollars."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

MICROS_PER_USD: Final = 1_000_000


def usd_micros(usd: str) -> int:
    """Return the micro-dollars in a decimal string of at most six places, such as "2500" or "0.40"."""
    return int(Decimal(usd) * MICROS_PER_USD)


def usd_text(micros: int) -> str:
    """Return micro-dollars as dollars with at least two places: 1250000 is "1.25", 1 is "0.000001"."""
    sign = "-" if micros < 0 else ""
    whole, rest = divmod(abs(micros), MICROS_PER_USD)
    places = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{places}"
