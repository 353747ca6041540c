"""The one way in which a stage of the pipeline ends a call early.

RefusedError        Sluice answers itself: a limit, a budget, an open breaker, a rule, a broken request
"""

from __future__ import annotations

from sluice_core.errors import Refusal
from sluice_core.records import Outcome
from sluice_sidecar.attempt import Whole


class RefusedError(Exception):
    """Sluice ends the call. `outcome` says how it counts.

    `shown` is an error answer of the upstream's own, which says more than the refusal and is passed on in its place.
    """

    def __init__(self, refusal: Refusal, outcome: Outcome = Outcome.REFUSED, shown: Whole | None = None) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal
        self.outcome = outcome
        self.shown = shown
