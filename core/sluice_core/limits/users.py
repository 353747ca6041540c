"""Limits of single users, counted by this pod. Bounded: the longest idle make room, the active never do."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from sluice_core.api.quotaallocation import PerUser
from sluice_core.limits.keys import Dimension, Layer
from sluice_core.limits.lease import Allowance
from sluice_core.limits.meters import RateMeter
from sluice_core.limits.money import usd_micros

_DIMENSIONS: Final = (Dimension.REQUESTS, Dimension.TOKENS, Dimension.MONEY_DAY)
_CANDIDATES_FOR_EVICTION: Final = 8
_OVERFLOW: Final = ""


class UserLimits:
    """The meters of the users of one allocation. A key is a hash; names do not come here.

    When `max_users` are active at once, all further ones together share the allowance of a single user: forgetting an
    active one would hand it a fresh allowance.
    """

    __slots__ = ("_ceilings", "_class_ceilings", "_max_users", "_name", "_users")

    def __init__(self, name: str, max_users: int) -> None:
        self._name = name
        self._max_users = max_users
        self._users: OrderedDict[str, tuple[RateMeter, ...]] = OrderedDict()
        self._ceilings = (0, 0, 0)
        self._class_ceilings: dict[str, tuple[int, int, int]] = {}

    def __len__(self) -> int:
        return len(self._users)

    @property
    def active(self) -> bool:
        """Tell whether users are limited at all."""
        return any(self._ceilings) or bool(self._class_ceilings)

    def configure(self, policy: PerUser | None) -> None:
        """Put new limits into force; what was used stays used."""
        self._ceilings = (0, 0, 0)
        self._class_ceilings = {}
        if policy is None:
            self._users.clear()
            return
        money = usd_micros(policy.daily_usd) if policy.daily_usd else 0
        requests, tokens = policy.requests_per_minute or 0, policy.tokens_per_minute or 0
        self._ceilings = (requests, tokens, money)
        for each in policy.classes:
            # A class without a figure of its own keeps the general one.
            class_requests = requests if each.requests_per_minute is None else each.requests_per_minute
            class_tokens = tokens if each.tokens_per_minute is None else each.tokens_per_minute
            self._class_ceilings[each.value] = (class_requests, class_tokens, money)

    def meters(self, user: str | None, user_class: str | None, now: float) -> tuple[RateMeter, ...]:
        """Return the meters of a user, with the limits of its class; none for a call that names no user."""
        ceilings = self._ceilings if user_class is None else self._class_ceilings.get(user_class, self._ceilings)
        if user is None or not any(ceilings):
            return ()
        found = self._users.get(user)
        if found is None:
            found = self._admit(user, now)
        else:
            self._users.move_to_end(user)
        for meter, ceiling in zip(found, ceilings, strict=True):
            meter.allowance.ceiling = ceiling
        return found

    def _admit(self, user: str, now: float) -> tuple[RateMeter, ...]:
        if len(self._users) >= self._max_users and not self._evict(now):
            user = _OVERFLOW
            if user in self._users:
                return self._users[user]
        fresh = tuple(
            RateMeter(
                name=f"{self._name}/user/{dimension.value}",
                layer=Layer.USER,
                dimension=dimension,
                allowance=Allowance(ceiling=0, safe=0, sole=True),
            )
            for dimension in _DIMENSIONS
        )
        self._users[user] = fresh
        return fresh

    def _evict(self, now: float) -> bool:
        for _ in range(min(_CANDIDATES_FOR_EVICTION, len(self._users))):
            user, meters = next(iter(self._users.items()))
            if not any(meter.used(now) for meter in meters):
                del self._users[user]
                return True
            self._users.move_to_end(user)  # look at others next time
        return False
