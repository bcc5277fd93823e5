"""The CA that training pods trust and the serving certificate of the progress server, as pure functions.

The CA's key is never replaced: its certificate lies in the template of every running pod. A new certificate with the
same key and name is trusted by pods that hold the old one, until that one ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = timedelta(days=3653)
"""Ten years: longer than any run, without an administrator who has to think of it."""
RENEW_BEFORE = timedelta(days=365)
"""Renewed by any start of the operator in the last year."""
CLOCK_SKEW = timedelta(hours=1)
"""A node's clock may be behind the operator's."""
AUTHORITY_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llm-tuning-operator authority")])


@dataclass(frozen=True)
class KeyPair:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_pem(cls, certificate: bytes, key: bytes) -> Self:
        """Read both; ValueError says which one is unreadable, or that they do not belong together."""
        try:
            read_certificate = x509.load_pem_x509_certificate(certificate)
        except ValueError:
            raise ValueError("the certificate is not PEM") from None
        try:
            read_key = load_pem_private_key(key, password=None)
        except (ValueError, TypeError):
            raise ValueError("the key is not an unencrypted PEM key") from None
        if not isinstance(read_key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is not an elliptic-curve key")
        if _public_bytes(read_key.public_key()) != _public_bytes(read_certificate.public_key()):
            raise ValueError("the key does not belong to the certificate")
        return cls(read_certificate, read_key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_ca(now: datetime, key: ec.EllipticCurvePrivateKey | None = None) -> KeyPair:
    """Make a CA valid for ten years; with `key`, a new certificate of the CA that has it."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(now, AUTHORITY_NAME, key, not_after=now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(certificate, key)


def make_serving_cert(ca: KeyPair, dns_names: Iterable[str], now: datetime) -> KeyPair:
    """Make a serving certificate for `dns_names`, valid as long as the CA's own."""
    names = sorted(set(dns_names))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "llm-tuning-operator")])
    authority = x509.SubjectKeyIdentifier.from_public_key(ca.key.public_key())
    certificate = (
        _builder(now, subject, key, not_after=ca.certificate.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority),
            critical=False,
        )
        .sign(ca.key, hashes.SHA256())
    )
    return KeyPair(certificate, key)


def needs_renewal(certificate: x509.Certificate, now: datetime) -> bool:
    """Return whether the certificate ends within the year."""
    return certificate.not_valid_after_utc - now < RENEW_BEFORE


def is_served_by(ca: KeyPair, serving: KeyPair, dns_names: Iterable[str]) -> bool:
    """Return whether the CA signed the serving certificate, and for exactly these names."""
    try:
        serving.certificate.verify_directly_issued_by(ca.certificate)
        names = serving.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # a foreign or malformed certificate: cryptography has an error class for each way
        return False
    return set(names.get_values_for_type(x509.DNSName)) == set(dns_names)


def _builder(
    now: datetime, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, not_after: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(AUTHORITY_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _public_bytes(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
