"""The Authorization headers of webhooks, from the Secrets of the split's own namespace."""

from __future__ import annotations

import base64
import binascii

from sluice_core.api.base import SecretKeyRef
from sluice_operator.cluster import ApiError, Cluster
from sluice_operator.kinds import SECRETS
from sluice_operator.webhooks import SecretError


class ClusterSecrets:
    """Reads a Secret each time that it is needed, so that a rotated one counts at once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def authorization(self, namespace: str, reference: SecretKeyRef) -> str:
        """Return the header's value.

        Raises:
            SecretError: the Secret cannot be read, or its key holds nothing that a header can carry.
        """
        try:
            secret = await self._cluster.get(SECRETS, namespace, reference.name)
        except ApiError as error:
            raise SecretError(f"the Secret of its Authorization cannot be read ({error.reason})") from None
        try:
            encoded = (secret.get("data") or {}).get(reference.key) or ""
            value = base64.b64decode(encoded, validate=True).decode("ascii").strip()
        except (binascii.Error, UnicodeDecodeError):
            value = ""
        if not value or not value.isprintable():
            raise SecretError(f"Secret {reference.name} has no usable key {reference.key}")
        return value
