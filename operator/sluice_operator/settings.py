"""The operator's settings, from the environment."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from sluice_core.api.base import Value

_PREFIX: Final = "SLUICE_"


class CertificateIssuer(StrEnum):
    """Who writes the certificates' Secret."""

    SLUICE = "Sluice"
    EXTERNAL = "External"


class Settings(Value, frozen=True, kw_only=True):
    """What can be set, each as `SLUICE_` and the name in capitals.

    `http` serves probes and metrics, `sync` the sidecars. The sync server needs `certificate_names`, the DNS names of
    its service, comma-separated; without them it is off, and policy reaches the pods by their mounts alone.
    `excluded_namespaces`, comma-separated, are those that the webhook is not asked about besides the operator's own: a
    label there asks for nothing.
    """

    namespace: str = "sluice-system"
    lease_name: str = "sluice-operator"
    pod_name: str = ""
    http: str = "0.0.0.0:8080"
    sync: str = "0.0.0.0:8443"
    certificate_secret: str = "sluice-certificates"  # noqa: S105 -- a name
    certificate_names: str = ""
    certificate_issuer: CertificateIssuer = CertificateIssuer.SLUICE
    excluded_namespaces: str = ""
    ports_file: str = ""
    log_level: str = "info"
    tick_seconds: float = 5.0
    debounce_seconds: float = 0.25
    resync_seconds: float = 60.0
    drift_seconds: float = 10.0
    reread_seconds: float = 10.0
    request_timeout_seconds: float = 4.0

    @property
    def dns_names(self) -> tuple[str, ...]:
        """Return the names in the sync server's certificate."""
        return _list(self.certificate_names)

    @property
    def exempt_namespaces(self) -> frozenset[str]:
        """Return the namespaces in which no pod gets a sidecar."""
        return frozenset((self.namespace, *_list(self.excluded_namespaces)))

    @property
    def identity(self) -> str:
        """Return a name for this process, unlike that of any other."""
        return f"{self.pod_name or socket.gethostname()}_{uuid.uuid4()}"


class SettingsError(ValueError):
    """A setting has a value that cannot be used."""


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings.

    Raises:
        SettingsError: a value does not have the type of its setting; the message names the variable.
    """
    given = {
        name: environment[_PREFIX + name.upper()]
        for name in Settings.__struct_fields__
        if environment.get(_PREFIX + name.upper())
    }
    values: dict[str, object] = {}
    types = msgspec.structs.fields(Settings)
    for field in types:
        if field.name not in given:
            continue
        try:
            values[field.name] = msgspec.convert(given[field.name], field.type, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{_PREFIX}{field.name.upper()}: {error}") from None
    return Settings(**values)  # type: ignore[arg-type]


def _list(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def address(text: str) -> tuple[str, int]:
    """Return host and port of `host:port`; an empty host means all addresses.

    Raises:
        SettingsError: there is no port, or it is not a number.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit():
        raise SettingsError(f"{text!r} is not an address such as 0.0.0.0:8080")
    return host.strip("[]"), int(port)
