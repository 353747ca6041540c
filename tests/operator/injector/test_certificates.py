"""When certificates are made, renewed and left alone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import msgspec
import pytest
from cryptography import x509

from sluice_operator import certificates
from sluice_operator.certificates import Bundle, expires_at, from_secret_data, renew, trusts, usable

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NAMES = ("sluice-injector.sluice-system.svc", "sluice-operator.sluice-system.svc")


def _fresh() -> Bundle:
    bundle = renew(None, NAMES, START)
    assert bundle is not None
    return bundle


def _count(bundle: Bundle) -> int:
    return len(x509.load_pem_x509_certificates(bundle.trusted.encode()))


def _server(bundle: Bundle) -> x509.Certificate:
    return x509.load_pem_x509_certificate(bundle.certificate.encode())


def test_the_first_bundle_serves_all_names_at_once() -> None:
    """With nothing stored, an authority and a certificate for every name are made, good for slow clocks too."""
    bundle = _fresh()

    assert usable(bundle, NAMES, START)
    assert usable(bundle, NAMES, START - dt.timedelta(hours=23))
    assert renew(bundle, NAMES, START) is None


def test_a_bundle_survives_its_secret() -> None:
    """What is stored is what is read back."""
    bundle = _fresh()

    assert from_secret_data(bundle.to_secret_data()) == bundle


@pytest.mark.parametrize(
    ("day", "renewed"), [(1, False), (59, False), (61, True), (89, True), (91, True), (4000, True)]
)
def test_a_server_certificate_is_renewed_in_its_last_third(day: int, renewed: bool) -> None:
    """Ninety days minus thirty: a month is left for whatever goes wrong."""
    now = START + dt.timedelta(days=day)
    following = renew(_fresh(), NAMES, now)

    assert (following is not None) == renewed
    assert following is None or usable(following, NAMES, now)


def test_renewing_a_server_certificate_leaves_the_authority() -> None:
    """Clients need not learn anything when a server certificate is renewed."""
    bundle = _fresh()
    following = renew(bundle, NAMES, START + dt.timedelta(days=61))

    assert following is not None
    assert following.trusted == bundle.trusted
    assert following.key != bundle.key


def test_a_new_authority_signs_only_after_it_has_reached_the_clients() -> None:
    """Authority first, certificate later: a client that is an hour behind trusts whatever it meets."""
    now = START + certificates.AUTHORITY_LIFETIME - certificates.AUTHORITY_RENEWAL + dt.timedelta(days=1)
    old = _fresh()
    leaf = certificates._issue(
        x509.load_pem_x509_certificates(old.trusted.encode()),
        certificates._load_authority_key(old.authority_key),
        NAMES,
        now - dt.timedelta(days=70),
    )

    added = renew(leaf, NAMES, now)
    assert added is not None
    assert _count(added) == 2
    assert added.certificate == leaf.certificate
    assert renew(added, NAMES, now + dt.timedelta(minutes=59)) is None
    signed = renew(added, NAMES, now + dt.timedelta(minutes=61))
    assert signed is not None
    assert trusts(added.trusted, signed.trusted)
    newest = x509.load_pem_x509_certificates(signed.trusted.encode())[0]
    _server(signed).verify_directly_issued_by(newest)


def test_a_lost_secret_does_not_cut_off_those_who_still_serve_the_old_one() -> None:
    """What was trusted remains so in the bundle that takes the place of a deleted one."""
    lost = _fresh()
    following = renew(None, NAMES, START + dt.timedelta(days=1), also_trust=lost.trusted)

    assert following is not None
    assert trusts(following.trusted, lost.trusted)
    assert usable(following, NAMES, START + dt.timedelta(days=1))


def _other_key(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, key=_fresh().key)


def _other_authority(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, trusted=_fresh().trusted)


def _other_authority_key(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, authority_key=_fresh().authority_key)


def _no_authority(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, trusted="")


def _garbage(bundle: Bundle) -> Bundle:
    return Bundle(trusted="-----BEGIN CERTIFICATE-----", authority_key="x", certificate="y", key="z")


@pytest.mark.parametrize("damage", [_other_key, _other_authority, _other_authority_key, _no_authority, _garbage])
def test_a_damaged_bundle_is_replaced(damage: Callable[[Bundle], Bundle]) -> None:
    """Parts that do not fit each other are never served."""
    following = renew(damage(_fresh()), NAMES, START)

    assert following is not None
    assert usable(following, NAMES, START)


def test_a_renamed_service_gets_a_certificate_of_its_name() -> None:
    """A certificate that lacks a name is as good as none."""
    following = renew(_fresh(), (*NAMES, "other.ns.svc"), START)

    assert following is not None
    assert usable(following, (*NAMES, "other.ns.svc"), START)


def test_a_clock_that_was_set_back_before_the_certificate_heals() -> None:
    """A certificate that is not valid yet is replaced by one that is."""
    now = START - dt.timedelta(days=400)
    following = renew(_fresh(), NAMES, now)

    assert following is not None
    assert usable(following, NAMES, now)
    assert expires_at(following) > now


def test_the_keys_show_in_no_representation() -> None:
    """A bundle in a log line or a traceback gives nothing away."""
    bundle = _fresh()

    assert "PRIVATE" not in repr(bundle)
    assert "PRIVATE" not in f"{bundle}"


def test_the_number_of_trusted_authorities_is_bounded() -> None:
    """Losing the Secret again and again does not grow the bundle without end."""
    bundle = _fresh()
    for _ in range(6):
        following = renew(None, NAMES, START, also_trust=bundle.trusted)
        assert following is not None
        bundle = following

    assert _count(bundle) == 4
