"""What stands for Secrets in local mode, of webhooks and of stores: environment variables."""

from __future__ import annotations

import os
import re

from sluice_core.api.base import SecretKeyRef
from sluice_operator.webhooks import SecretError


def variable_of(reference: SecretKeyRef) -> str:
    """Return the variable that stands for a Secret's key, such as `SLUICE_SECRET_RED_TEAM_TOKEN`."""
    return "SLUICE_SECRET_" + re.sub(r"[^A-Za-z0-9]", "_", f"{reference.name}_{reference.key}").upper()


class EnvironmentSecrets:
    """Takes a Secret's value from the environment of `sluice dev`."""

    async def authorization(self, namespace: str, reference: SecretKeyRef) -> str:
        """Return the header's value.

        Raises:
            SecretError: the variable is not set, or holds nothing that a header can carry.
        """
        del namespace
        variable = variable_of(reference)
        value = os.environ.get(variable, "").strip()
        if not value or not value.isascii() or not value.isprintable():
            raise SecretError(f"local mode reads Secret {reference.name} from the environment: set {variable}")
        return value
