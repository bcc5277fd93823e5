"""The authority and the serving certificate: what a strict client accepts, for how long, and what is renewed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from tuning_operator.reports.certificates import KeyPair, is_served_by, make_ca, make_serving_cert, needs_renewal

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = ["llm-tuning-operator.ns.svc", "llm-tuning-operator.ns.svc.cluster.local"]
YEAR = timedelta(days=365)


def trusts(ca: KeyPair, serving: KeyPair, name: str, at: datetime) -> bool:
    """Whether a strict client that holds the authority's certificate accepts the server at that moment."""
    verifier = PolicyBuilder().store(Store([ca.certificate])).time(at).build_server_verifier(x509.DNSName(name))
    try:
        verifier.verify(serving.certificate, [])
    except VerificationError:
        return False
    return True


def test_a_client_trusts_the_names_for_ten_years_and_nothing_else() -> None:
    ca = make_ca(NOW)
    serving = make_serving_cert(ca, NAMES, NOW)
    assert all(trusts(ca, serving, name, NOW + 9.9 * YEAR) for name in NAMES)
    assert not trusts(ca, serving, NAMES[0], NOW + 11 * YEAR)
    assert not trusts(ca, serving, "other.ns.svc", NOW)
    assert not trusts(make_ca(NOW), serving, NAMES[0], NOW)


def test_a_clock_that_is_behind_is_trusted() -> None:
    ca = make_ca(NOW)
    assert trusts(ca, make_serving_cert(ca, NAMES, NOW), NAMES[0], NOW - timedelta(minutes=30))


def test_the_last_year_is_for_renewal() -> None:
    ca = make_ca(NOW)
    assert not needs_renewal(ca.certificate, NOW + 8.9 * YEAR)
    assert needs_renewal(ca.certificate, NOW + 9.1 * YEAR)


def test_an_authority_made_anew_with_its_key_is_trusted_by_those_who_hold_the_old_one() -> None:
    old = make_ca(NOW)
    later = NOW + 9.5 * YEAR
    new = make_ca(later, old.key)
    serving = make_serving_cert(new, NAMES, later)
    assert trusts(old, serving, NAMES[0], later)
    assert trusts(new, serving, NAMES[0], later + 9 * YEAR)


def test_served_by_means_this_authority_and_exactly_these_names() -> None:
    ca = make_ca(NOW)
    serving = make_serving_cert(ca, NAMES, NOW)
    assert is_served_by(ca, serving, reversed(NAMES))
    assert not is_served_by(ca, serving, NAMES[:1])
    assert not is_served_by(make_ca(NOW), serving, NAMES)


def test_pem_there_and_back() -> None:
    ca = make_ca(NOW)
    again = KeyPair.from_pem(ca.certificate_pem, ca.key_pem)
    assert again.certificate == ca.certificate
    assert again.key_pem == ca.key_pem


@pytest.mark.parametrize(
    ("certificate", "key", "problem"),
    [
        (b"nonsense", None, "the certificate is not PEM"),
        (None, b"nonsense", "the key is not an unencrypted PEM key"),
        (None, make_ca(NOW).key_pem, "the key does not belong to the certificate"),
        (
            None,
            rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "the key is not an elliptic-curve key",
        ),
    ],
)
def test_unreadable_pem_is_named(certificate: bytes | None, key: bytes | None, problem: str) -> None:
    ca = make_ca(NOW)
    with pytest.raises(ValueError, match=problem):
        KeyPair.from_pem(certificate or ca.certificate_pem, key or ca.key_pem)
