"""What all pods together have spent under the budgets in force: the leader's memory of money.

One ledger for each QuotaAllocation, because that is the unit in which it is stored. A new leader begins by not knowing:
until `restore` it keeps what pods report, charges nothing and says nothing about budgets, so that a budget that was
spent does not come back with a change of leader. Synchronous and pure; `unix_now` is seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from sluice_core.alerts import Alert
from sluice_core.api.base import Value
from sluice_core.api.quotaallocation import Budget
from sluice_core.budget import Assessment, LedgerState, SpendLedger
from sluice_core.last_money import LastMoney
from sluice_core.limits.accounts import budgets_of
from sluice_core.snapshot import QuotaPolicy, Snapshot
from sluice_core.sync import Exhausted, Spend, SpentShare, UserReport
from sluice_core.user_spend import UserMoney

FRESH_SECONDS: Final = 1.0
"""How long an answer about spent budgets is given again before it is worked out anew."""

TOMBSTONE_SECONDS: Final = 600.0
"""How long the figures of a process that has ended are remembered: so late may its last report be repeated."""

KEPT_DAYS: Final = 35
"""How long the ledger of a quota outlives it: one that is deleted and made again has not spent nothing."""

MAX_PENDING: Final = 20_000


class Told(Value, frozen=True, kw_only=True):
    """An alert, and the quota and budget that it is about; the budget is None if it is gone."""

    quota: str
    budget: Budget | None
    alert: Alert


class Spending:
    """The ledgers of all quotas. `known` says that nothing was spent before: local mode."""

    __slots__ = (
        "_budgets",
        "_changed",
        "_ended",
        "_exhausted",
        "_exhausted_at",
        "_last_money",
        "_ledgers",
        "_of_namespace",
        "_pending",
        "_shares",
        "_unstored",
        "known",
        "users",
    )

    def __init__(self, *, known: bool) -> None:
        self.known = known
        self.users = UserMoney()
        self._ledgers: dict[str, SpendLedger] = {}
        self._budgets: dict[str, dict[str, Budget]] = {}  # by quota, then by their own names
        self._of_namespace: dict[str, frozenset[str]] = {}
        self._pending: dict[str, tuple[str, tuple[Spend, ...]]] = {}
        self._exhausted: dict[str, Exhausted] = {}
        self._shares: tuple[SpentShare, ...] = ()
        self._exhausted_at = float("-inf")
        self._last_money = LastMoney()
        self._ended: dict[str, float] = {}
        self._changed: set[str] = set()
        self._unstored: dict[str, str] = {}  # alerts that nobody may hear of yet, with their quotas

    # --- what is in force -------------------------------------------------------------------------------------------

    def configure(self, quotas: Iterable[QuotaPolicy], snapshots: Iterable[Snapshot]) -> None:
        """Learn which budgets there are, and which of them the pods of each namespace may charge."""
        quotas = tuple(quotas)
        self.users.configure(quotas)
        self._budgets = {quota.key: found for quota in quotas if (found := _budgets(quota))}
        self._of_namespace = {
            each.namespace: frozenset(name for quota in each.quotas for name in _budgets(quota)) for each in snapshots
        }
        self._exhausted_at = float("-inf")

    # --- what is stored ---------------------------------------------------------------------------------------------

    def restore(self, states: Mapping[str, LedgerState], unix_now: float) -> None:
        """Go on from what an earlier leader stored, by quota. What was reported meanwhile is counted now."""
        if self.known:
            return
        self._ledgers = {quota: SpendLedger(state) for quota, state in states.items()}
        self.known = True
        for quota, state in states.items():
            self.users.restore(quota, state.users)
        pending, self._pending = self._pending, {}
        for instance, (namespace, spends) in pending.items():
            self.report(namespace, instance, spends, unix_now)
        self._exhausted_at = float("-inf")

    def states(self) -> dict[str, LedgerState]:
        """Return what must be stored to go on from here, by quota."""
        states = {quota: ledger.state() for quota, ledger in self._ledgers.items()}
        for quota in self.users.quotas():
            state = states.get(quota, LedgerState())
            states[quota] = msgspec.structs.replace(state, users=self.users.state(quota))
        return states

    def take_changes(self) -> frozenset[str]:
        """Return the quotas whose state has changed since the last time this was asked."""
        changed, self._changed = frozenset(self._changed), set()
        return changed

    def merge(self, states: Mapping[str, LedgerState], unix_now: float) -> None:
        """Take in what somebody else has stored meanwhile, before it is written over."""
        for quota, state in states.items():
            ledger = SpendLedger(state)
            if quota in self._ledgers:
                ledger.absorb(self._ledgers[quota], unix_now)
            self._ledgers[quota] = ledger
            self._changed.add(quota)
        self._exhausted_at = float("-inf")

    def put_back(self, changes: Iterable[str]) -> None:
        """Count changes as not stored, because that failed."""
        self._changed.update(changes)

    # --- what sidecars tell -----------------------------------------------------------------------------------------

    def report(self, namespace: str, instance: str, spends: tuple[Spend, ...], unix_now: float) -> None:
        """Take the cumulative figures of one process; budgets that its namespace does not have are left out."""
        if not self.known:
            if len(self._pending) < MAX_PENDING or instance in self._pending:
                self._pending[instance] = (namespace, spends)
            return
        allowed = self._of_namespace.get(namespace, frozenset())
        tomorrow = (datetime.fromtimestamp(unix_now, UTC).date() + timedelta(days=1)).isoformat()
        by_quota: dict[str, list[Spend]] = {}
        for spend in spends:
            if spend.budget in allowed and spend.window <= tomorrow:
                by_quota.setdefault(quota_of(spend.budget), []).append(spend)
        for quota, own in by_quota.items():
            ledger = self._ledgers.get(quota)
            if ledger is None:
                ledger = self._ledgers[quota] = SpendLedger()
            if ledger.report(instance, own, unix_now):
                self._changed.add(quota)

    def report_users(self, instance: str, reports: Iterable[UserReport], unix_now: float) -> None:
        """Take what a process tells of the money of single users."""
        for each in reports if instance not in self._ended else ():
            self.users.report(instance, each, unix_now)

    def ended(self, instance: str, unix_now: float) -> None:
        """Learn that a process will report no more."""
        self._ended.setdefault(instance, unix_now)
        self._changed |= self.users.end(instance)

    def sweep(self, unix_now: float) -> None:
        """Forget the figures of processes that ended a while ago, and quotas that have been gone for long."""
        over = {instance for instance, at in self._ended.items() if unix_now - at > TOMBSTONE_SECONDS}
        if over:
            self._ended = {instance: at for instance, at in self._ended.items() if instance not in over}
            for ledger in self._ledgers.values():
                ledger.forget(over)
        oldest = (datetime.fromtimestamp(unix_now, UTC).date() - timedelta(days=KEPT_DAYS)).isoformat()
        for quota in [name for name in self._ledgers if name not in self._budgets]:
            if self._ledgers[quota].last_day() < oldest:
                del self._ledgers[quota]
                self._changed.add(quota)

    # --- what follows from it ---------------------------------------------------------------------------------------

    def exhausted(self, namespace: str, unix_now: float) -> tuple[Exhausted, ...] | None:
        """Return the spent budgets of a namespace's pods; None as long as that is not known."""
        if not self.known:
            return None
        self._look(unix_now)
        if not self._exhausted:
            return ()
        own = self._of_namespace.get(namespace, frozenset())
        return tuple(each for name, each in self._exhausted.items() if name in own)

    def shares(self, namespace: str, unix_now: float) -> tuple[SpentShare, ...]:
        """Return how much is spent of the budgets of a namespace's pods that have come to a step of theirs."""
        if not self.known:
            return ()
        self._look(unix_now)
        if not self._shares:
            return ()
        own = self._of_namespace.get(namespace, frozenset())
        return tuple(each for each in self._shares if each.budget in own)

    def _look(self, unix_now: float) -> None:
        if 0.0 <= unix_now - self._exhausted_at < FRESH_SECONDS:
            return
        self._exhausted_at = unix_now
        ledgers = [(self._ledgers[quota], own) for quota, own in self._budgets.items() if quota in self._ledgers]
        self._exhausted = {each.budget: each for ledger, own in ledgers for each in ledger.exhausted(own, unix_now)}
        self._shares = tuple(each for ledger, own in ledgers for each in ledger.shares(own, unix_now))
        left = {name: ledger.left(name, each, unix_now) for ledger, own in ledgers for name, each in own.items()}
        self._last_money.look(left, unix_now)

    def closing(self, namespace: str) -> bool:
        """Tell whether a budget of a namespace's pods will be spent within seconds."""
        closing = self._last_money.closing
        return bool(closing) and not closing.isdisjoint(self._of_namespace.get(namespace, frozenset()))

    def exhausted_users(self, scope: str, unix_now: float) -> tuple[str, ...] | None:
        """Return the users of an allocation who have spent all that they may today; None as long as that is unknown."""
        return self.users.exhausted(scope, unix_now) if self.known else None

    def budgets(self, quota: str) -> Mapping[str, Budget]:
        """Return the budgets of a quota: the whole's is named like it, an allocation's `quota/allocation`."""
        return self._budgets.get(quota, {})

    def assess(self, quota: str, unix_now: float) -> dict[str, Assessment]:
        """Return where each budget of a quota stands; nothing as long as that is not known."""
        if not self.known:
            return {}
        ledger = self._ledgers.get(quota) or SpendLedger()
        return {name: ledger.assess(name, budget, unix_now) for name, budget in self.budgets(quota).items()}

    def unusual(self, quota: str, unix_now: float) -> frozenset[str]:
        """Return the budgets of a quota whose last hour was, or present hour is, unusually expensive."""
        ledger = self._ledgers.get(quota)
        if ledger is None:
            return frozenset()
        return frozenset(name for name, each in self.budgets(quota).items() if ledger.unusual(name, each, unix_now))

    # --- alerts: decided, stored, told ------------------------------------------------------------------------------

    def decide_alerts(self, unix_now: float) -> None:
        """Decide which alerts are due. They have to be stored before they are told."""
        for quota, budgets in self._budgets.items() if self.known else ():
            ledger = self._ledgers.get(quota)
            if ledger is None:
                continue
            before = {each.id for each in ledger.alerts.pending()}
            news = [ledger.decide_alerts(name, budget, unix_now) for name, budget in budgets.items()]
            if any(news):
                self._changed.add(quota)
                self._unstored |= {each.id: quota for each in ledger.alerts.pending() if each.id not in before}

    def unstored_alerts(self) -> dict[str, str]:
        """Return the alerts that are not stored yet, by id, with their quotas: for `alerts_stored`."""
        return dict(self._unstored)

    def alerts_stored(self, alerts: Iterable[str]) -> None:
        """Learn that these alerts are stored."""
        for alert_id in alerts:
            self._unstored.pop(alert_id, None)

    def untold(self) -> tuple[Told, ...]:
        """Return the alerts that are stored and are to be told now."""
        return tuple(
            Told(quota=quota, budget=self.budgets(quota).get(alert.budget), alert=alert)
            for quota, ledger in self._ledgers.items()
            for alert in ledger.alerts.pending()
            if alert.id not in self._unstored
        )

    def told(self, told: Told) -> None:
        """Learn that an alert was told; it is not told again once that is stored."""
        ledger = self._ledgers.get(told.quota)
        if ledger is not None and ledger.alerts.told(told.alert.id):
            self._changed.add(told.quota)

    @property
    def lost_alerts(self) -> int:
        """Return how many alerts found no room among those that are to be told."""
        return sum(ledger.alerts.lost for ledger in self._ledgers.values())


def quota_of(budget: str) -> str:
    """Return the key of the quota that a budget belongs to."""
    return "/".join(budget.split("/", 2)[:2])


def _budgets(quota: QuotaPolicy) -> dict[str, Budget]:
    found: dict[str, Budget] = dict(budgets_of(quota, None))
    for allocation in quota.allocations:
        found.update(budgets_of(quota, allocation))
    return found
