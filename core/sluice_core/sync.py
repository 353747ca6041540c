"""What a sidecar tells the control plane, and what it is told. An optimisation: without it the mounted files do alone.

All counts are cumulative since the start of the sidecar's process, named by `instance`, so that a report may be lost,
repeated or late without harm.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from sluice_core.api.base import Value
from sluice_core.rollout.counts import ArmCounts

_name = Annotated[str, Meta(max_length=512)]
_user = Annotated[str, Meta(max_length=64)]


class PodRef(Value, frozen=True, kw_only=True):
    """Which pod speaks. The control plane believes only what the token proves."""

    namespace: _name
    name: _name
    uid: _name = ""


class Demand(Value, frozen=True, kw_only=True):
    """One pod's need in one dimension of one allocation.

    `limit` names the dimension (see `sluice_core.limits.keys`). `held` is what the pod still holds: the larger of its
    lease, its safe share and what it used within the window. `used` is the use within the window, `wanted` what it
    would use soon, `safe` what it may use without a lease. Less than `least` would be of no use to it: the largest
    single call that waits. `lasting` is what it would use after a whole window if it goes on like lately, 0 if there
    has been enough for a window. `returned` is what it held until this very report. In the last report of a process
    `fading` tells what of `used` still counts after each further even part of the window.

    While there is not enough for all, `certain` tells what of `used` nothing but time gives back, for its calls are
    over: how much there is, and what of it still counts after each further even part of the window but the last.
    """

    limit: _name
    held: int
    used: int
    wanted: int
    safe: int = 0
    least: int = 0
    returned: int = 0
    lasting: int = 0
    fading: Annotated[tuple[int, ...], Meta(max_length=16)] = ()
    certain: Annotated[tuple[int, ...], Meta(max_length=16)] = ()


class Heard(Value, frozen=True, kw_only=True):
    """The latest answer that has arrived: who gave it, when by the giver's own clock, and how long ago it arrived.

    It tells the giver how old the report that names it can be at most.
    """

    leader: _name = ""
    answered_at: float = 0.0
    seconds_ago: float = 0.0


class Lease(Value, frozen=True, kw_only=True):
    """Capacity in one dimension that one pod may use within any window, for `ttl_seconds` from the answer on.

    Of what is `short` others want more: what of it will not be used is to be given back with the next report.
    """

    limit: _name
    amount: int
    ttl_seconds: float
    short: bool = False


class Spend(Value, frozen=True, kw_only=True):
    """Money settled by this instance under one budget, cumulative, in micro-dollars. `window` is a calendar day."""

    budget: _name
    window: _name
    usd_micros: int


class Exhausted(Value, frozen=True, kw_only=True):
    """A budget that is spent, until the given Unix time."""

    budget: _name
    until: float


class SpentShare(Value, frozen=True, kw_only=True):
    """How much of a budget is spent, in percent, in a window that ends at the given Unix time."""

    budget: _name
    percent: int
    until: float


class LimitObservation(Value, frozen=True, kw_only=True):
    """A limit that the upstream itself reported in its `x-ratelimit-*` headers."""

    upstream: _name
    model: _name
    dimension: _name
    limit: int
    remaining: int


class UserNeed(Value, frozen=True, kw_only=True):
    """One pod's need of one user in one dimension; `limit` is the user's, the rest is as in `Demand`."""

    limit: int = 0
    held: int = 0
    used: int = 0
    wanted: int = 0
    least: int = 0


class UserDemand(Value, frozen=True, kw_only=True):
    """What one user needs of one pod within a minute. The user is named by a hash, here and in all that follows."""

    user: _user
    requests: UserNeed = UserNeed()
    tokens: UserNeed = UserNeed()


class UserSpend(Value, frozen=True, kw_only=True):
    """What one user has spent today in one process, in micro-dollars."""

    user: _user
    usd_micros: int


class UserReport(Value, frozen=True, kw_only=True):
    """The users of one allocation in one pod: those that want more than they may, and those of the leader's list.

    `scope` is the allocation, `quota/name`. `pods` is by how many the pod divides a limit for what a user may use in it
    without a lease. `answered` is the sequence of the latest answer that it obeys, and `leader` who gave it. `spends`
    are of the day `day`, and only those that have changed.
    """

    scope: _name
    pods: int = 1
    leader: _name = ""
    answered: int = 0
    demands: Annotated[tuple[UserDemand, ...], Meta(max_length=512)] = ()
    day: _name = ""
    spends: Annotated[tuple[UserSpend, ...], Meta(max_length=512)] = ()


class UserLease(Value, frozen=True, kw_only=True):
    """What one user may use within any minute in one pod."""

    user: _user
    requests: int = 0
    tokens: int = 0


class UserAnswer(Value, frozen=True, kw_only=True):
    """The answer to a report of users.

    A user that is `listed` may use in a pod what is leased to it there, and nothing without a lease, for
    `listed_seconds` from the moment when the answer arrives; `leases` are for `ttl_seconds` from when the report was
    sent. The money of `exhausted` users is spent until their day ends; None while the leader does not know that.
    """

    scope: _name
    leader: _name
    listed: tuple[str, ...] = ()
    leases: tuple[UserLease, ...] = ()
    exhausted: tuple[str, ...] | None = ()
    ttl_seconds: float
    listed_seconds: float


class AllocationGauge(Value, frozen=True, kw_only=True):
    """The state of one allocation in one pod. What is used, refused and degraded is that of the last minute.

    `unpriced` counts calls whose cost is not known, with a model of them. What is granted is said where it comes from
    another store, because the leader knows of it by this alone; so is what is wrong with that store, and whether it
    gives out nothing new because it has to learn first.
    """

    quota: _name
    allocation: _name
    used_requests: int = 0
    used_tokens: int = 0
    waiting: int = 0
    refused: int = 0
    unpriced: int = 0
    unpriced_model: _name = ""
    granted_requests: int = 0
    granted_tokens: int = 0
    store_error: _name = ""
    store_learning: bool = False
    degraded: int = 0


class BreakerGauge(Value, frozen=True, kw_only=True):
    """A breaker that is not closed."""

    upstream: _name
    model: _name
    credential: _name
    state: _name


class SyncRequest(Value, frozen=True, kw_only=True):
    """One report. `revision` is the policy that the sidecar runs."""

    pod: PodRef
    instance: _name
    sequence: int
    revision: _name = ""
    config_error: Annotated[str, Meta(max_length=1024)] = ""
    demands: Annotated[tuple[Demand, ...], Meta(max_length=1024)] = ()
    counts: Annotated[tuple[ArmCounts, ...], Meta(max_length=256)] = ()
    spends: Annotated[tuple[Spend, ...], Meta(max_length=1024)] = ()
    users: Annotated[tuple[UserReport, ...], Meta(max_length=64)] = ()
    observations: Annotated[tuple[LimitObservation, ...], Meta(max_length=256)] = ()
    gauges: Annotated[tuple[AllocationGauge, ...], Meta(max_length=256)] = ()
    breakers: Annotated[tuple[BreakerGauge, ...], Meta(max_length=256)] = ()
    heard: Heard | None = None
    stopping: bool = False


class SyncResponse(Value, frozen=True, kw_only=True):
    """The answer: leases, spent budgets, the revision to run, and when to report again.

    `exhausted` is None while the leader does not know yet what was spent before it: what the sidecar knows stays true,
    `spent` included: how much is spent of budgets that have steps, from the first step on. The next report names
    `leader` and `answered_at`, which is on the leader's clock, as `Heard`.
    """

    sequence: int
    leader: str = ""
    answered_at: float = 0.0
    revision: _name = ""
    leases: tuple[Lease, ...] = ()
    exhausted: tuple[Exhausted, ...] | None = ()
    spent: tuple[SpentShare, ...] = ()
    users: tuple[UserAnswer, ...] = ()
    interval_seconds: float = 5.0
