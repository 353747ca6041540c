"""Which budgets are spent, and how much of those that have steps: what a pod was told last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sluice_core.api.quotaallocation import Budget, OnExhausted
from sluice_core.ladder import EXHAUSTED_PERCENT, Spent
from sluice_core.limits.accounts import Account, budgets_of
from sluice_core.sync import Exhausted, SpentShare


class SpentBudgets:
    """What is known of budgets, by name. Times are monotonic seconds."""

    __slots__ = ("_exhausted", "_shares", "any_exhausted")

    def __init__(self) -> None:
        self._exhausted: dict[str, float] = {}
        self._shares: dict[str, list[tuple[int, float]]] = {}
        self.any_exhausted = False
        """Whether any budget at all is spent."""

    def apply(
        self, exhausted: Iterable[Exhausted], shares: Iterable[SpentShare], *, now: float, unix_now: float
    ) -> None:
        """Replace all that is known."""
        self._exhausted = {each.budget: now + (each.until - unix_now) for each in exhausted}
        self.any_exhausted = bool(self._exhausted)
        self._shares = {}
        for each in shares:
            self._shares.setdefault(each.budget, []).append((each.percent, now + (each.until - unix_now)))

    @property
    def anything(self) -> bool:
        """Tell whether any budget at all is spent, or has come to a step."""
        return bool(self._exhausted or self._shares)

    def exhausted(self, account: Account, now: float) -> tuple[Budget, float] | None:
        """Return the spent budget of an account's calls, and until when; one that rejects comes first."""
        found: tuple[Budget, float] | None = None
        for name, budget in budgets_of(account.quota, account.allocation).items():
            until = self._exhausted.get(name)
            if until is not None and until > now and (found is None or budget.on_exhausted is OnExhausted.REJECT):
                found = budget, until
        return found

    def of(self, account: Account, now: float) -> Iterator[Spent]:
        """Yield how much is spent of each of an account's budgets, as far as it matters: window for window."""
        whole = account.quota.key if account.quota is not None else ""
        for name, budget in budgets_of(account.quota, account.allocation).items():
            known = list(self._shares.get(name, ()))
            if name in self._exhausted:
                known.append((EXHAUSTED_PERCENT, self._exhausted[name]))
            for percent, until in known:
                if until > now:
                    yield Spent(budget=budget, percent=percent, until=until, whole=name == whole)
