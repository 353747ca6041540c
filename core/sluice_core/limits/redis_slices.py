"""What a pod tells the store that several clusters share, and what it is told: the words of one call of the script.

A slice is a lease that no leader gives: the pod asks for it itself, of a server that runs one script for all of them.
The script is the leader's `holdings` and `shares` in short; two things differ. It knows each allocation by its sums
alone, so that what is too little for all is divided in proportion to demand instead of up to one level. And it gives
slices of several limits together: where one more call would not fit under one of them, the others do not grow either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from sluice_core.limits.accounts import Account
from sluice_core.limits.allocator import LEASE_SECONDS, counted_seconds
from sluice_core.limits.holdings import with_slack
from sluice_core.limits.keys import LimitKey, parse
from sluice_core.limits.safe import reserved_part, safe_part
from sluice_core.limits.shares import WEIGHTS
from sluice_core.sync import Demand, Lease

PREFIX: Final = "sluice:"
KEYS_PER_LIMIT: Final = 3
MAX_LIMITS: Final = 64
"""Limits of one account that are kept in the store: four of the whole, and of up to 15 patterns of models."""


class SliceCall(Struct, frozen=True, kw_only=True):
    """One call of the script. `limits` names those that its answer is about, in order; it repeats `sequence`."""

    keys: tuple[str, ...]
    arguments: tuple[str | int, ...]
    limits: tuple[str, ...]
    sequence: int


class SliceAnswer(Struct, frozen=True, kw_only=True):
    """The answer. Until `learning_seconds` are over some limits give out only what pods said that they hold.

    The pod is to call again after `interval_seconds`.
    """

    leases: tuple[Lease, ...]
    learning_seconds: float
    interval_seconds: float


class SliceAnswerError(ValueError):
    """The answer is not one of the script's."""


def account_key(name: str) -> str:
    """Return the key of an account; its braces keep all keys of it on one node of a cluster."""
    return f"{PREFIX}{{{name}}}"


def slice_call(
    account: Account,
    demands: Sequence[Demand],
    *,
    server: str,
    pod: str,
    sequence: int,
    stopping: bool,
    lease_seconds: float = LEASE_SECONDS,
) -> SliceCall:
    """Return the call that reports `demands`, which must be those of this account.

    `server` is the run id of the Redis server: with another one, what it holds is not to be believed.
    """
    quota, allocation = account.quota, account.allocation
    base = account_key(quota.store.name if quota is not None else account.key)
    percent = allocation.share_percent if allocation is not None else 0
    weight = WEIGHTS[allocation.priority] if allocation is not None else 1
    name = LimitKey.shorten(account.allocation_name)
    keys = [base]
    arguments: list[str | int] = [
        server, pod, sequence, name, percent, weight, _milliseconds(lease_seconds), int(stopping),
    ]  # fmt: skip
    limits = []
    for demand in demands[:MAX_LIMITS]:
        key, meter = parse(demand.limit), account.by_key.get(demand.limit)
        if key is None or meter is None:
            continue
        place = f"{base}:{key.dimension.value}:{key.model}"
        keys += (f"{place}:sums", f"{place}:pods", f"{place}:order")
        capacity, window = meter.allowance.ceiling, counted_seconds(key.dimension, account.upstream)
        arguments += (
            capacity,
            _milliseconds(with_slack(lease_seconds + window)),
            _milliseconds(with_slack(window)),
            reserved_part(capacity, quota.safe_reserve if quota is not None else 0),
            safe_part(capacity, percent),
            demand.held,
            demand.used,
            demand.wanted,
            demand.safe,
            demand.least,
            int(not key.model),
            demand.returned,
            " ".join(map(str, demand.fading)),
            " ".join(map(str, demand.certain)),
        )
        limits.append(demand.limit)
    return SliceCall(keys=tuple(keys), arguments=tuple(arguments), limits=tuple(limits), sequence=sequence)


def slice_answer(call: SliceCall, answer: object, lease_seconds: float = LEASE_SECONDS) -> SliceAnswer:
    """Return what the script's answer means.

    Raises:
        SliceAnswerError: it is not an answer to this call.
    """
    if not isinstance(answer, list) or len(answer) != 2 * len(call.limits) + 4:
        raise SliceAnswerError("the answer has another length than the call")
    if not all(isinstance(each, int) for each in answer):
        raise SliceAnswerError("the answer holds something else than whole numbers")
    sequence, now, learning_until, interval, *amounts = answer
    if sequence != call.sequence:
        raise SliceAnswerError("the answer is one to another call")
    count = len(call.limits)
    leases = tuple(
        Lease(limit=limit, amount=amount, ttl_seconds=lease_seconds, short=bool(short))
        for limit, amount, short in zip(call.limits, amounts[:count], amounts[count:], strict=True)
        if amount >= 0
    )
    return SliceAnswer(
        leases=leases, learning_seconds=max(0, learning_until - now) / 1000, interval_seconds=max(0, interval) / 1000
    )


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
