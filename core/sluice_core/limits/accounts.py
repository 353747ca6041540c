"""One upstream as one pod may use it. The live state survives a change of policy by identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sluice_core.api.quotaallocation import Budget, Mode, StoreType
from sluice_core.api.upstream import Limits, ModelLimits
from sluice_core.ladder import Ladder, ladder_of
from sluice_core.limits.decisions import Ask
from sluice_core.limits.keys import LEASED, Dimension, Layer, LimitKey, capacity_of, pattern_for
from sluice_core.limits.lease import Allowance
from sluice_core.limits.meters import AHEAD_SECONDS, Meter, RateMeter, SlotMeter
from sluice_core.limits.users import UserLimits
from sluice_core.limits.window import SlidingWindow
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy, UpstreamPolicy

HOLD_MARGIN_SECONDS: Final = 30.0
"""How much longer than a call may take its concurrency slot is held before it comes back by itself."""
UNALLOCATED: Final = "unallocated"
_AHEAD_OF_STORE_SECONDS: Final = 2.0
"""How far ahead demand is told to another store than the leader: pods call it every second, and sooner if they wait."""
_MAX_MODELS_REMEMBERED: Final = 256


class Account:
    """One upstream as this pod may use it: its meters by (model pattern, dimension), its users, its budgets."""

    __slots__ = (
        "_by_model",
        "allocation",
        "by_key",
        "key",
        "ladder",
        "meters",
        "quota",
        "refusals",
        "upstream",
        "users",
    )

    def __init__(self, key: str, max_users: int) -> None:
        self.key = key
        self.upstream = UpstreamPolicy(key=key, base_url="")
        self.quota: QuotaPolicy | None = None
        self.allocation: AllocationPolicy | None = None
        self.meters: dict[tuple[str, Dimension], Meter] = {}
        self.by_key: dict[str, Meter] = {}
        self.users = UserLimits(key, max_users)
        self.ladder = Ladder()
        self.refusals = SlidingWindow(60.0, 1.0)
        """Calls that were refused, or would have been."""
        self._by_model: dict[str, tuple[Meter, ...]] = {}

    @property
    def allocation_name(self) -> str:
        """Return the name of the allocation that applies."""
        return self.allocation.name if self.allocation else UNALLOCATED

    @property
    def mode(self) -> Mode:
        """Return whether limits refuse or only report."""
        return self.allocation.mode if self.allocation else Mode.ENFORCE

    @property
    def store(self) -> StoreType:
        """Return where capacity is leased from."""
        return self.quota.store.type if self.quota else StoreType.LEASES

    def leased_elsewhere(self, dimension: Dimension, now: float) -> int:
        """Return what another store than the leader has granted of the whole, 0 if there is none."""
        return 0 if self.store is StoreType.LEASES else self.meters["", dimension].allowance.leased(now)

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
        self.ladder = ladder_of(quota, allocation)
        only_pod = sole
        sole = sole and self.store is StoreType.LEASES  # whoever names another store shares the account
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
        ahead = AHEAD_SECONDS if self.store is StoreType.LEASES else _AHEAD_OF_STORE_SECONDS
        for meter in self.meters.values():
            meter.ahead_seconds = ahead
        if moved:
            for meter in self.meters.values():
                meter.allowance.drop()
        self._by_model = {}
        self.users.configure(
            allocation.per_user if allocation else None,
            scope=f"{quota.key}/{allocation.name}" if quota and allocation else "",
            pods=allocation.pods if allocation else 1,
            sole=only_pod,
            time_zone=zone_of(quota, allocation),
        )

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
        meter.allowance.configure(ceiling=ceiling, safe=safe_amount, sole=sole)
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

    def known_meters(self, ask: Ask) -> tuple[Meter, ...]:
        """Return the meters of a call that has asked before: those of its user as they were looked at then."""
        return (*self.users.known(ask.user), *self.meters_for(ask.model))

    def meters_of(self, ask: Ask, now: float) -> tuple[Meter, ...]:
        """Return all meters that a call goes through, its user's first."""
        meters = self._by_model.get(ask.model or "") or self.meters_for(ask.model)
        if ask.user is None:
            return meters
        return self.users.meters(ask.user, ask.user_class, now) + meters


def zone_of(quota: QuotaPolicy | None, allocation: AllocationPolicy | None) -> str:
    """Return the time zone whose days count for the money of users: that of the budget, the allocation's first."""
    budget = (allocation.budget if allocation else None) or (quota.budget if quota else None)
    return budget.time_zone if budget else "UTC"


def budgets_of(quota: QuotaPolicy | None, allocation: AllocationPolicy | None) -> Mapping[str, Budget]:
    """Return the budgets that a call is charged to, by name: the whole's is `quota`, an allocation's `quota/name`."""
    found: dict[str, Budget] = {}
    if quota is not None and quota.budget is not None:
        found[quota.key] = quota.budget
    if quota is not None and allocation is not None and allocation.budget is not None:
        found[f"{quota.key}/{allocation.name}"] = allocation.budget
    return found
