"""The leader's side of users' limits: a list of those who want more in one pod than its safe share, and their leases.

Every pod of an allocation may use a safe share of every user's limit without asking. A user who wants more somewhere is
put on the list; each answer tells the whole list. A pod that has heard of it may use no more of such a user than is
leased to it, so what it might have used becomes free: but only once it has said that it heard, and only for as long as
it cannot have gone back to its safe share meanwhile. Until then its safe share counts as held, and so does that of pods
that are known to exist and were never heard of. What is free is leased by the rules of `holdings`, like an account's.

The list is bounded. A user who finds no place on it keeps to the safe share in every pod: less than its limit in one
of them, never more than it in all. Where there are more pods than a limit has requests, the safe shares alone add up to
more than the limit, for each is at least one: that many requests a minute are the bound of users who reach every pod.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from sluice_core.api.quotaallocation import PerUser, UserClass
from sluice_core.limits.holdings import Ledger, with_slack
from sluice_core.limits.keys import SLOT_SECONDS, WINDOW_SECONDS, Dimension
from sluice_core.limits.safe import rounded_up
from sluice_core.limits.shares import Share
from sluice_core.limits.users import safe_share
from sluice_core.snapshot import AllocationPolicy, QuotaPolicy
from sluice_core.sync import Demand, UserAnswer, UserDemand, UserLease, UserNeed, UserReport

LEASE_SECONDS: Final = 30.0
LISTED_SECONDS: Final = 120.0
"""How long a pod obeys a list, from when it arrives."""

MAX_LISTED: Final = 200
"""Users of one allocation whose limits are leased at once."""

NEWS_SECONDS: Final = 10.0
"""How long after a change of a list pods should report often, so that all hear of it and say so."""

_WINDOW_SECONDS: Final = WINDOW_SECONDS[Dimension.REQUESTS] + SLOT_SECONDS[Dimension.REQUESTS]
# What is leased now may be used for a lease and counts for a window after it. So long the list must still be obeyed.
_ASSURED_SECONDS: Final = LISTED_SECONDS / 1.01 - with_slack(LEASE_SECONDS + _WINDOW_SECONDS)
_FORGET_SECONDS: Final = 300.0
_VIEW_SECONDS: Final = 1.0
_FEW: Final = 32
_ANSWERS_KEPT: Final = 4
_REPORTS_PER_SECOND: Final = 200
_SHARES: Final = (Share(name="", percent=100),)
_LEAST: Final = (1, 0)  # of a safe share of requests, of tokens


class _Member:
    """One process that reports on an allocation. `number` is that of the list it has confirmed, as of `assured_at`."""

    __slots__ = ("answers", "assured_at", "heard_at", "holds", "number", "over_at", "pods", "sequence")

    def __init__(self) -> None:
        self.pods = 1
        self.sequence = -1
        self.number = 0
        self.assured_at = float("-inf")
        self.heard_at = 0.0
        self.over_at = float("inf")
        self.holds: set[str] = set()
        self.answers: dict[int, tuple[float, int]] = {}  # by sequence: when it was given, and the list's number

    def hear(self, report: UserReport, leader: str, now: float) -> None:
        """Take note of a report, and of the answer that it confirms."""
        self.heard_at, self.pods = now, max(1, report.pods)
        confirmed = self.answers.get(report.answered) if report.leader == leader else None
        if confirmed is not None:
            self.assured_at, self.number = confirmed
        recent = sorted(self.answers)[-_ANSWERS_KEPT:]
        self.answers = {sequence: self.answers[sequence] for sequence in recent}

    def obeys(self, now: float) -> int:
        """Return up to which list the process obeys for as long as a lease that is given now may count."""
        sure = now - self.assured_at <= _ASSURED_SECONDS or self.over_at < float("inf")
        return self.number if sure else 0


class _Listed:
    """A user whose limit is leased. `number` is that of the first list that had it."""

    __slots__ = ("ledgers", "number")

    def __init__(self, number: int, learning_until: float) -> None:
        self.number = number
        self.ledgers = (Ledger(_WINDOW_SECONDS, learning_until), Ledger(_WINDOW_SECONDS, learning_until))


class _Scope:
    """The users of one allocation."""

    __slots__ = (
        "_alive",
        "_behind",
        "_learning_until",
        "_viewed_at",
        "limits",
        "listed",
        "members",
        "news_at",
        "number",
        "pods",
    )

    def __init__(self, learning_until: float) -> None:
        self.limits = (0, 0)
        self.pods = 0
        self.members: dict[str, _Member] = {}
        self.listed: dict[str, _Listed] = {}
        self.number = 0
        self.news_at = float("-inf")
        self._learning_until = learning_until
        self._alive = 0
        self._behind: list[tuple[int, int, str]] = []
        self._viewed_at = float("-inf")

    def configure(self, pods: int, policy: PerUser) -> None:
        rows: tuple[PerUser | UserClass, ...] = (policy, *policy.classes)
        self.limits = (
            max(each.requests_per_minute or 0 for each in rows),
            max(each.tokens_per_minute or 0 for each in rows),
        )
        self.pods = pods

    def look(self, now: float) -> None:
        """Forget who is over, and see up to which list each member is known to obey, and who needs no list any more."""
        if len(self.members) > _FEW and now - self._viewed_at < _VIEW_SECONDS:
            return
        self._viewed_at = now
        self.members = {
            name: each
            for name, each in self.members.items()
            if now < each.over_at and now - each.heard_at < _FORGET_SECONDS
        }
        self._behind = sorted((each.obeys(now), each.pods, name) for name, each in self.members.items())
        self._alive = sum(each.over_at == float("inf") for each in self.members.values())
        for user, each in list(self.listed.items()):
            for ledger in each.ledgers:
                ledger.sweep(now)
            if not any(ledger.holdings for ledger in each.ledgers):
                del self.listed[user]

    def list_if_needed(self, demand: UserDemand, member: _Member, now: float) -> _Listed | None:
        """Return the user's entry in the list; a new one if it wants more than a safe share and there is room."""
        found = self.listed.get(demand.user)
        if found is not None or len(self.listed) >= MAX_LISTED or max(self.pods, self._alive) <= 1:
            return found
        needs = zip((demand.requests, demand.tokens), _LEAST, strict=True)
        if not any(need.limit and need.wanted > safe_share(need.limit, member.pods, least) for need, least in needs):
            return None
        self.number += 1
        self.news_at = now
        found = self.listed[demand.user] = _Listed(self.number, self._learning_until)
        return found

    def lease(self, name: str, listed: _Listed, demand: UserDemand, now: float) -> UserLease:
        """Lease what is free of a user's limit, by what all its pods want."""
        amounts = []
        for ledger, need, largest, least in zip(
            listed.ledgers, (demand.requests, demand.tokens), self.limits, _LEAST, strict=True
        ):
            limit = min(need.limit, largest)
            if not limit:
                amounts.append(0)
                continue
            held_elsewhere = {"": self._safe_of_others(listed.number, limit, least, name)}
            ledger.configure(limit, _SHARES, held_elsewhere, _WINDOW_SECONDS)
            amounts.append(ledger.exchange(name, "", _demand(need), now, LEASE_SECONDS))
        return UserLease(user=demand.user, requests=amounts[0], tokens=amounts[1])

    def _safe_of_others(self, number: int, limit: int, least: int, name: str) -> int:
        """Return what the other pods may use without a lease of a user who is on the lists from a number on."""
        held = max(0, self.pods - self._alive) * safe_share(limit, rounded_up(self.pods), least)
        for _, pods, other in self._behind[: bisect_left(self._behind, (number, 0, ""))]:
            if other != name:
                held += safe_share(limit, pods, least)
        return held


class UserLeases:
    """The users of all allocations. Every `now` is in monotonic seconds of this leader.

    `fresh` says that there never was a leader before, as in `Allocator`. What an earlier leader has leased is renewed
    as far as pods say that they hold it, and nothing else, for as long as it could be in use.
    """

    __slots__ = ("_dropped", "_scopes", "_unknown_since", "name")

    def __init__(self, *, now: float, fresh: bool = False) -> None:
        self.name = f"{now:.9f}"  # differs from that of the leader before
        self._unknown_since = float("-inf") if fresh else now
        self._scopes: dict[str, _Scope] = {}
        self._dropped: dict[str, float] = {}  # as many as were ever declared

    def configure(self, quotas: Iterable[QuotaPolicy], now: float) -> None:
        """Put limits into force. What is out stays counted."""
        wanted = set()
        for quota in quotas:
            for allocation in quota.allocations:
                if allocation.per_user is None:
                    continue
                name = scope_of(quota, allocation)
                wanted.add(name)
                scope = self._scopes.get(name)
                if scope is None:
                    unknown_since = self._dropped.pop(name, self._unknown_since)
                    scope = self._scopes[name] = _Scope(unknown_since + with_slack(LEASE_SECONDS + _WINDOW_SECONDS))
                scope.configure(allocation.pods, allocation.per_user)
        for name in self._scopes.keys() - wanted:
            del self._scopes[name]
            self._dropped[name] = now

    def exchange(
        self, instance: str, sequence: int, reports: Sequence[UserReport], now: float
    ) -> tuple[UserAnswer, ...]:
        """Take a report and return the answers to it; none to a report that is repeated or late."""
        answers = []
        for report in reports:
            scope = self._scopes.get(report.scope)
            if scope is not None:
                member = scope.members.setdefault(instance, _Member())
                if sequence > member.sequence:
                    answers.append(self._exchange(scope, instance, member, sequence, report, now))
        return tuple(answers)

    def _exchange(
        self, scope: _Scope, name: str, member: _Member, sequence: int, report: UserReport, now: float
    ) -> UserAnswer:
        member.sequence = sequence
        member.hear(report, self.name, now)
        scope.look(now)
        leases, holds = [], set()
        for demand in report.demands:
            listed = scope.list_if_needed(demand, member, now)
            if listed is not None:
                leases.append(scope.lease(name, listed, demand, now))
                holds.add(demand.user)
        for user in member.holds - holds:  # given up, and not used within the window
            _release(scope, name, UserDemand(user=user), now)
        member.holds = holds
        member.answers[sequence] = (now, scope.number)
        return UserAnswer(
            scope=report.scope,
            leader=self.name,
            listed=tuple(scope.listed),
            leases=tuple(leases),
            ttl_seconds=LEASE_SECONDS,
            listed_seconds=LISTED_SECONDS,
        )

    def stop(self, instance: str, reports: Sequence[UserReport], now: float) -> None:
        """Take a pod's last report: it uses nothing any more, and what it used leaves the window."""
        for report in reports:
            scope = self._scopes.get(report.scope)
            if scope is not None:
                for demand in report.demands:
                    _release(scope, instance, demand, now)
        self.gone(instance, now)

    def gone(self, instance: str, now: float) -> None:
        """Take note that a process is no more. What it used has to leave the window."""
        for scope in self._scopes.values():
            member = scope.members.get(instance)
            if member is None:
                continue
            member.over_at = min(member.over_at, now + with_slack(_WINDOW_SECONDS))
            for user in member.holds & scope.listed.keys():
                for ledger in scope.listed[user].ledgers:
                    ledger.gone(instance, now, in_flight=False)

    def interval_seconds(self, reports: Collection[UserReport], now: float) -> float | None:
        """Return how soon a pod should report again because a list has changed; None if there is no news."""
        found = [scope for each in reports if (scope := self._scopes.get(each.scope)) is not None]
        members = [len(scope.members) for scope in found if now - scope.news_at <= NEWS_SECONDS]
        return max(1.0, max(members) / _REPORTS_PER_SECOND) if members else None


def _release(scope: _Scope, name: str, last: UserDemand, now: float) -> None:
    """Take back what a pod was leased of a user; what it used counts until it has left the window."""
    listed = scope.listed.get(last.user)
    for ledger, need in zip(listed.ledgers, (last.requests, last.tokens), strict=True) if listed is not None else ():
        ledger.stop(name, _demand(need), now)


def _demand(need: UserNeed) -> Demand:
    return Demand(limit="", held=need.held, used=need.used, wanted=need.wanted, least=need.least)


def scope_of(quota: QuotaPolicy, allocation: AllocationPolicy) -> str:
    """Return the name of an allocation in reports."""
    return f"{quota.key}/{allocation.name}"
