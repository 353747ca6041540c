"""The compiled policy of one namespace: what a sidecar runs on. Immutable, versioned, named by its content.

A snapshot holds no secret (keys are named by the file they are mounted at) and no live state. It is read once per call
and swapped whole.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from sluice_core.api.base import KeySource, LabelSelector, Value
from sluice_core.api.canarysplit import OnMissingKey
from sluice_core.api.degradation import Degradation
from sluice_core.api.modelroute import Authorization, Cache, CallLimits, OnClientDisconnect, RuleMatch
from sluice_core.api.quotaallocation import Budget, Mode, PerUser, Priority, Queue, StoreType, WholeDegradation
from sluice_core.api.upstream import Breaker, ExtraHeader, Limits, ModelLimits, Price, Retry, Timeouts

FORMAT = 1
"""Version of the snapshot's layout. A sidecar refuses, whole, a snapshot of a format that it does not know."""


CREDENTIALS_MARKER = ".complete"
"""Empty file among the credentials. Where one was and is no more, somebody has damaged or deleted all of them."""


class CredentialFile(Value, frozen=True, kw_only=True):
    """An API key, by the file that holds it, relative to the directory where credentials are mounted."""

    name: str
    file: str


class UpstreamPolicy(Value, frozen=True, kw_only=True):
    """An account with its presets resolved: in `limits`, None no longer occurs and 0 means no limit."""

    key: str
    base_url: str
    credentials: tuple[CredentialFile, ...] = ()
    organization: str | None = None
    project: str | None = None
    headers: tuple[ExtraHeader, ...] = ()
    ca_bundle: str | None = None
    limits: Limits = Limits()
    model_limits: tuple[ModelLimits, ...] = ()
    prices: tuple[Price, ...] = ()
    timeouts: Timeouts = Timeouts()
    breaker: Breaker = Breaker()
    retry: Retry = Retry()


class AllocationPolicy(Value, frozen=True, kw_only=True):
    """The share of one workload. `safe` is what one pod may use without a lease, `model_safe` of single models.

    `pods` is how many there are, and in a snapshot the next power of two: each pod's part of a user's limit.
    """

    name: str
    workloads: LabelSelector = LabelSelector()
    share_percent: int = 0
    priority: Priority = Priority.STANDARD
    mode: Mode = Mode.ENFORCE
    per_user: PerUser | None = None
    queue: Queue = Queue()
    budget: Budget | None = None
    degradation: Degradation | None = None
    pods: int = 1
    safe: Limits = Limits()
    model_safe: tuple[ModelLimits, ...] = ()


class StorePolicy(Value, frozen=True, kw_only=True):
    """Where capacity is counted. `name` is the account's in a store that several clusters share.

    `password_file` is relative to the directory where credentials are mounted.
    """

    type: StoreType = StoreType.LEASES
    url: str = ""
    name: str = ""
    username: str | None = None
    password_file: str | None = None
    ca_bundle: str | None = None


class QuotaPolicy(Value, frozen=True, kw_only=True):
    """How one upstream is shared; the first allocation that selects a pod applies to it.

    `safe_reserve` is what is kept of every limit for pods without a lease, in hundred-thousandths; the leader works it
    out itself, so it is 0 unless another store has to be told.
    """

    key: str
    upstream: str
    store: StorePolicy = StorePolicy()
    safe_reserve: int = 0
    budget: Budget | None = None
    degradation: WholeDegradation | None = None
    allocations: tuple[AllocationPolicy, ...]


class ArmPolicy(Value, frozen=True, kw_only=True):
    """One version of a model, its instructions and its parameters."""

    version: str
    model: str | None = None
    instructions: str | None = None
    overrides: dict[str, Any] = {}


class SplitPolicy(Value, frozen=True, kw_only=True):
    """A split in force. `weight` is the candidate's share of users in percent; `salt` belongs to this revision."""

    key: str
    revision: str
    salt: str
    weight: int
    stable: ArmPolicy
    candidate: ArmPolicy
    keys: tuple[KeySource, ...] = ()
    on_missing_key: OnMissingKey = OnMissingKey.STABLE
    override_header: str = "x-sluice-arm"


class TargetPolicy(Value, frozen=True, kw_only=True):
    """An upstream and model that serve a rule. Without a model the requested one is used."""

    name: str
    upstream: str
    model: str | None = None
    weight: int = 1


class FallbackPolicy(Value, frozen=True, kw_only=True):
    """What is tried next: an upstream and model, or a fixed answer."""

    upstream: str | None = None
    model: str | None = None
    static_message: str | None = None


class CachedFallbackPolicy(Value, frozen=True, kw_only=True):
    """An earlier answer, as one of the fallbacks: the one at `place` among all, counted from 0.

    They are not among the others, so that a sidecar that does not know them goes from one of those to the next.
    """

    place: int
    max_age_seconds: int


class RulePolicy(Value, frozen=True, kw_only=True):
    """Where the calls that match go."""

    name: str
    match: tuple[RuleMatch, ...] = ()
    targets: tuple[TargetPolicy, ...]
    fallbacks: tuple[FallbackPolicy, ...] = ()
    cached_fallbacks: tuple[CachedFallbackPolicy, ...] = ()
    limits: CallLimits = CallLimits()
    cache: Cache | None = None
    authorization: Authorization = Authorization.UPSTREAM
    on_client_disconnect: OnClientDisconnect = OnClientDisconnect.CANCEL
    split: SplitPolicy | None = None


class RoutePolicy(Value, frozen=True, kw_only=True):
    """Rules for the pods that `workloads` selects."""

    key: str
    workloads: LabelSelector = LabelSelector()
    rules: tuple[RulePolicy, ...]


class Snapshot(Value, frozen=True, kw_only=True):
    """Everything that the sidecars of one namespace need. What a pod gets depends on this and its labels alone."""

    format: int = FORMAT
    namespace: str
    revision: str = ""
    upstreams: tuple[UpstreamPolicy, ...] = ()
    quotas: tuple[QuotaPolicy, ...] = ()
    routes: tuple[RoutePolicy, ...] = ()


class SnapshotError(ValueError):
    """The text is not a snapshot that this version can run. The message says why and holds no content."""


_encoder = msgspec.json.Encoder(order="deterministic")
_canonical_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Snapshot)


def seal(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with its revision set: the first 16 hex digits of the SHA-256 of its content."""
    return msgspec.structs.replace(snapshot, revision=_revision(msgspec.to_builtins(snapshot)))


def _revision(document: dict[str, Any]) -> str:
    """Return the revision of a snapshot as plain JSON values: fields that this version does not know count as well."""
    content = {name: value for name, value in document.items() if name != "revision"}
    return hashlib.sha256(_canonical_encoder.encode(content)).hexdigest()[:16]


def encode(snapshot: Snapshot) -> bytes:
    """Return the snapshot as JSON; equal snapshots give equal bytes."""
    return _encoder.encode(snapshot)


def decode(text: bytes) -> Snapshot:
    """Return the snapshot in `text`.

    Raises:
        SnapshotError: the text is no snapshot, of an unknown format, or does not match its revision.
    """
    try:
        snapshot = _decoder.decode(text)
        document: dict[str, Any] = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SnapshotError(f"not a snapshot: {error}") from None
    if snapshot.format != FORMAT:
        raise SnapshotError(f"snapshot format {snapshot.format}, but this version runs format {FORMAT}")
    if _revision(document) != snapshot.revision:
        raise SnapshotError("the content does not match its revision; the file is incomplete or was edited")
    return snapshot
