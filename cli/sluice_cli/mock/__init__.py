"""
A mock OpenAI server: the API's own shapes, deterministic content, faults to order, a ledger of what it served.

What is decided (limiter, fault matching, content, bodies and events) has no clock and no randomness of its own;
`app`, `sending`, `emission` and `server` do the input and output.
"""

from sluice_cli.mock.effects import Delay, Effect
from sluice_cli.mock.faults import Fault, FaultBook
from sluice_cli.mock.ledger import Ledger, LedgerEntry, Outcome, Usage
from sluice_cli.mock.limiter import ModelLimit, RateLimiter
from sluice_cli.mock.server import MockOpenAI

__all__ = [
    "Delay",
    "Effect",
    "Fault",
    "FaultBook",
    "Ledger",
    "LedgerEntry",
    "MockOpenAI",
    "ModelLimit",
    "Outcome",
    "RateLimiter",
    "Usage",
]
