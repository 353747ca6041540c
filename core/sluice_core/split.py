"""Which arm of a split a call gets. A pure function of the policy and the user's key, so every pod agrees.

A user falls into one of 10 000 buckets by a salted hash; the candidate has the buckets below its weight. A ramp only
ever moves users from stable to candidate, and another revision, with another salt, tries its luck on other users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, Literal, Protocol

from sluice_core.api.base import BodyField, KeySource, Value
from sluice_core.api.canarysplit import OnMissingKey
from sluice_core.snapshot import SplitPolicy

BUCKETS: Final = 10_000

Arm = Literal["stable", "candidate"]


class UserFields(Protocol):
    """The fields of a request body that can name the user."""

    @property
    def user(self) -> str | None: ...
    @property
    def safety_identifier(self) -> str | None: ...
    @property
    def prompt_cache_key(self) -> str | None: ...


class Assignment(Value, frozen=True, kw_only=True):
    """The arm of one call. `forced`: not by hash but by the override header or by the conversation it continues."""

    arm: Arm
    version: str
    bucket: int
    forced: bool = False
    missing_key: bool = False
    counted: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.bucket < BUCKETS:
            raise ValueError("a bucket lies in 0..9999")


def bucket_of(salt: str, key: str) -> int:
    """Return the bucket of a key, 0..9999: the first 8 bytes of SHA-256 of salt, NUL and key, modulo 10 000."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def assign(
    split: SplitPolicy,
    facts: UserFields,
    headers: Mapping[str, str],
    call_id: str,
    pinned: Arm | None = None,
) -> Assignment:
    """Return the arm of a call.

    Args:
        split: the split in force.
        facts: the request's own fields.
        headers: the request's headers, looked up in lower case.
        call_id: stands in for the user's key where there is none and `onMissingKey` is Random.
        pinned: arm of the conversation that this call continues; a conversation stays on its arm.

    A call counts for the analysis when chance alone chose its arm: not when it was forced, pinned elsewhere, or kept
    on stable for want of a key.
    """
    key = user_key(split.keys, facts, headers)
    missing = key is None
    bucket = bucket_of(split.salt, call_id if key is None else key)
    hashed: Arm = "candidate" if bucket < split.weight * 100 else "stable"
    if missing and split.on_missing_key is OnMissingKey.STABLE:
        hashed = "stable"
    wanted = _override(split, headers)
    arm = wanted or pinned or hashed
    override = wanted is not None
    return Assignment(
        arm=arm,
        version=split.candidate.version if arm == "candidate" else split.stable.version,
        bucket=bucket,
        forced=override or arm != hashed,
        missing_key=missing,
        counted=not override and arm == hashed and not (missing and split.on_missing_key is OnMissingKey.STABLE),
    )


def user_key(sources: tuple[KeySource, ...], facts: UserFields, headers: Mapping[str, str]) -> str | None:
    """Return the first key that is present and not empty, or None."""
    for source in sources:
        value = _value(source, facts, headers)
        if value:
            return value
    return None


def _value(source: KeySource, facts: UserFields, headers: Mapping[str, str]) -> str | None:
    if source.header is not None:
        return headers.get(source.header.lower())
    match source.body:
        case BodyField.USER:
            return facts.user
        case BodyField.SAFETY_IDENTIFIER:
            return facts.safety_identifier
        case BodyField.PROMPT_CACHE_KEY:
            return facts.prompt_cache_key
        case None:
            return None


def _override(split: SplitPolicy, headers: Mapping[str, str]) -> Arm | None:
    wanted = headers.get(split.override_header.lower(), "").strip().lower()
    if wanted == "candidate":
        return "candidate"
    return "stable" if wanted == "stable" else None
