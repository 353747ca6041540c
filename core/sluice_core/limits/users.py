"""Limits of single users in one pod. A user's limit holds over all pods of an allocation.

Without anybody's leave a pod may use its safe share of every user's limit: the limit divided by the number of pods, at
least one request. That costs no message, and most users need no more. A user who wants more in one pod is reported; the
leader puts it on its list (see `user_leases`), and from then on every pod may use what is leased to it there and
nothing else. Whoever hears no leader for a while goes back to the safe share: what a pod was leased ends first, in the
pods that use the user up to their safe share, and in all others when the list has run out.

Where there is no leader at all, a safe share of tokens may be too small for any call. Then one call goes all the same,
if its user has used nothing in this pod within the window. Where one is out of reach, others may hold its leases, so
that calls larger than the safe share wait for it.

Memory is bounded: the longest idle users make room, the active never do.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from sluice_core.api.quotaallocation import PerUser
from sluice_core.budget import day_of
from sluice_core.limits.keys import Dimension
from sluice_core.limits.meters import Meter
from sluice_core.limits.money import usd_micros
from sluice_core.limits.user_meters import Day, UserMoneyMeter, UserRateMeter
from sluice_core.sync import UserAnswer, UserDemand, UserLease, UserNeed, UserReport, UserSpend

MAX_REPORTED: Final = 100
"""Users beyond those of the list that one report names: those that want most."""

MAX_SPENDS: Final = 200
"""Users whose spending one report tells; the others are told next time."""

_HEARD_SECONDS: Final = 30.0
"""How long after a report that was answered the leader counts as there: as long as a lease lasts."""

_MAX_PRESSING: Final = 1000
_CANDIDATES_FOR_EVICTION: Final = 8
_OVERFLOW: Final = ""
_NOTHING: Final = (0, 0)

_Meters = tuple[UserRateMeter, UserRateMeter, UserMoneyMeter]
_Ceilings = tuple[int, int, int]  # requests, tokens, micro-dollars; 0 is no limit


def safe_share(limit: int, pods: int, least: int) -> int:
    """Return what one of so many pods may use of a user's limit without anybody's leave."""
    return max(least, limit // max(1, pods)) if limit else 0


class _Listing:
    """Who said that a user's limit is leased, until when that counts, and what was leased to this pod until when."""

    __slots__ = ("leader", "lease", "leased_until", "until")

    def __init__(self, leader: str, until: float, lease: UserLease | None, leased_until: float) -> None:
        self.leader = leader
        self.until = until
        self.lease = lease
        self.leased_until = leased_until

    def room(self, safe: tuple[int, int], now: float) -> tuple[int, int]:
        """Return the requests and tokens that may be used; once the lease has run out, no more of it than is safe."""
        if self.lease is None:
            return 0, 0
        room = self.lease.requests, self.lease.tokens
        return room if now < self.leased_until else (min(room[0], safe[0]), min(room[1], safe[1]))


class UserLimits:
    """The meters of the users of one allocation. A key is a hash; names do not come here.

    When `max_users` are active at once, all further ones together share the allowance of a single user: forgetting an
    active one would hand it a fresh allowance.
    """

    __slots__ = (
        "_alone",
        "_answered",
        "_ceilings",
        "_class_ceilings",
        "_day",
        "_exhausted",
        "_heard_at",
        "_leader",
        "_listed",
        "_max_users",
        "_money",
        "_name",
        "_open",
        "_pods",
        "_pressing",
        "_safe",
        "_scope",
        "_sole",
        "_time_zone",
        "_told",
        "_users",
    )

    def __init__(self, name: str, max_users: int) -> None:
        self._name = name
        self._max_users = max_users
        self._users: OrderedDict[str, _Meters] = OrderedDict()
        self._ceilings: _Ceilings = (0, 0, 0)
        self._class_ceilings: dict[str, _Ceilings] = {}
        self._safe: dict[_Ceilings, tuple[int, int]] = {}  # as many as there are classes
        self._money = False
        self._scope = ""
        self._pods = 1
        self._sole = True
        self._time_zone = "UTC"
        self._day = Day()
        self._forget_leader()

    def _forget_leader(self) -> None:
        self._open = self._alone = False
        self._heard_at = float("-inf")
        self._leader = ""
        self._answered = 0
        self._listed: dict[str, _Listing] = {}
        self._pressing: dict[str, None] = {}
        self._exhausted: frozenset[str] = frozenset()
        self._told: dict[str, int] = {}

    @property
    def scope(self) -> str:
        """Return the name of the allocation in reports."""
        return self._scope

    def __len__(self) -> int:
        return len(self._users)

    @property
    def active(self) -> bool:
        """Tell whether users are limited at all."""
        return any(self._ceilings) or bool(self._class_ceilings)

    # --- what is in force -------------------------------------------------------------------------------------------

    def configure(self, policy: PerUser | None, *, scope: str, pods: int, sole: bool, time_zone: str) -> None:
        """Put new limits into force; what was used stays used.

        `scope` names the allocation, `pods` how many share each limit; a `sole` pod has all of it to itself.
        """
        if scope != self._scope:
            self._forget_leader()  # of this allocation another pod may hold leases that this one does not know
        self._scope, self._pods, self._sole, self._time_zone = scope, pods, sole, time_zone
        self._ceilings = (0, 0, 0)
        self._class_ceilings = {}
        self._safe = {}
        self._money = False
        if policy is None:
            self._users.clear()
            return
        money = usd_micros(policy.daily_usd) if policy.daily_usd else 0
        requests, tokens = policy.requests_per_minute or 0, policy.tokens_per_minute or 0
        self._ceilings = (requests, tokens, money)
        self._money = bool(money)
        for each in policy.classes:
            # A class without a figure of its own keeps the general one.
            class_requests = requests if each.requests_per_minute is None else each.requests_per_minute
            class_tokens = tokens if each.tokens_per_minute is None else each.tokens_per_minute
            self._class_ceilings[each.value] = (class_requests, class_tokens, money)

    def open(self, *, alone: bool) -> None:
        """Let users have their safe share: the leader has been asked what is leased, or there is none (`alone`)."""
        self._open, self._alone = True, alone

    def begin_day(self, now: float, unix_now: float) -> None:
        """Learn which calendar day it is."""
        if self._money:
            day = day_of(unix_now, self._time_zone)
            if self._day.name and self._day.name != day.name:
                self._exhausted, self._told = frozenset(), {}
            self._day.begin(day.name, now + day.ends_at - unix_now)

    # --- one call ---------------------------------------------------------------------------------------------------

    def meters(self, user: str | None, user_class: str | None, now: float) -> tuple[Meter, ...]:
        """Return the meters of a user, with the limits of its class; none for a call that names no user."""
        ceilings = self._ceilings if user_class is None else self._class_ceilings.get(user_class, self._ceilings)
        if user is None or not any(ceilings):
            return ()
        found = self._users.get(user)
        if found is None:
            found = self._admit(user, now)
        else:
            self._users.move_to_end(user)
        self._set_room(user, found, ceilings, now)
        return found

    def known(self, user: str | None) -> tuple[Meter, ...]:
        """Return the meters of a user as they were last looked at; none if there are none."""
        return self._users.get(user, ()) if user is not None else ()

    def press(self, user: str | None) -> None:
        """Take note that a user's own limit is in the way: the next report asks for more."""
        if user is not None and not self._sole and user in self._users and len(self._pressing) < _MAX_PRESSING:
            self._pressing[user] = None

    def _set_room(self, user: str, meters: _Meters, ceilings: _Ceilings, now: float) -> None:
        requests, tokens, money = meters[0].allowance, meters[1].allowance, meters[2].allowance
        requests.ceiling, tokens.ceiling, money.ceiling = ceilings
        money.room = 0 if user in self._exhausted else ceilings[2]
        if self._sole:
            requests.room, tokens.room = ceilings[0], ceilings[1]
            return
        safe = self._safe.get(ceilings)
        if safe is None:
            shares = safe_share(ceilings[0], self._pods, 1), safe_share(ceilings[1], self._pods, 0)
            safe = self._safe[ceilings] = min(ceilings[0], shares[0]), min(ceilings[1], shares[1])
        listing = self._listed.get(user) if self._listed else None
        if listing is not None and now < listing.until:
            requests.listed = tokens.listed = True
            room = listing.room(safe, now)
            requests.room, tokens.room = min(ceilings[0], room[0]), min(ceilings[1], room[1])
        else:
            requests.listed = tokens.listed = False
            requests.room, tokens.room = safe if self._open else _NOTHING
        requests.leases = tokens.leases = now - self._heard_at <= _HEARD_SECONDS
        requests.alone = tokens.alone = self._alone

    def _admit(self, user: str, now: float) -> _Meters:
        if len(self._users) >= self._max_users and not self._evict(now):
            user = _OVERFLOW
            if user in self._users:
                return self._users[user]
        fresh = (
            UserRateMeter(name=f"{self._name}/user/{Dimension.REQUESTS.value}", dimension=Dimension.REQUESTS),
            UserRateMeter(name=f"{self._name}/user/{Dimension.TOKENS.value}", dimension=Dimension.TOKENS),
            UserMoneyMeter(name=f"{self._name}/user/{Dimension.MONEY_DAY.value}", user=user, day=self._day),
        )
        self._users[user] = fresh
        return fresh

    def _evict(self, now: float) -> bool:
        for _ in range(min(_CANDIDATES_FOR_EVICTION, len(self._users))):
            user, meters = next(iter(self._users.items()))
            if not any(meter.used(now) or meter.waiting for meter in meters):
                del self._users[user]
                return True
            self._users.move_to_end(user)  # look at others next time
        return False

    # --- the leader -------------------------------------------------------------------------------------------------

    def report(self, now: float) -> UserReport | None:
        """Return what the leader should know, None where no leader is needed.

        A user of the list who needs nothing here is left out, and its lease given up with that.
        """
        if self._sole or not self.active:
            return None
        self._listed = {user: each for user, each in self._listed.items() if now < each.until}
        listed = [demand for user in self._listed if (demand := self._demand(user, now)) is not None]
        named = {each.user for each in listed}
        for user in self._listed.keys() - named:
            self._listed[user].lease = None
        pressing = [
            demand
            for user in self._pressing
            if user not in named and (demand := self._demand(user, now)) is not None and self._presses(user, now)
        ]
        pressing.sort(key=lambda each: -max(each.requests.wanted, each.tokens.wanted))
        self._pressing = {each.user: None for each in pressing}
        demands = (*listed, *pressing[:MAX_REPORTED])
        for demand in demands:
            requests, tokens, _ = self._users[demand.user]
            requests.allowance.reported, tokens.allowance.reported = demand.requests.wanted, demand.tokens.wanted
        self._told = self._spends(now)
        return UserReport(
            scope=self._scope,
            pods=self._pods,
            leader=self._leader,
            answered=self._answered,
            demands=demands,
            day=self._day.name,
            spends=tuple(UserSpend(user=user, usd_micros=spent) for user, spent in self._told.items()),
        )

    def apply(self, answer: UserAnswer, sequence: int, *, sent_at: float, now: float) -> None:
        """Act on the answer to report number `sequence`, the latest one, which was sent at `sent_at`."""
        another = answer.leader != self._leader
        if another and self._money:
            # It has heard of nobody's money yet.
            self._day.changed.update(user for user, (_, _, money) in self._users.items() if money.used(now))
        self._open = True
        self._leader, self._answered, self._heard_at = answer.leader, sequence, sent_at
        leased_until, until = sent_at + answer.ttl_seconds, now + answer.listed_seconds
        # What another leader has listed counts until it has run out: leases that it gave may still be used.
        kept = {user: each for user, each in self._listed.items() if each.leader != answer.leader and now < each.until}
        leases = {lease.user: lease for lease in answer.leases}
        self._listed = kept | {
            user: _Listing(answer.leader, until, leases.get(user), leased_until) for user in answer.listed
        }
        for user in leases.keys() & self._users.keys():
            for meter in self._users[user][:2]:
                meter.allowance.answered = meter.allowance.reported
        if answer.exhausted is not None:
            self._exhausted = frozenset(answer.exhausted)
        if not another:
            self._forget_told(now)

    def _demand(self, user: str, now: float) -> UserDemand | None:
        meters = self._users.get(user)
        if meters is None or user == _OVERFLOW:
            return None
        requests, tokens, money = meters
        self._set_room(
            user, meters, (requests.allowance.ceiling, tokens.allowance.ceiling, money.allowance.ceiling), now
        )
        found = UserDemand(user=user, requests=_need(requests, now), tokens=_need(tokens, now))
        needed = found.requests.used or found.requests.wanted or found.tokens.used or found.tokens.wanted
        return found if needed else None

    def _presses(self, user: str, now: float) -> bool:
        """Tell whether a user whose room was just set wants more than that."""
        return any(
            meter.allowance.ceiling and meter.wanted(now) > meter.allowance.room for meter in self._users[user][:2]
        )

    def _spends(self, now: float) -> dict[str, int]:
        if not self._day.changed:
            return {}
        amounts = {user: self._users[user][2].used(now) for user in self._day.changed if user in self._users}
        amounts.pop(_OVERFLOW, None)
        return dict(sorted(amounts.items(), key=lambda each: -each[1])[:MAX_SPENDS])

    def _forget_told(self, now: float) -> None:
        for user, told in self._told.items():
            meters = self._users.get(user)
            if meters is None or meters[2].used(now) == told:
                self._day.changed.discard(user)
        self._told = {}


def _need(meter: UserRateMeter, now: float) -> UserNeed:
    allowance, used = meter.allowance, meter.used(now)
    if not allowance.ceiling:
        return UserNeed()
    return UserNeed(
        limit=allowance.ceiling,
        held=max(used, allowance.amount(now)),
        used=used,
        wanted=meter.wanted(now),
        least=meter.largest_waiting,
    )
