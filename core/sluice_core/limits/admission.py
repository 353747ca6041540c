"""Admission of one pod's calls: all limits at once, or none. The live state survives a change of policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sluice_core.api.quotaallocation import Budget, Mode, OnExhausted
from sluice_core.api.upstream import Limits, ModelLimits
from sluice_core.limits.decisions import Admitted, Ask, Obstacle, Refused, Reservation, Wait
from sluice_core.limits.keys import LEASED, Dimension, Layer, LimitKey, capacity_of, pattern_for
from sluice_core.limits.lease import Allowance
from sluice_core.limits.meters import Meter, RateMeter, SlotMeter
from sluice_core.limits.users import UserLimits
from sluice_core.selection import PodPolicy
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy
from sluice_core.sync import AllocationGauge, Demand, Exhausted, Lease

HOLD_MARGIN_SECONDS: Final = 30.0
"""How much longer than a call may take its concurrency slot is held before it comes back by itself."""
UNALLOCATED: Final = "unallocated"
_MAX_MODELS_REMEMBERED: Final = 256


class Account:
    """One upstream as this pod may use it: its meters by (model pattern, dimension), its users, its budgets."""

    __slots__ = ("_by_model", "allocation", "by_key", "key", "meters", "quota", "refused", "upstream", "users")

    def __init__(self, key: str, max_users: int) -> None:
        self.key = key
        self.upstream = UpstreamPolicy(key=key, base_url="")
        self.quota: QuotaPolicy | None = None
        self.allocation: AllocationPolicy | None = None
        self.meters: dict[tuple[str, Dimension], Meter] = {}
        self.by_key: dict[str, Meter] = {}
        self.users = UserLimits(key, max_users)
        self.refused = 0
        self._by_model: dict[str, tuple[Meter, ...]] = {}

    @property
    def allocation_name(self) -> str:
        """Return the name of the allocation that applies."""
        return self.allocation.name if self.allocation else UNALLOCATED

    @property
    def mode(self) -> Mode:
        """Return whether limits refuse or only report."""
        return self.allocation.mode if self.allocation else Mode.ENFORCE

    def configure(
        self,
        upstream: UpstreamPolicy,
        quota: QuotaPolicy | None,
        allocation: AllocationPolicy | None,
        *,
        sole: bool,
    ) -> None:
        """Put a policy into force. Windows and slots stay; a lease stays if it belongs to the same allocation."""
        moved = (allocation.name if allocation else UNALLOCATED) != self.allocation_name
        self.upstream, self.quota, self.allocation = upstream, quota, allocation
        safe = allocation.safe if allocation else Limits()
        model_safe = {row.model: row for row in allocation.model_safe} if allocation else {}
        wanted: set[tuple[str, Dimension]] = set()
        for dimension in LEASED:
            self._put("", dimension, upstream.limits, safe, sole=sole)
            wanted.add(("", dimension))
            for row in upstream.model_limits:
                row_safe = model_safe.get(row.model, ModelLimits(model=row.model))
                self._put(row.model, dimension, row, row_safe, sole=sole)
                wanted.add((row.model, dimension))
        self.meters = {place: meter for place, meter in self.meters.items() if place in wanted}
        self.by_key = {meter.name: meter for meter in self.meters.values()}
        if moved:
            for meter in self.meters.values():
                meter.allowance.drop()
        self._by_model = {}
        self.users.configure(allocation.per_user if allocation else None)

    def _put(self, model: str, dimension: Dimension, limits: Limits, safe: Limits, *, sole: bool) -> None:
        ceiling, safe_amount = capacity_of(limits, dimension), capacity_of(safe, dimension)
        key = LimitKey(upstream=self.key, allocation=self.allocation_name, dimension=dimension, model=model)
        hold_seconds = self.upstream.timeouts.total_seconds + HOLD_MARGIN_SECONDS
        meter = self.meters.get((model, dimension))
        if meter is None:
            allowance = Allowance(ceiling=ceiling, safe=safe_amount, sole=sole)
            layer = Layer.MODEL if model else Layer.ALLOCATION
            if dimension is Dimension.CONCURRENCY:
                meter = SlotMeter(name=key.text, layer=layer, allowance=allowance, hold_seconds=hold_seconds)
            else:
                meter = RateMeter(name=key.text, layer=layer, dimension=dimension, allowance=allowance)
            self.meters[model, dimension] = meter
            return
        meter.name = key.text
        meter.allowance.ceiling, meter.allowance.safe, meter.allowance.sole = ceiling, safe_amount, sole
        if isinstance(meter, SlotMeter):
            meter.slots.hold_seconds = hold_seconds

    def meters_for(self, model: str | None) -> tuple[Meter, ...]:
        """Return the meters that a call for this model goes through."""
        name = model or ""
        found = self._by_model.get(name)
        if found is None:
            pattern = pattern_for(name, self.upstream.model_limits) if name else None
            places = [("", dimension) for dimension in LEASED]
            if pattern is not None:
                places += [(pattern, dimension) for dimension in LEASED]
            # Requests and tokens of the whole are counted even without a limit: people want to see them.
            found = tuple(
                self.meters[place]
                for place in places
                if self.meters[place].allowance.ceiling or place in (("", Dimension.REQUESTS), ("", Dimension.TOKENS))
            )
            if len(self._by_model) < _MAX_MODELS_REMEMBERED:  # callers choose model names, so not without bound
                self._by_model[name] = found
        return found

    def meters_of(self, ask: Ask, now: float) -> tuple[Meter, ...]:
        """Return all meters that a call goes through, its user's first."""
        meters = self.meters_for(ask.model)
        if self.users.active:
            return (*self.users.meters(ask.user, ask.user_class, now), *meters)
        return meters


class Admission:
    """The limits of one pod. Every `now` is in monotonic seconds.

    `sole` says that there is no other pod, so that no leases are needed: local mode, tests.
    """

    __slots__ = ("_accounts", "_exhausted", "_max_users", "_next_id", "_sole")

    def __init__(self, *, sole: bool = False, max_users: int = 10_000) -> None:
        self._accounts: dict[str, Account] = {}
        self._exhausted: dict[str, float] = {}
        self._max_users = max_users
        self._next_id = 0
        self._sole = sole

    def configure(self, policy: PodPolicy) -> None:
        """Put a policy into force. What is used stays used; new limits hold at once."""
        for gone in self._accounts.keys() - policy.upstreams.keys():
            del self._accounts[gone]
        for key, upstream in policy.upstreams.items():
            account = self._accounts.setdefault(key, Account(key, self._max_users))
            quota, allocation = policy.quotas.get(key, (None, None))
            account.configure(upstream, quota, allocation, sole=self._sole)

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
        answer = self._exhaustion(account, now) or _obstruction(meters, ask, now)
        if answer is not None and account.mode is Mode.ENFORCE:
            return answer
        self._next_id += 1
        takes = []
        for meter in meters:
            amount = _amount(meter.dimension, ask)
            takes.append((meter, meter.take(amount, now), amount))
        reservation = Reservation(self._next_id, upstream, ask, takes)
        if answer is not None:
            account.refused += 1
            return Admitted(reservation=reservation, would_refuse=answer.obstacle)
        return Admitted(reservation=reservation)

    def check(self, upstream: str, ask: Ask, now: float) -> Wait | Refused | None:
        """Return what `reserve` would say against it, None if it would admit it. Nothing is reserved."""
        account = self._accounts[upstream]
        if account.mode is Mode.SHADOW:
            return None
        return self._exhaustion(account, now) or _obstruction(account.meters_of(ask, now), ask, now)

    def check_spread(self, upstream: str, ask: Ask, parts: int, now: float) -> Wait | None:
        """Return what is in the way of a call that must not use more than an even part of a minute at once."""
        account = self._accounts[upstream]
        if account.mode is Mode.SHADOW:
            return None
        for dimension in (Dimension.REQUESTS, Dimension.TOKENS):
            meter = account.meters["", dimension]
            if isinstance(meter, RateMeter) and (when := meter.spread(_amount(dimension, ask), parts, now)) > now:
                return Wait(obstacle=Obstacle(name=meter.name, layer=meter.layer, dimension=dimension), earliest=when)
        return None

    def settle(self, reservation: Reservation, *, tokens: int | None, usd_micros: int | None, now: float) -> None:
        """Replace the estimate by what was really used; None keeps the estimate. A second call does nothing."""
        if not reservation.open:
            return
        reservation.open = False
        for meter, slot, amount in reservation.takes:
            match meter.dimension:
                case Dimension.CONCURRENCY:
                    meter.adjust(slot, -amount, now)
                case Dimension.TOKENS if tokens is not None:
                    floor = 0 if meter.layer is Layer.USER else reservation.ask.floor_tokens
                    meter.adjust(slot, max(tokens, min(floor, amount)) - amount, now)
                case Dimension.MONEY_DAY if usd_micros is not None:
                    meter.adjust(slot, usd_micros - amount, now)
                case _:
                    pass

    def release(self, reservation: Reservation, now: float) -> None:
        """Give back everything: the attempt never left. A second call does nothing."""
        if not reservation.open:
            return
        reservation.open = False
        for meter, slot, amount in reservation.takes:
            meter.adjust(slot, -amount, now)

    # --- the waiting line -------------------------------------------------------------------------------------------

    def forecast(self, upstream: str, ask: Ask, ahead: Ask, now: float) -> float | None:
        """Return when `ask` may be admitted if `ahead` goes first, or None if waiting cannot help."""
        account = self._accounts[upstream]
        latest = now
        for meter in account.meters_for(ask.model):
            when = meter.forecast(_amount(meter.dimension, ahead), _amount(meter.dimension, ask), now)
            if when is None:
                return None
            latest = max(latest, when)
        for meter in account.users.meters(ask.user, ask.user_class, now):
            when = meter.earliest(_amount(meter.dimension, ask), now)
            if when is None:
                return None
            latest = max(latest, when)
        return latest

    def wait(self, upstream: str, ask: Ask) -> None:
        """Count a waiter's demand in."""
        if upstream in self._accounts:
            for meter in self._accounts[upstream].meters_for(ask.model):
                meter.wait(_amount(meter.dimension, ask))

    def stop_waiting(self, upstream: str, ask: Ask) -> None:
        """Count a waiter's demand out."""
        if upstream in self._accounts:
            for meter in self._accounts[upstream].meters_for(ask.model):
                meter.stop_waiting(_amount(meter.dimension, ask))

    def deny(self, upstream: str, ask: Ask, now: float) -> None:
        """Count a refused call, so that its demand is known to whoever leases capacity."""
        account = self._accounts[upstream]
        account.refused += 1
        for meter in account.meters_for(ask.model):
            meter.deny(_amount(meter.dimension, ask), now)

    def pace(self, upstream: str, model: str | None, pace: float) -> None:
        """Use only this part of a limit from now on, because the upstream throttles: of the model's, if it has one."""
        meters = self._accounts[upstream].meters_for(model)
        layer = Layer.MODEL if any(meter.layer is Layer.MODEL for meter in meters) else Layer.ALLOCATION
        for meter in meters:
            if meter.layer is layer:
                meter.allowance.pace = pace

    # --- leases and budgets -----------------------------------------------------------------------------------------

    def demands(self, now: float) -> tuple[Demand, ...]:
        """Return what this pod holds and wants, for the next report. The answer to it is for `apply_leases`."""
        return tuple(
            _demand(meter, now)
            for account in self._accounts.values()
            for meter in account.meters.values()
            if meter.allowance.ceiling
        )

    def apply_leases(self, leases: Sequence[Lease], *, sent_at: float) -> None:
        """Put leases into force. `sent_at` is when the report was sent that they answer; it must be the latest one."""
        meters = {name: meter for account in self._accounts.values() for name, meter in account.by_key.items()}
        for lease in leases:
            meter = meters.get(lease.limit)
            if meter is not None:
                meter.allowance.grant(lease.amount, sent_at + lease.ttl_seconds)

    def apply_exhausted(self, exhausted: Iterable[Exhausted], *, now: float, unix_now: float) -> None:
        """Replace the set of spent budgets. Their names are those of `budget_names`."""
        self._exhausted = {each.budget: now + (each.until - unix_now) for each in exhausted}

    def exhausted_budget(self, upstream: str, now: float) -> tuple[Budget, float] | None:
        """Return the spent budget of calls to this upstream, and until when; one that rejects comes first."""
        account = self._accounts[upstream]
        found: tuple[Budget, float] | None = None
        for name, budget in budgets_of(account.quota, account.allocation).items():
            until = self._exhausted.get(name)
            if until is not None and until > now and (found is None or budget.on_exhausted is OnExhausted.REJECT):
                found = budget, until
        return found

    def gauges(self, now: float) -> tuple[AllocationGauge, ...]:
        """Return the state of every account for the control plane. `refused` is cumulative."""
        return tuple(
            AllocationGauge(
                quota=account.quota.key if account.quota else account.key,
                allocation=account.allocation_name,
                used_requests=account.meters["", Dimension.REQUESTS].used(now),
                used_tokens=account.meters["", Dimension.TOKENS].used(now),
                waiting=account.meters["", Dimension.REQUESTS].waiting,
                refused=account.refused,
            )
            for account in self._accounts.values()
        )

    def _exhaustion(self, account: Account, now: float) -> Refused | None:
        if not self._exhausted:
            return None
        found = self.exhausted_budget(account.key, now)
        if found is None or found[0].on_exhausted is not OnExhausted.REJECT:
            return None
        name = f"{account.key}/{account.allocation_name}/budget"
        obstacle = Obstacle(name=name, layer=Layer.BUDGET, dimension=Dimension.MONEY_DAY)
        return Refused(reason="budget_exhausted", obstacle=obstacle, retry_at=found[1])


def budgets_of(quota: QuotaPolicy | None, allocation: AllocationPolicy | None) -> Mapping[str, Budget]:
    """Return the budgets that a call is charged to, by name: the whole's is `quota`, an allocation's `quota/name`."""
    found: dict[str, Budget] = {}
    if quota is not None and quota.budget is not None:
        found[quota.key] = quota.budget
    if quota is not None and allocation is not None and allocation.budget is not None:
        found[f"{quota.key}/{allocation.name}"] = allocation.budget
    return found


def _obstruction(meters: tuple[Meter, ...], ask: Ask, now: float) -> Wait | Refused | None:
    worst: Wait | None = None
    for meter in meters:
        amount = _amount(meter.dimension, ask)
        if meter.fits(amount, now):
            continue
        obstacle = Obstacle(name=meter.name, layer=meter.layer, dimension=meter.dimension)
        earliest = meter.earliest(amount, now)
        if earliest is None:
            return Refused(reason="too_large", obstacle=obstacle)
        if worst is None or earliest > worst.earliest:
            worst = Wait(obstacle=obstacle, earliest=earliest)
    return worst


def _amount(dimension: Dimension, ask: Ask) -> int:
    match dimension:
        case Dimension.TOKENS:
            return ask.tokens
        case Dimension.MONEY_DAY:
            return ask.usd_micros
        case Dimension.CONCURRENCY:
            return 1 if ask.requests else 0
        case _:
            return ask.requests


def _demand(meter: Meter, now: float) -> Demand:
    allowance = meter.allowance
    used, wanted = meter.used(now), meter.wanted(now)
    allowance.reported = wanted
    return Demand(
        limit=meter.name,
        held=max(used, allowance.leased(now), allowance.safe),
        used=used,
        wanted=wanted,
        safe=allowance.safe,
        least=meter.largest_waiting,
    )
