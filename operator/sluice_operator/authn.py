"""Who speaks on the sync channel: a pod, proved by its service-account token of Sluice's own audience.

The API server decides, by TokenReview. Its answers are kept for a short time under the token's digest, so that a
thousand pods reporting every few seconds cost it little; the tokens themselves are kept nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec
import structlog

from sluice_core.sync import PodRef
from sluice_operator.cluster import ApiError, Cluster
from sluice_operator.kinds import TOKEN_REVIEWS

AUDIENCE: Final = "sluice"
TRUST_SECONDS: Final = 60.0
DISTRUST_SECONDS: Final = 10.0
GRACE_SECONDS: Final = 600.0
MAX_REMEMBERED: Final = 20_000
MAX_REVIEWS_AT_ONCE: Final = 16
MAX_TOKEN_CHARACTERS: Final = 16_384
_PREFIX: Final = "system:serviceaccount:"
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"

_log = structlog.get_logger()


class _User(msgspec.Struct):
    username: str = ""
    extra: dict[str, list[str]] | None = None


class _Review(msgspec.Struct):
    authenticated: bool = False
    audiences: list[str] | None = None
    user: _User = msgspec.field(default_factory=_User)


class _Reviewed(msgspec.Struct):
    status: _Review = msgspec.field(default_factory=_Review)


class _Verdict(NamedTuple):
    pod: PodRef | None
    at: float


class TokenAuthenticator:
    """Tells which pod a token proves.

    While the API server is away, a token that was good lately goes on being good for ten minutes: reports feed the
    limits, and an outage of the control plane must not make it lose sight of what is in use.
    """

    def __init__(self, cluster: Cluster, *, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._gate = asyncio.Semaphore(MAX_REVIEWS_AT_ONCE)
        self._asking: dict[bytes, asyncio.Task[_Verdict | None]] = {}
        self.reviews = 0

    async def authenticate(self, token: str | None) -> PodRef | None:
        """Return the pod that a bearer token proves, or None."""
        if not token or len(token) > MAX_TOKEN_CHARACTERS:
            return None
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verdicts.get(digest)
        if known is not None and self._clock() - known.at < _trust(known):
            self._verdicts.move_to_end(digest)
            return known.pod
        # Many connections of one pod ask at once: one review answers them all, even if the first caller goes away.
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.create_task(self._ask(token))
            self._asking[digest] = task
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        verdict = await asyncio.shield(task)
        if verdict is None:
            fresh_enough = known is not None and self._clock() - known.at < GRACE_SECONDS
            return known.pod if known is not None and fresh_enough else None
        self._verdicts[digest] = verdict
        self._verdicts.move_to_end(digest)
        while len(self._verdicts) > MAX_REMEMBERED:
            self._verdicts.popitem(last=False)
        return verdict.pod

    async def _ask(self, token: str) -> _Verdict | None:
        async with self._gate:
            self.reviews += 1
            try:
                raw = await self._cluster.create(
                    TOKEN_REVIEWS, None, {"spec": {"token": token, "audiences": [AUDIENCE]}}
                )
            except ApiError as error:
                _log.warning("token_review_failed", status=error.status, reason=error.reason)
                return None
        return _Verdict(_pod(raw), self._clock())


def _trust(verdict: _Verdict) -> float:
    return TRUST_SECONDS if verdict.pod is not None else DISTRUST_SECONDS


def _pod(raw: Mapping[str, object]) -> PodRef | None:
    try:
        review = msgspec.convert({"status": raw.get("status") or {}}, _Reviewed).status
    except msgspec.ValidationError:
        return None
    # An authenticator that knows no audiences leaves them out: such a token was not made for this channel.
    if not review.authenticated or AUDIENCE not in (review.audiences or ()):
        return None
    if not review.user.username.startswith(_PREFIX):
        return None
    namespace, _, _ = review.user.username.removeprefix(_PREFIX).partition(":")
    extra = review.user.extra or {}
    name, uid = extra.get(_POD_NAME, []), extra.get(_POD_UID, [])
    if not namespace or len(name) != 1 or len(uid) != 1:
        return None  # a token that is not bound to a pod proves no pod
    return PodRef(namespace=namespace, name=name[0], uid=uid[0])
