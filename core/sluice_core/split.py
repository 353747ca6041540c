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
MAX_KNOWN_USERS: Final = 4096
LONGEST_KNOWN_KEY: Final = 256

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


class Assigner:
    """Assigns calls to the arms of one split, prepared once per policy.

    Users come back: the arms of as many as `MAX_KNOWN_USERS` are remembered, so that their keys are hashed once.
    """

    __slots__ = ("_by_user", "_keys", "_override_header", "_split")

    def __init__(self, split: SplitPolicy) -> None:
        self._split = split
        self._keys = UserKeys(split.keys)
        self._override_header = split.override_header.lower()
        self._by_user: dict[str, Assignment] = {}

    def __len__(self) -> int:
        """Return how many users are remembered."""
        return len(self._by_user)

    def assign(
        self, facts: UserFields, headers: Mapping[str, str], call_id: str, pinned: Arm | None = None
    ) -> Assignment:
        """Return the arm of a call.

        Args:
            facts: the request's own fields.
            headers: the request's headers, looked up in lower case.
            call_id: stands in for the user's key where there is none and `onMissingKey` is Random.
            pinned: arm of the conversation that this call continues; a conversation stays on its arm.

        A call counts for the analysis when chance alone chose its arm: not when it was forced, pinned elsewhere, or
        kept on stable for want of a key.
        """
        key = self._keys.of(facts, headers)
        wanted = _named(headers[self._override_header]) if self._override_header in headers else None
        if key is None or wanted is not None or pinned is not None:
            return self._work_out(key, wanted, pinned, call_id)
        found = self._by_user.get(key)
        if found is None:
            found = self._work_out(key, None, None, call_id)
            if len(self._by_user) >= MAX_KNOWN_USERS:
                self._by_user.clear()
            if len(key) <= LONGEST_KNOWN_KEY:
                self._by_user[key] = found
        return found

    def _work_out(self, key: str | None, wanted: Arm | None, pinned: Arm | None, call_id: str) -> Assignment:
        split = self._split
        kept = key is None and split.on_missing_key is OnMissingKey.STABLE
        bucket = bucket_of(split.salt, call_id if key is None else key)
        hashed: Arm = "candidate" if bucket < split.weight * 100 and not kept else "stable"
        arm = wanted or pinned or hashed
        return Assignment(
            arm=arm,
            version=split.candidate.version if arm == "candidate" else split.stable.version,
            bucket=bucket,
            forced=wanted is not None or arm != hashed,
            missing_key=key is None,
            counted=wanted is None and arm == hashed and not kept,
        )


class UserKeys:
    """Where calls name their user: header fields and members of the body, the first that is there and not empty."""

    __slots__ = ("_sources",)

    def __init__(self, sources: tuple[KeySource, ...]) -> None:
        self._sources = tuple(
            (source.header.lower() if source.header is not None else None, _MEMBERS.get(source.body))
            for source in sources
        )

    def of(self, facts: UserFields, headers: Mapping[str, str]) -> str | None:
        """Return the user's key, None if the call names no user. `headers` are looked up in lower case."""
        for header, member in self._sources:
            value = headers.get(header) if header is not None else getattr(facts, member) if member else None
            if value:
                return value
        return None


def assign(
    split: SplitPolicy,
    facts: UserFields,
    headers: Mapping[str, str],
    call_id: str,
    pinned: Arm | None = None,
) -> Assignment:
    """Return the arm of a call under a split; a server keeps an `Assigner` instead of preparing it for each call."""
    return Assigner(split).assign(facts, headers, call_id, pinned)


_MEMBERS: Final[dict[BodyField | None, str]] = {
    BodyField.USER: "user",
    BodyField.SAFETY_IDENTIFIER: "safety_identifier",
    BodyField.PROMPT_CACHE_KEY: "prompt_cache_key",
}


def _named(value: str) -> Arm | None:
    wanted = value.strip().lower()
    if wanted == "candidate":
        return "candidate"
    return "stable" if wanted == "stable" else None
