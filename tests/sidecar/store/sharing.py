"""What tests of shared accounts have in common: a policy, a server that has learned, calls, what sidecars say."""

from __future__ import annotations

from typing import Any

import openai

from sluice_core.api.quotaallocation import StoreType
from sluice_core.api.upstream import Limits
from sluice_core.limits.safe import reserved_share
from sluice_core.snapshot import StorePolicy

MESSAGES: Any = [{"role": "user", "content": "planted prompt about the purple submarine"}]
PASSWORD = "planted-redis-password-41c7"
PASSWORD_FILE = "team.openai-quota._store"
SAFE = 2


def policy(policies: Any, mock: Any, url: str, requests_per_minute: int = 40, **store: Any) -> Any:
    """A snapshot whose account is shared through Redis. A pod alone may use two requests a minute."""
    quota = policies.quota(safe=Limits(requests_per_minute=SAFE))
    quota = type(quota)(
        key=quota.key,
        upstream=quota.upstream,
        allocations=quota.allocations,
        store=StorePolicy(type=StoreType.REDIS, url=url, name="shop", **store),
        safe_reserve=reserved_share([100]),
    )
    limits = Limits(requests_per_minute=requests_per_minute)
    return policies.snapshot(policies.upstream(mock.base_url, limits=limits), quotas=(quota,))


def settle(server: Any, password: str | None = None) -> None:
    """Tell the server that nothing can be out, so that it gives out slices at once."""
    with server.admin(password) as admin:
        admin.hset("sluice:{shop}", "settled", 1)


def store(sidecar: Any) -> dict[str, Any]:
    """What the sidecar says of its store."""
    (found,) = sidecar.status()["stores"]
    return found


def settled(sidecar: Any, server: Any, password: str | None = None) -> Any:
    """Wait until the sidecar has slices of a server that has learned."""
    sidecar.wait_until(lambda: store(sidecar)["secondsSinceSuccess"] is not None)
    settle(server, password)
    sidecar.wait_until(lambda: held(sidecar) > SAFE)
    return sidecar


def held(sidecar: Any) -> int:
    """How many requests a minute the sidecar may use."""
    return next(each["held"] for each in sidecar.status()["limits"] if each["limit"].endswith("|requests|"))


def admitted(chat: openai.OpenAI, tries: int) -> int:
    """Make calls; return how many got through."""
    count = 0
    for _ in range(tries):
        try:
            chat.chat.completions.create(model="gpt-4.1-mini", messages=MESSAGES, max_tokens=10)
            count += 1
        except openai.RateLimitError:
            pass
    return count
