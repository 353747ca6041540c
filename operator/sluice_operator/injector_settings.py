"""What the injector is told by its installation: the sidecar that it adds to pods. Read from one JSON file."""

from __future__ import annotations

import re
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

_QUANTITY: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS: Final[dict[str | None, Decimal]] = {
    None: Decimal(1),
    "m": Decimal(1) / 1000,
    "k": Decimal(1000),
    "M": Decimal(1000) ** 2,
    "G": Decimal(1000) ** 3,
    "T": Decimal(1000) ** 4,
    "Ki": Decimal(1024),
    "Mi": Decimal(1024) ** 2,
    "Gi": Decimal(1024) ** 3,
    "Ti": Decimal(1024) ** 4,
}


def quantity(text: str) -> Decimal | None:
    """Return the value of a Kubernetes quantity such as `250m` or `64Mi`, or None if it is none that Sluice takes."""
    match = _QUANTITY.fullmatch(text)
    return Decimal(match[1]) * _FACTORS[match[2]] if match else None


class NativeSidecar(StrEnum):
    """Whether the sidecar runs as a native one: an init container that is never done."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class WhenUnconfigured(StrEnum):
    """What a sidecar does before it has a policy."""

    HOLD = "Hold"
    PASS_THROUGH = "PassThrough"  # noqa: S105 - a mode


class Resources(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Compute resources of the sidecar, as Kubernetes quantities; an empty one is left out."""

    cpu_request: str = "50m"
    memory_request: str = "64Mi"
    cpu_limit: str = "1"
    memory_limit: str = "512Mi"


class SidecarSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The sidecar container, and how the application is pointed at it."""

    image: Annotated[str, Meta(min_length=1)]
    image_pull_policy: str = "IfNotPresent"
    proxy_port: int = 4141
    admin_port: int = 4142
    admin_host: str = "0.0.0.0"
    sync_url: str = ""
    resources: Resources = Resources()
    run_as_user: int | None = 65532
    pre_stop_seconds: int = 5
    when_unconfigured: WhenUnconfigured = WhenUnconfigured.HOLD
    environment: dict[str, str] = {}

    @property
    def base_url(self) -> str:
        """Return what `OPENAI_BASE_URL` is set to. An address, so that no resolver or IPv6 preference is in the way."""
        return f"http://127.0.0.1:{self.proxy_port}/v1"


class InjectorSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The whole settings file."""

    version: str
    sidecar: SidecarSettings
    native_sidecar: NativeSidecar = NativeSidecar.AUTO


def decode(data: bytes) -> InjectorSettings:
    """Decode a settings file. Raises `ValueError` that names the wrong field."""
    return msgspec.json.decode(data, type=InjectorSettings)
