"""Who calls: API keys by name, never kept or shown, and what the request's headers tell."""

import hashlib
from collections.abc import Mapping
from typing import Final

from multidict import CIMultiDictProxy

from sluice_cli.mock.errors import ERRORS, ApiError, ErrorShape, bad_request
from sluice_cli.mock.ledger import LedgerEntry

_MAX_CLIENT_REQUEST_ID: Final = 512
_NO_KEY: Final = ErrorShape(
    status=401,
    type="invalid_request_error",
    code=None,
    message="You didn't provide an API key. You need to provide your API key in an Authorization header"
    " using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
)


class KeyRing:
    """The keys that are valid: those configured, or any that begins with `sk-` when none is."""

    __slots__ = ("_names",)

    def __init__(self, keys: Mapping[str, str] | None) -> None:
        """`keys` maps a name to its secret."""
        self._names = None if keys is None else {secret: name for name, secret in keys.items()}

    def name_of(self, authorization: str | None) -> str:
        """Return the name of the key in an `Authorization` header; 401 in OpenAI's shape when it is not valid."""
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise ApiError(_NO_KEY)
        if self._names is not None:
            name = self._names.get(secret)
        elif secret.startswith("sk-") and len(secret) > len("sk-"):
            name = "key-" + hashlib.sha256(secret.encode()).hexdigest()[:8]
        else:
            name = None
        if name is None:
            raise ApiError(ERRORS["invalid_api_key"])
        return name


def note_headers(headers: CIMultiDictProxy[str], entry: LedgerEntry) -> None:
    """Book the headers that tests compare; 400 for a client request id that OpenAI would refuse."""
    retries = headers.get("x-stainless-retry-count")
    entry.retry_count = int(retries) if retries is not None and retries.isdigit() else None
    entry.organization = headers.get("openai-organization")
    entry.project = headers.get("openai-project")
    given = headers.get("x-client-request-id")
    if given is None:
        return
    if len(given) > _MAX_CLIENT_REQUEST_ID or not given.isascii():
        raise bad_request("X-Client-Request-Id must be ASCII of at most 512 characters.")
    entry.client_request_id = given
