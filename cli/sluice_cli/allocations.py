"""The allocations of quotas as a table: what `kubectl describe` shows of each, in one line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

Document = dict[str, Any]

_COLUMNS: Final = (
    ("PODS", "pods"),
    ("GRANTED RPM", "grantedRequestsPerMinute"),
    ("GRANTED TPM", "grantedTokensPerMinute"),
    ("USED RPM", "usedRequests"),
    ("USED TPM", "usedTokens"),
    ("WAITING", "waiting"),
    ("REFUSED", "refused"),
    ("DEGRADED", "degraded"),
)
_OF_BUDGETS: Final = (
    ("TODAY $", "spentTodayUSD"),
    ("THIS MONTH $", "spentMonthUSD"),
    ("RESETS", "resetsAt"),
    ("RUNS OUT", "runsOutAt"),
)
HEADER: Final = ("ALLOCATION", "LEVEL", *(name for name, _ in (*_COLUMNS, *_OF_BUDGETS)))


def allocation_rows(quotas: Iterable[Document]) -> list[tuple[str, ...]]:
    """Return a row for each allocation, in the order of `HEADER`; without a budget its money is not known."""
    return [
        _row(quota["metadata"]["name"], each)
        for quota in sorted(quotas, key=lambda quota: str(quota["metadata"]["name"]))
        for each in (quota.get("status") or {}).get("allocations") or ()
    ]


def _row(quota: str, allocation: Document) -> tuple[str, ...]:
    figures = (str(allocation.get(key, 0)) for _, key in _COLUMNS)
    money = (str(allocation.get(key, "")) if allocation.get("resetsAt") else "" for _, key in _OF_BUDGETS)
    cause = f" ({allocation['levelCause']})" if allocation.get("levelCause") else ""
    return (f"{quota}/{allocation['name']}", f"{allocation.get('level', '')}{cause}", *figures, *money)
