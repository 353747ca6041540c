"""The control plane's own certificates: one authority, one server certificate, and when each is renewed.

Pure but for the randomness of new keys: a stored bundle and the time in, the next bundle out. The order of a renewal
is what matters. A new authority is only *added* to those that clients trust; server certificates are signed by it
after it has had time to reach every client; the old authority stays trusted until it expires by itself.

Lifetimes: an authority ten years, a server certificate 90 days and renewed in its last third, as ACME clients do.
Certificates begin a day in the past, for clients whose clock is behind.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME: Final = dt.timedelta(days=3650)
SERVER_LIFETIME: Final = dt.timedelta(days=90)
AUTHORITY_RENEWAL: Final = dt.timedelta(days=365)
SERVER_RENEWAL: Final = SERVER_LIFETIME / 3
BACKDATED: Final = dt.timedelta(days=1)
PROPAGATION: Final = dt.timedelta(hours=1)
_MAX_TRUSTED: Final = 4


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """Certificates and keys as PEM. `trusted` holds the authorities, newest first; `authority_key` is the newest's."""

    trusted: str
    authority_key: str
    certificate: str
    key: str

    def __repr__(self) -> str:
        return "Bundle(...)"

    def to_secret_data(self) -> dict[str, bytes]:
        """Return the entries of the Secret that stores this; names as in Secrets of type `kubernetes.io/tls`."""
        return {
            "ca.crt": self.trusted.encode(),
            "ca.key": self.authority_key.encode(),
            "tls.crt": self.certificate.encode(),
            "tls.key": self.key.encode(),
        }


def from_secret_data(data: dict[str, bytes]) -> Bundle | None:
    """Return the stored bundle, or None if there is none. Where somebody else issues, the authority may be absent."""
    try:
        return Bundle(
            trusted=data.get("ca.crt", b"").decode(),
            authority_key=data.get("ca.key", b"").decode(),
            certificate=data["tls.crt"].decode(),
            key=data["tls.key"].decode(),
        )
    except (KeyError, UnicodeDecodeError):
        return None


def renew(stored: Bundle | None, names: Sequence[str], now: dt.datetime, also_trust: str = "") -> Bundle | None:
    """Return the bundle to store next, or None if the stored one is good until the next look.

    `names` are the DNS names of the servers. `also_trust` are authorities that clients may still meet, for a bundle
    that was lost. `now` is aware.
    """
    if stored is None or not usable(stored, names, now):
        return _start_over(names, now, _authorities(stored.trusted if stored else "") + _authorities(also_trust))
    trusted = _current(_authorities(stored.trusted), now)
    server = x509.load_pem_x509_certificate(stored.certificate.encode())
    if _remaining(trusted[0], now) < AUTHORITY_RENEWAL:
        key = _new_key()
        trusted = [_new_authority(key, now), *trusted][:_MAX_TRUSTED]
        return msgspec.structs.replace(stored, trusted=_pem(trusted), authority_key=_key_pem(key))
    propagated = now - trusted[0].not_valid_before_utc >= BACKDATED + PROPAGATION
    if _remaining(server, now) < SERVER_RENEWAL and propagated:
        return _issue(trusted, _load_authority_key(stored.authority_key), names, now)
    return None


def usable(bundle: Bundle, names: Sequence[str], now: dt.datetime) -> bool:
    """Tell whether servers can go on with this: parts that fit each other, these names, a trusted and current chain."""
    try:
        trusted = _authorities(bundle.trusted)
        server = x509.load_pem_x509_certificate(bundle.certificate.encode())
        fits = (
            serialization.load_pem_private_key(bundle.key.encode(), password=None).public_key() == server.public_key()
        )
        signs = _load_authority_key(bundle.authority_key).public_key() == trusted[0].public_key()
        served = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        named = set(names) <= set(served.get_values_for_type(x509.DNSName))
    except (ValueError, TypeError, IndexError, x509.ExtensionNotFound):
        return False
    valid = server.not_valid_before_utc <= now < server.not_valid_after_utc
    current = _current(trusted, now)
    chained = trusted[0] in current and any(_signed(server, authority) for authority in current)
    return fits and signs and named and valid and chained


def expires_at(bundle: Bundle) -> dt.datetime:
    """Return the end of the server certificate."""
    return x509.load_pem_x509_certificate(bundle.certificate.encode()).not_valid_after_utc


def trusts(bundle: str, authorities: str) -> bool:
    """Tell whether a PEM bundle holds each of these authorities; a damaged bundle holds none."""
    try:
        known = set(x509.load_pem_x509_certificates(bundle.encode())) if bundle else set()
        return known >= set(x509.load_pem_x509_certificates(authorities.encode()))
    except ValueError:
        return False


def _start_over(names: Sequence[str], now: dt.datetime, former: list[x509.Certificate]) -> Bundle:
    key = _new_key()
    # Replicas serve what they hold for a moment longer, so what was trusted remains so.
    distinct = list(dict.fromkeys([_new_authority(key, now), *_current(former, now)]))
    return _issue(distinct[:_MAX_TRUSTED], key, names, now)


def _issue(
    trusted: list[x509.Certificate], authority_key: ec.EllipticCurvePrivateKey, names: Sequence[str], now: dt.datetime
) -> Bundle:
    key = _new_key()
    authority = trusted[0]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH]
    alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    end = min(now + SERVER_LIFETIME, authority.not_valid_after_utc)
    certificate = (
        _builder(_name("sluice"), authority.subject, key, now - BACKDATED, end)
        .add_extension(alternative, critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_authority_identifier(authority), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return Bundle(
        trusted=_pem(trusted),
        authority_key=_key_pem(authority_key),
        certificate=_pem([certificate]),
        key=_key_pem(key),
    )


def _new_authority(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> x509.Certificate:
    # The serial in the name keeps two authorities apart where a client looks up an issuer by its name.
    name = _name(f"sluice-ca-{int(now.timestamp())}")
    return (
        _builder(name, name, key, now - BACKDATED, now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_signing_only(), critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begin: dt.datetime, end: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _signing_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _authorities(pem: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode()) if pem.strip() else []
    except ValueError:
        return []


def _current(authorities: list[x509.Certificate], now: dt.datetime) -> list[x509.Certificate]:
    return [one for one in authorities if one.not_valid_before_utc <= now < one.not_valid_after_utc]


def _remaining(certificate: x509.Certificate, now: dt.datetime) -> dt.timedelta:
    return certificate.not_valid_after_utc - now


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _load_authority_key(pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic-curve key")
    return key


def _pem(certificates: Sequence[x509.Certificate]) -> str:
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in certificates)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
