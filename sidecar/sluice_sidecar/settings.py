"""Settings of the process, read once from the environment. A wrong value names its variable."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec


class SettingsError(ValueError):
    """A variable of the environment has no usable value. The message names the variable and the mend."""


class WhenUnconfigured(StrEnum):
    """What happens to calls before the first good policy has been read."""

    HOLD = "Hold"
    PASS_THROUGH = "PassThrough"  # noqa: S105 - a mode, not a password


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a port listens. Port 0 lets the system choose."""

    host: str
    port: int


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that differs between two sidecars."""

    listen: Address = Address(host="127.0.0.1", port=4141)
    admin: Address = Address(host="0.0.0.0", port=4142)
    config_dir: Path = Path("/etc/sluice/config")
    credentials_dir: Path = Path("/etc/sluice/credentials")
    labels_file: Path | None = None
    labels: dict[str, str] = {}
    namespace: str = "default"
    pod_name: str = ""
    pod_uid: str = ""
    sync_url: str | None = None
    sync_token_file: Path | None = None
    sync_ca_file: Path | None = None
    sole: bool = False
    grace_seconds: float = 30.0
    when_unconfigured: WhenUnconfigured = WhenUnconfigured.HOLD
    ports_file: Path | None = None
    vocabulary_dir: Path | None = None
    cache_bytes: int = 16 * 1024 * 1024


def load(environment: Mapping[str, str]) -> Settings:
    """Return the settings in `environment`, defaults for what is absent.

    Raises:
        SettingsError: a variable is malformed.
    """
    get = environment.get
    labels_file = _path(get("SLUICE_LABELS_FILE"))
    return Settings(
        listen=_loopback("SLUICE_LISTEN", get("SLUICE_LISTEN") or "127.0.0.1:4141"),
        admin=_address("SLUICE_ADMIN", get("SLUICE_ADMIN") or "0.0.0.0:4142"),
        config_dir=Path(get("SLUICE_CONFIG_DIR") or "/etc/sluice/config"),
        credentials_dir=Path(get("SLUICE_CREDENTIALS_DIR") or "/etc/sluice/credentials"),
        labels_file=labels_file,
        labels=_labels("SLUICE_LABELS", get("SLUICE_LABELS") or ""),
        namespace=get("SLUICE_NAMESPACE") or "default",
        pod_name=get("SLUICE_POD_NAME") or "",
        pod_uid=get("SLUICE_POD_UID") or "",
        sync_url=_http_url("SLUICE_SYNC_URL", get("SLUICE_SYNC_URL")),
        sync_token_file=_path(get("SLUICE_SYNC_TOKEN_FILE")),
        sync_ca_file=_path(get("SLUICE_SYNC_CA_FILE")),
        sole=_yes_or_no("SLUICE_SOLE", get("SLUICE_SOLE") or "false"),
        grace_seconds=_seconds("SLUICE_GRACE_SECONDS", get("SLUICE_GRACE_SECONDS") or "30"),
        when_unconfigured=_when_unconfigured(get("SLUICE_WHEN_UNCONFIGURED") or "Hold"),
        ports_file=_path(get("SLUICE_PORTS_FILE")),
        vocabulary_dir=_path(get("TIKTOKEN_CACHE_DIR")),
        cache_bytes=_bytes("SLUICE_CACHE_BYTES", get("SLUICE_CACHE_BYTES") or "16777216"),
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _address(variable: str, text: str) -> Address:
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SettingsError(f'{variable}: {text!r} is not an address; write host:port, such as "127.0.0.1:4141"')
    return Address(host=host.strip("[]"), port=int(port))


def _loopback(variable: str, text: str) -> Address:
    """The proxy port adds keys to calls, so only the pod itself may reach it."""
    address = _address(variable, text)
    try:
        loopback = ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        loopback = address.host == "localhost"
    if not loopback:
        raise SettingsError(f"{variable}: {address.host!r} is not a loopback address; use 127.0.0.1 or [::1]")
    return address


def _labels(variable: str, text: str) -> dict[str, str]:
    labels = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise SettingsError(f'{variable}: {item!r} is not a label; write key=value pairs, such as "app=chat,a=b"')
        labels[key.strip()] = value.strip()
    return labels


def _http_url(variable: str, text: str | None) -> str | None:
    if not text:
        return None
    if not text.startswith(("http://", "https://")):
        raise SettingsError(f"{variable}: {text!r} is not an http or https address")
    return text.rstrip("/")


def _seconds(variable: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise SettingsError(f"{variable}: {text!r} is not a number of seconds between 0 and 86400")
    return seconds


def _bytes(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise SettingsError(f"{variable}: {text!r} is not a number of bytes, such as 16777216")
    return int(text)


def _yes_or_no(variable: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise SettingsError(f"{variable}: {text!r} is neither true nor false")
    return text == "true"


def _when_unconfigured(text: str) -> WhenUnconfigured:
    try:
        return WhenUnconfigured(text)
    except ValueError:
        raise SettingsError(f"SLUICE_WHEN_UNCONFIGURED: {text!r} is neither Hold nor PassThrough") from None
