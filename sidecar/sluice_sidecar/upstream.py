"""One upstream in force: its address, connections, keys, prices and retry budget."""

from __future__ import annotations

import msgspec

from sluice_core.pricing import PriceBook
from sluice_core.retry import RetryBudget
from sluice_core.snapshot import UpstreamPolicy
from sluice_sidecar.credentials import Credentials, Secret
from sluice_sidecar.headers import Field, OwnFields
from sluice_sidecar.http1_transport import Http1Transport
from sluice_sidecar.websocket_dialer import WebSocketDialer


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key of an upstream, by name. Both are None for an upstream that needs none."""

    name: str | None = None
    secret: Secret | None = None


NO_KEY = Key()


class Upstream:
    """The live state of one upstream. It survives a change of policy while address and authority stay the same.

    `keys` are those there are, in the order in which they are tried; none if all files are missing. `own_heads` holds
    what of the head of a request hangs on the key alone, and on which of our fields the call gets.
    """

    __slots__ = (
        "_credentials",
        "base",
        "in_use",
        "keys",
        "own_fields",
        "own_heads",
        "policy",
        "prices",
        "retry_budget",
        "transport",
        "websockets",
    )

    def __init__(self, policy: UpstreamPolicy, credentials: Credentials) -> None:
        self._credentials = credentials
        self.transport = Http1Transport(policy.ca_bundle)
        self.websockets = WebSocketDialer(policy.ca_bundle)
        self.retry_budget = RetryBudget(policy.retry.budget_percent)
        self.in_use = 0
        self.configure(policy)

    def takes(self, policy: UpstreamPolicy) -> bool:
        """Tell whether this policy can be put into force on the connections there are."""
        return (policy.base_url, policy.ca_bundle) == (self.policy.base_url, self.policy.ca_bundle)

    def configure(self, policy: UpstreamPolicy) -> None:
        """Put a policy into force. Connections and the retry budget go on."""
        self.policy = policy
        self.base = policy.base_url.rstrip("/")
        self.prices = PriceBook.from_data(overrides=policy.prices)
        self.own_fields = _own_fields(policy)
        self.retry_budget.configure(policy.retry.budget_percent)
        self.refresh_keys()

    def refresh_keys(self) -> None:
        """Take the keys from the mounted files again."""
        found = (
            Key(name=each.name, secret=secret)
            for each in self.policy.credentials
            if (secret := self._credentials.get(each.file)) is not None
        )
        self.keys = tuple(found) if self.policy.credentials else (NO_KEY,)
        self.own_heads: dict[tuple[Key, bool, bool, bool], OwnFields] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self.transport.close()
        await self.websockets.close()


def _own_fields(policy: UpstreamPolicy) -> list[Field]:
    """The header fields that the upstream's policy adds to every call."""
    fields = [(each.name, each.value) for each in policy.headers]
    if policy.organization is not None:
        fields.append(("OpenAI-Organization", policy.organization))
    if policy.project is not None:
        fields.append(("OpenAI-Project", policy.project))
    return fields
