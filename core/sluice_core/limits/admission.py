"""Admission of one pod's calls: all limits at once, or none. The live state survives a change of policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sluice_core.api.degradation import Level
from sluice_core.api.quotaallocation import Budget, Mode, OnExhausted, StoreType
from sluice_core.ladder import Standing, standing
from sluice_core.limits.accounts import UNALLOCATED, Account, budgets_of
from sluice_core.limits.decisions import Admitted, Ask, Obstacle, Refused, Reservation, Wait
from sluice_core.limits.demand import demands_of, left_behind, reported
from sluice_core.limits.keys import LEASED, Dimension, Layer, pattern_for
from sluice_core.limits.meters import AHEAD_SECONDS, REQUEST_UNIT, SLOT_UNIT, Meter, RateMeter, SlotMeter
from sluice_core.limits.spent_budgets import SpentBudgets
from sluice_core.selection import PodPolicy
from sluice_core.sync import AllocationGauge, Demand, Exhausted, Lease, SpentShare, UserAnswer, UserReport

_MAX_RETIRED = 64
_ANSWER_SECONDS = 0.5
"""How long the answer to a report takes, as a rule."""
_ONE_MORE = (1, 1, 1, 0, 1)
"""Of each unit but slots: what an answer within a call uses at least."""
_MAX_OPEN = 65_536
"""Calls that are remembered as not over; more at once no process can have."""

__all__ = ["UNALLOCATED", "Account", "Admission", "budgets_of"]


class Admission:
    """The limits of one pod. Every `now` is in monotonic seconds.

    `sole` says that there is no other pod, so that no leases are needed: local mode, tests.
    """

    __slots__ = ("_accounts", "_max_users", "_next_id", "_open", "_retired", "_sole", "_spent", "degraded")

    def __init__(self, *, sole: bool = False, max_users: int = 10_000) -> None:
        self._accounts: dict[str, Account] = {}
        self._spent = SpentBudgets()
        self.degraded = False
        """Whether any account at all may stand below the full service."""
        self._max_users = max_users
        self._next_id = 0
        self._open: dict[int, Reservation] = {}  # calls that are not over, oldest first
        self._retired: dict[str, Account] = {}  # an upstream that comes back finds its use again
        self._sole = sole

    def configure(self, policy: PodPolicy) -> None:
        """Put a policy into force. What is used stays used; new limits hold at once."""
        for gone in self._accounts.keys() - policy.upstreams.keys():
            self._retired[gone] = self._accounts.pop(gone)
        while len(self._retired) > _MAX_RETIRED:
            del self._retired[next(iter(self._retired))]
        for key, upstream in policy.upstreams.items():
            account = self._accounts.get(key) or self._retired.pop(key, None) or Account(key, self._max_users)
            self._accounts[key] = account
            quota, allocation = policy.quotas.get(key, (None, None))
            account.configure(upstream, quota, allocation, sole=self._sole)
        self._note_degraded()

    def knows(self, upstream: str) -> bool:
        """Tell whether the policy has this upstream."""
        return upstream in self._accounts

    def account(self, upstream: str) -> Account:
        """Return the account of an upstream.

        Raises:
            KeyError: the policy has no such upstream.
        """
        return self._accounts[upstream]

    # --- one call ---------------------------------------------------------------------------------------------------

    def reserve(self, upstream: str, ask: Ask, now: float) -> Admitted | Wait | Refused:
        """Reserve everything that an attempt needs, or nothing. In Shadow mode it is always everything."""
        account = self._accounts[upstream]
        meters = account.meters_of(ask, now)
        amounts = ask.amounts
        exhausted = self._exhaustion(account, now) if self._spent.any_exhausted else None
        slots = _take_all(meters, amounts, now) if exhausted is None else None
        answer = None
        if slots is None:
            answer = exhausted or _obstruction(meters, amounts, now)
            if isinstance(answer, Wait) and answer.obstacle.layer is Layer.USER:
                account.users.press(ask.user)
            if answer is not None and account.mode is Mode.ENFORCE:
                return answer
            slots = [meter.take(amounts[meter.unit], now) for meter in meters]
        self._next_id += 1
        reservation = self._open[self._next_id] = Reservation(self._next_id, upstream, ask, amounts, meters, slots)
        if answer is not None:
            account.refusals.take(1, now)
            return Admitted(reservation=reservation, would_refuse=answer.obstacle)
        return Admitted(reservation=reservation)

    def check(self, upstream: str, ask: Ask, now: float) -> Wait | Refused | None:
        """Return what `reserve` would say against it, None if it would admit it. Nothing is reserved."""
        account = self._accounts[upstream]
        if account.mode is Mode.SHADOW:
            return None
        return self._exhaustion(account, now) or _obstruction(account.meters_of(ask, now), ask.amounts, now)

    def check_spread(self, upstream: str, ask: Ask, parts: int, now: float) -> Wait | None:
        """Return what is in the way of a call that must not use more than an even part of a minute at once."""
        account = self._accounts[upstream]
        if account.mode is Mode.SHADOW:
            return None
        for dimension in (Dimension.REQUESTS, Dimension.TOKENS):
            meter = account.meters["", dimension]
            if isinstance(meter, RateMeter) and (when := meter.spread(ask.amounts[meter.unit], parts, now)) > now:
                return Wait(obstacle=Obstacle(name=meter.name, layer=meter.layer, dimension=dimension), earliest=when)
        return None

    def settle(self, reservation: Reservation, *, tokens: int | None, usd_micros: int | None, now: float) -> None:
        """Replace the estimate by what was really used; None keeps the estimate. A second call does nothing."""
        if not reservation.open:
            return
        reservation.open = False
        self._open.pop(reservation.id, None)
        _, reserved, priced, slots, _ = reservation.amounts
        more_money = 0 if usd_micros is None else usd_micros - priced
        more_tokens = of_user = 0
        if tokens is not None:
            of_user = max(0, tokens) - reserved
            more_tokens = max(min(reservation.ask.floor_tokens, reserved), tokens) - reserved
        # By unit. A request is one, whatever came of it.
        changes = (0, more_tokens, more_money, -slots, of_user)
        for meter, slot in zip(reservation.meters, reservation.slots, strict=True):
            change = changes[meter.unit]
            if change:
                meter.adjust(slot, change, now)

    def release(self, reservation: Reservation, now: float) -> None:
        """Give back everything: the attempt never left. A second call does nothing."""
        if not reservation.open:
            return
        reservation.open = False
        self._open.pop(reservation.id, None)
        for meter, slot in zip(reservation.meters, reservation.slots, strict=True):
            meter.adjust(slot, -reservation.amounts[meter.unit], now)

    # --- one call that goes on: a conversation over a WebSocket

    def go_on(self, reservation: Reservation, now: float) -> Wait | Refused | None:
        """Count one more answer within a call that goes on and return None, or return what is in the way of it."""
        account = self._accounts.get(reservation.upstream)
        if account is None:
            return None
        meters = [meter for meter in account.meters_of(reservation.ask, now) if meter.unit != SLOT_UNIT]
        answer = self._exhaustion(account, now) or _obstruction(tuple(meters), _ONE_MORE, now)
        if answer is not None:
            account.refusals.take(1, now)
            if account.mode is Mode.ENFORCE:
                return answer
        for meter in meters:
            if meter.unit == REQUEST_UNIT:
                meter.take(1, now)
        return None

    def charge(self, reservation: Reservation, *, tokens: int, usd_micros: int, now: float) -> None:
        """Charge what a call that goes on has used so far, in all; `settle` charges the rest."""
        if not reservation.open:
            return
        for meter, slot in zip(reservation.meters, reservation.slots, strict=True):
            if isinstance(meter, SlotMeter):
                meter.slots.renew(slot, now)
        before = reservation.amounts
        requests, known_tokens, known_usd, slots, known_of_user = before
        after = (requests, max(tokens, known_tokens), max(usd_micros, known_usd), slots, max(tokens, known_of_user))
        for meter in reservation.meters:
            if more := after[meter.unit] - before[meter.unit]:
                meter.take(more, now)
        reservation.amounts = after

    # --- the waiting line -------------------------------------------------------------------------------------------

    def forecast(self, upstream: str, ask: Ask, ahead: Ask, now: float) -> float | None:
        """Return when `ask` may be admitted if `ahead` goes first, or None if waiting cannot help."""
        account = self._accounts[upstream]
        latest = now
        for meter in account.meters_for(ask.model):
            when = meter.forecast(ahead.amounts[meter.unit], ask.amounts[meter.unit], now)
            if when is None:
                return None
            latest = max(latest, when)
        for meter in account.users.meters(ask.user, ask.user_class, now):
            when = meter.earliest(ask.amounts[meter.unit], now)
            if when is None:
                return None
            latest = max(latest, when)
        return latest

    def wait(self, upstream: str, ask: Ask) -> None:
        """Count a waiter's demand in."""
        if upstream in self._accounts:
            for meter in self._accounts[upstream].known_meters(ask):
                meter.wait(ask.amounts[meter.unit])

    def stop_waiting(self, upstream: str, ask: Ask) -> None:
        """Count a waiter's demand out."""
        if upstream in self._accounts:
            for meter in self._accounts[upstream].known_meters(ask):
                meter.stop_waiting(ask.amounts[meter.unit])

    def dismiss(self, upstream: str, now: float) -> None:
        """Count a refused call that no capacity could help: too large, or its money is spent."""
        account = self._accounts.get(upstream)
        if account is not None:
            account.refusals.take(1, now)

    def deny(self, upstream: str, ask: Ask, now: float) -> None:
        """Count a refused call, so that its demand is known to whoever leases capacity."""
        account = self._accounts.get(upstream)
        if account is None:
            return
        account.refusals.take(1, now)
        for meter in account.known_meters(ask):
            meter.deny(ask.amounts[meter.unit], now)

    def paced_limit(self, upstream: str, model: str | None) -> str:
        """Return which limit is slowed down when calls of a model are throttled: its own pattern, "" for the whole."""
        account = self._accounts[upstream]
        pattern = pattern_for(model, account.upstream.model_limits) if model else None
        own = pattern is not None and any(account.meters[pattern, each].allowance.ceiling for each in LEASED)
        return pattern if own and pattern is not None else ""

    def pace(self, upstream: str, pattern: str, pace: float) -> None:
        """Use only this part of a limit from now on, because the upstream throttles; see `paced_limit`."""
        account = self._accounts[upstream]
        for dimension in LEASED:
            meter = account.meters.get((pattern, dimension))
            if meter is not None:
                meter.allowance.slow_down(pace)

    def governs(self, upstream: str, model: str | None, dimension: Dimension) -> bool:
        """Tell whether a limit in this dimension is declared for calls of a model."""
        meters = self._accounts[upstream].meters_for(model)
        return any(meter.dimension is dimension and meter.allowance.ceiling for meter in meters)

    # --- leases and budgets -----------------------------------------------------------------------------------------

    def demands(self, now: float) -> tuple[Demand, ...]:
        """Return what this pod holds and wants, for the next report. The answer to it is for `apply_leases`.

        Accounts that are kept in another store are left out: their leases come from there.
        """
        while len(self._open) > _MAX_OPEN:  # never, unless somebody forgets to settle
            del self._open[next(iter(self._open))]
        open_calls: dict[str, list[Reservation]] = {}
        for call in self._open.values():
            open_calls.setdefault(call.upstream, []).append(call)
        accounts = (account for account in self._accounts.values() if account.store is StoreType.LEASES)
        return tuple(
            demand for account in accounts for demand in reported(account, now, open_calls.get(account.key, ()))
        )

    def last_demands(self, now: float) -> tuple[Demand, ...]:
        """Return what this pod leaves behind when it ends: it uses nothing more. No lease answers it."""
        accounts = (account for account in self._accounts.values() if account.store is StoreType.LEASES)
        return tuple(demand for account in accounts for demand in left_behind(account, now))

    def demands_of(self, upstream: str, now: float) -> tuple[Demand, ...]:
        """Return what this pod holds and wants of one account, for whoever leases it."""
        open_calls = (each for each in self._open.values() if each.upstream == upstream)
        return reported(self._accounts[upstream], now, open_calls)

    def limits(self, now: float) -> tuple[Demand, ...]:
        """Return what this pod holds and wants of every account, for people. It is no report: no lease answers it."""
        return tuple(demand for account in self._accounts.values() for demand in demands_of(account, now))

    def apply_leases(self, leases: Sequence[Lease], *, sent_at: float, interval_seconds: float | None = None) -> None:
        """Put leases into force. `sent_at` is when the report was sent that they answer; it must be the latest one.

        `interval_seconds` is when the next report is due: demand is told as far ahead as until the answer to that.
        """
        meters = {name: meter for account in self._accounts.values() for name, meter in account.by_key.items()}
        for lease in leases:
            meter = meters.get(lease.limit)
            if meter is not None:
                meter.allowance.grant(lease.amount, sent_at + lease.ttl_seconds, short=lease.short)
                if interval_seconds is not None:
                    meter.ahead_seconds = min(AHEAD_SECONDS, interval_seconds + _ANSWER_SECONDS)

    def user_reports(self, now: float) -> tuple[UserReport, ...]:
        """Return what the leader should know of single users. The answer to it is for `apply_users`."""
        return tuple(report for account in self._accounts.values() if (report := account.users.report(now)) is not None)

    def apply_users(self, answers: Sequence[UserAnswer], *, sequence: int, sent_at: float, now: float) -> None:
        """Put the answer to report number `sequence` into force; it must be the latest one, sent at `sent_at`."""
        by_scope = {answer.scope: answer for answer in answers}
        for account in self._accounts.values():
            answer = by_scope.get(account.users.scope)
            if answer is not None:
                account.users.apply(answer, sequence, sent_at=sent_at, now=now)
        self.open_users()

    def open_users(self, *, alone: bool = False) -> None:
        """Let users have their safe share: the leader was asked what is leased or cannot be; `alone`: there is none."""
        for account in self._accounts.values():
            account.users.open(alone=alone)

    def begin_days(self, now: float, unix_now: float) -> None:
        """Learn which calendar day it is, where money of users is counted. Ask at least every second."""
        for account in self._accounts.values():
            account.users.begin_day(now, unix_now)

    def apply_exhausted(
        self, exhausted: Iterable[Exhausted], spent: Iterable[SpentShare] = (), *, now: float, unix_now: float
    ) -> None:
        """Replace what is known of spent budgets. Their names are those of `budgets_of`."""
        self._spent.apply(exhausted, spent, now=now, unix_now=unix_now)
        self._note_degraded()

    def exhausted_budget(self, upstream: str, now: float) -> tuple[Budget, float] | None:
        """Return the spent budget of calls to this upstream, and until when; one that rejects comes first."""
        return self._spent.exhausted(self._accounts[upstream], now) if self._spent.any_exhausted else None

    def standing(self, upstream: str, now: float, open_until: float | None = None) -> Standing:
        """Return the level of service of calls to this upstream, as `ladder.standing` does."""
        account = self._accounts[upstream]
        return standing(account.ladder, self._spent.of(account, now), open_until)

    def levels(self, now: float) -> dict[str, Standing]:
        """Return how accounts stand that are below the full service, for people: by upstream."""
        found = {key: self.standing(key, now) for key in self._accounts} if self.degraded else {}
        return {key: each for key, each in found.items() if each.level is not Level.FULL}

    def _note_degraded(self) -> None:
        by_hand = any(each.ladder.by_hand is not Level.FULL for each in self._accounts.values())
        self.degraded = by_hand or self._spent.anything

    def gauges(self, now: float) -> tuple[AllocationGauge, ...]:
        """Return the state of every account for the control plane; all figures are of the last minute."""
        return tuple(
            AllocationGauge(
                quota=account.quota.key if account.quota else account.key,
                allocation=account.allocation_name,
                used_requests=account.meters["", Dimension.REQUESTS].used(now),
                used_tokens=account.meters["", Dimension.TOKENS].used(now),
                waiting=account.meters["", Dimension.REQUESTS].waiting,
                refused=account.refusals.expire(now),
                granted_requests=account.leased_elsewhere(Dimension.REQUESTS, now),
                granted_tokens=account.leased_elsewhere(Dimension.TOKENS, now),
            )
            for account in self._accounts.values()
        )

    def _exhaustion(self, account: Account, now: float) -> Refused | None:
        found = self.exhausted_budget(account.key, now)
        if found is None or found[0].on_exhausted is not OnExhausted.REJECT:
            return None
        name = f"{account.key}/{account.allocation_name}/budget"
        obstacle = Obstacle(name=name, layer=Layer.BUDGET, dimension=Dimension.MONEY_DAY)
        return Refused(reason="budget_exhausted", obstacle=obstacle, retry_at=found[1])


def _take_all(meters: tuple[Meter, ...], amounts: tuple[int, ...], now: float) -> list[int] | None:
    """Take from every meter and return the slots; None, with nothing taken, if it does not fit into one of them."""
    slots: list[int] = []
    for meter in meters:
        slot = meter.take_if_fits(amounts[meter.unit], now)
        if slot is None:
            for before, taken in zip(meters, slots, strict=False):
                before.untake(taken, amounts[before.unit], now)
            return None
        slots.append(slot)
    return slots


def _obstruction(meters: tuple[Meter, ...], amounts: tuple[int, ...], now: float) -> Wait | Refused | None:
    worst: Wait | None = None
    for meter in meters:
        amount = amounts[meter.unit]
        if meter.fits(amount, now):
            continue
        obstacle = Obstacle(name=meter.name, layer=meter.layer, dimension=meter.dimension)
        earliest = meter.earliest(amount, now)
        if earliest is None:
            return Refused(reason="too_large", obstacle=obstacle)
        if worst is None or earliest > worst.earliest:
            worst = Wait(obstacle=obstacle, earliest=earliest)
    return worst
