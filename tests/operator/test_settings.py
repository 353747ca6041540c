"""Settings from the environment."""

from __future__ import annotations

import pytest

from sluice_operator.settings import Settings, SettingsError, address, load


def test_defaults_hold_where_nothing_is_set():
    """An empty value counts as not set."""
    assert load({"SLUICE_TICK_SECONDS": "", "OTHER": "x"}) == Settings()


def test_every_setting_has_its_variable():
    """Numbers and lists are read from text."""
    settings = load(
        {
            "SLUICE_TICK_SECONDS": "2.5",
            "SLUICE_NAMESPACE": "s",
            "SLUICE_CERTIFICATE_NAMES": "a.svc, b.svc,",
            "SLUICE_EXCLUDED_NAMESPACES": "kube-system,vault",
        }
    )
    assert (settings.tick_seconds, settings.namespace, settings.dns_names) == (2.5, "s", ("a.svc", "b.svc"))
    assert settings.exempt_namespaces == {"s", "kube-system", "vault"}


@pytest.mark.parametrize("environment", [{"SLUICE_TICK_SECONDS": "soon"}, {"SLUICE_CERTIFICATE_ISSUER": "Somebody"}])
def test_a_wrong_value_names_its_variable(environment: dict[str, str]):
    """The message says which variable to correct."""
    with pytest.raises(SettingsError, match=next(iter(environment))):
        load(environment)


def test_no_two_processes_share_an_identity():
    """A pod that restarts is another candidate for leadership than before."""
    settings = Settings(pod_name="sluice-operator-0")
    assert settings.identity != settings.identity
    assert settings.identity.startswith("sluice-operator-0_")


@pytest.mark.parametrize(
    ("text", "expected"), [("0.0.0.0:80", ("0.0.0.0", 80)), (":0", ("", 0)), ("[::1]:8080", ("::1", 8080))]
)
def test_an_address_is_host_and_port(text: str, expected: tuple[str, int]):
    """IPv6 hosts are in brackets."""
    assert address(text) == expected


def test_an_address_without_a_port_is_refused():
    """A host alone is not enough to listen on."""
    with pytest.raises(SettingsError):
        address("localhost")
