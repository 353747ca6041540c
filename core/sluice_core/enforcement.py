"""Whether a quota does what it says, and how its money stands: two conditions of a QuotaAllocation, as values.

Their messages hold no figure that moves, or every round would write a status anew: figures are in the status itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from sluice_core.alerts import Alert
from sluice_core.api.base import Condition, ConditionStatus, Value
from sluice_core.api.conditions import remove_condition, set_condition
from sluice_core.api.quotaallocation import Budget, Mode, StoreType
from sluice_core.budget import Assessment
from sluice_core.limits.accounts import UNALLOCATED
from sluice_core.limits.money import usd_text
from sluice_core.problems import Problem, Reason
from sluice_core.snapshot import QuotaPolicy
from sluice_core.sync import AllocationGauge

ENFORCED = "Enforced"
WITHIN_BUDGET = "WithinBudget"
SPEND_UNUSUAL = "SpendUnusual"
STORE_REACHABLE = "StoreReachable"
_NOT_USED = "NotUsed"
MAX_NAMED = 5
_NOBODY = "no injected pod has the labels of any allocation; correct them, or label and restart the pods"


class Finding(Value, frozen=True, kw_only=True):
    """One condition: its type, whether it holds, and why."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


def enforced(
    quota: QuotaPolicy | None, problems: Iterable[Problem], gauges: Mapping[str, Sequence[AllocationGauge]]
) -> Finding:
    """Return whether all that the quota says is enforced.

    Args:
        quota: the policy; None if the resource is not in force.
        problems: those of the resource.
        gauges: what the pods report, by allocation.
    """
    if quota is None:
        return _finding(ENFORCED, False, "NotInForce", "the resource is not in force; Ready says why")
    idle = sum(each.reason is Reason.NOBODY_SELECTED for each in problems)
    named = [each for each in quota.allocations if each.name != UNALLOCATED]
    shadows = [each.name for each in named if each.mode is Mode.SHADOW]
    if idle >= len(named):
        return _finding(ENFORCED, False, "NobodySelected", _NOBODY)
    if shadows:
        whole = len(shadows) == len(named)
        which = "all allocations report" if whole else f"{_names(shadows)} only reports"
        return _finding(ENFORCED, False, "Shadow", f"{which} what would be refused, and nothing is: mode is Shadow")
    unpriced = sorted({each.unpriced_model for row in gauges.values() for each in row if each.unpriced})
    if unpriced and (quota.budget is not None or any(each.budget is not None for each in quota.allocations)):
        message = (
            f"calls of {_names(unpriced)} have no known price and are charged to no budget; "
            "set spec.prices of the Upstream"
        )
        return _finding(ENFORCED, False, "ModelUnknown", message)
    return _finding(ENFORCED, True, "Enforced", "calls over a limit wait or are refused")


def within_budget(budgets: Mapping[str, Assessment], policies: Mapping[str, Budget] | None = None) -> Finding | None:
    """Return whether there is money left under every budget; None if the quota has no budget.

    `policies` says what then becomes of calls.
    """
    if not budgets:
        return None
    spent = sorted(name for name, each in budgets.items() if each.exhausted_until is not None)
    if spent:
        then = [f"{name} (onExhausted: {policies[name].on_exhausted.value})" for name in spent] if policies else spent
        message = f"spent until the window ends: {_names(then)}"
        return _finding(WITHIN_BUDGET, False, "BudgetExhausted", message)
    soon = sorted(name for name, each in budgets.items() if each.runs_out_at is not None)
    if soon:
        return _finding(
            WITHIN_BUDGET,
            True,
            "RunsOutEarly",
            f"will be spent before the window ends: {_names(soon)}; runsOutAt says when",
        )
    return _finding(WITHIN_BUDGET, True, "MoneyLeft", "every budget lasts at the present rate")


def spend_unusual(budgets: Mapping[str, Assessment], unusual: Collection[str]) -> Finding | None:
    """Return whether the last hour, or the present one, is unusually expensive; None if the quota has no budget."""
    if not budgets:
        return None
    if unusual:
        message = (
            f"an hour cost far more than is usual: {_names(sorted(unusual))}; sluice_cost_usd_total says of which model"
        )
        return _finding(SPEND_UNUSUAL, True, "AboveBaseline", message)
    return _finding(SPEND_UNUSUAL, False, "Usual", "the last hour cost no more than usual")


def store_reachable(quota: QuotaPolicy | None, gauges: Mapping[str, Sequence[AllocationGauge]]) -> Finding | None:
    """Return whether pods get slices of the store; None if none says so. Without a store there is no such condition."""
    if quota is None or quota.store.type is StoreType.LEASES:
        return Finding(type=STORE_REACHABLE, status=ConditionStatus.UNKNOWN, reason=_NOT_USED, message="")
    told = [each for row in gauges.values() for each in row]
    if not told:
        return None
    errors = sorted({each.store_error for each in told if each.store_error})
    if errors:
        message = f"{_names(errors)}; pods go on with their slices, and from 30 seconds on with their safe share"
        return _finding(STORE_REACHABLE, False, "StoreFailing", message)
    if any(each.store_learning for each in told):
        message = "the store has yet to learn what is out; until then it gives out only what pods say that they hold"
        return _finding(STORE_REACHABLE, True, "Learning", message)
    return _finding(STORE_REACHABLE, True, "Answers", "pods get slices of the store")


def with_findings(
    conditions: tuple[Condition, ...], findings: Iterable[Finding], *, now_unix: float, observed_generation: int
) -> tuple[Condition, ...]:
    """Return the conditions with these findings set, and without what a quota does not use any more."""
    for each in findings:
        if each.reason == _NOT_USED:
            conditions = remove_condition(conditions, each.type)
            continue
        conditions = set_condition(
            conditions,
            each.type,
            each.status,
            each.reason,
            each.message,
            now_unix=now_unix,
            observed_generation=observed_generation,
        )
    return conditions


def reason_of(alert: Alert) -> str:
    """Return the reason of an alert's event."""
    if alert.kind == "Anomaly":
        return "SpendUnusual"
    return "BudgetExhausted" if alert.spent_usd_micros >= alert.limit_usd_micros else "BudgetAlert"


def message_of(alert: Alert) -> str:
    """Return what an alert says to people."""
    spent = usd_text(alert.spent_usd_micros)
    if alert.kind == "Anomaly":
        return (
            f"{alert.budget} spent {spent} US dollars in the hour from {alert.window}, {alert.percent} % of the usual"
        )
    limit = usd_text(alert.limit_usd_micros)
    return f"{alert.budget} has spent {spent} of {limit} US dollars in {alert.window}, past {alert.percent} %"


def _finding(type_: str, holds: bool, reason: str, message: str) -> Finding:
    status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
    return Finding(type=type_, status=status, reason=reason, message=message)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
