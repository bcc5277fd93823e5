"""The Secret of the progress server: made once, kept, healed, and an error that says what to do."""

from __future__ import annotations

import asyncio
import base64
import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tuning_operator.core.errors import AlreadyExists, Conflict
from tuning_operator.reports.certificates import KeyPair, make_ca
from tuning_operator.reports.tls import SECRET_NAME, TlsSecretDamaged, ensure_tls, serving_names

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
YEAR = timedelta(days=365)
NAMES = serving_names("llm-tuning")


@dataclass
class Secrets:
    """One namespace's Secret, as an API server keeps it; every request yields, so that two operators can cross."""

    secret: dict[str, Any] | None = None
    writes: list[str] = field(default_factory=list)

    async def read_secret(self, namespace: str, name: str) -> dict[str, Any] | None:
        assert (namespace, name) == ("llm-tuning", SECRET_NAME)
        await asyncio.sleep(0)
        return copy.deepcopy(self.secret)

    async def create_secret(self, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.secret is not None:
            raise AlreadyExists("exists")
        return self._keep(body, "create", "1")

    async def replace_secret(self, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        assert self.secret is not None
        version = self.secret["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise Conflict("changed")
        return self._keep(body, "update", str(int(version) + 1))

    def _keep(self, body: dict[str, Any], verb: str, version: str) -> dict[str, Any]:
        self.secret = copy.deepcopy(body)
        self.secret["metadata"]["resourceVersion"] = version
        self.writes.append(verb)
        return self.secret

    def pair(self, stem: str) -> KeyPair:
        assert self.secret is not None
        data = {key: base64.b64decode(value) for key, value in self.secret["data"].items()}
        return KeyPair.from_pem(data[f"{stem}.crt"], data[f"{stem}.key"])

    def put(self, key: str, value: bytes) -> None:
        assert self.secret is not None
        self.secret["data"][key] = base64.b64encode(value).decode()


@pytest.fixture
async def made() -> Secrets:
    secrets = Secrets()
    await ensure_tls(secrets, "llm-tuning", NAMES, NOW)
    return secrets


async def test_it_is_made_once_and_then_only_read(made: Secrets) -> None:
    first = made.pair("ca").certificate_pem.decode()
    again = await ensure_tls(made, "llm-tuning", NAMES, NOW + YEAR)
    assert again.ca_pem == first
    assert made.writes == ["create"]
    assert made.secret is not None
    assert made.secret["type"] == "Opaque"


async def test_two_operators_agree_on_one_authority() -> None:
    secrets = Secrets()
    one, two = await asyncio.gather(*(ensure_tls(secrets, "llm-tuning", NAMES, NOW) for _ in range(2)))
    assert one.ca_pem == two.ca_pem == secrets.pair("ca").certificate_pem.decode()
    assert secrets.writes == ["create"]


async def test_two_operators_renew_once(made: Secrets) -> None:
    later = NOW + 9.5 * YEAR
    one, two = await asyncio.gather(*(ensure_tls(made, "llm-tuning", NAMES, later) for _ in range(2)))
    assert one.ca_pem == two.ca_pem
    assert made.writes == ["create", "update"]


async def test_new_names_make_a_new_serving_certificate_under_the_same_authority(made: Secrets) -> None:
    before = made.pair("ca").certificate
    await ensure_tls(made, "llm-tuning", [*NAMES, "progress.example"], NOW)
    assert made.pair("ca").certificate == before
    assert made.writes == ["create", "update"]
    await ensure_tls(made, "llm-tuning", [*NAMES, "progress.example"], NOW)
    assert made.writes == ["create", "update"]


async def test_the_authority_keeps_its_key_for_ever(made: Secrets) -> None:
    key = made.pair("ca").key_pem
    await ensure_tls(made, "llm-tuning", NAMES, NOW + 9.5 * YEAR)
    assert made.pair("ca").key_pem == key
    assert made.pair("ca").certificate.not_valid_after_utc > NOW + 19 * YEAR


@pytest.mark.parametrize("damage", [b"nonsense", b"", make_ca(NOW).key_pem])
async def test_a_damaged_serving_certificate_is_made_again(made: Secrets, damage: bytes) -> None:
    made.put("tls.key", damage)
    ca = made.pair("ca").certificate
    await ensure_tls(made, "llm-tuning", NAMES, NOW)
    assert made.pair("ca").certificate == ca
    assert made.pair("tls").certificate.issuer == ca.subject


@pytest.mark.parametrize(
    ("key", "damage", "problem"),
    [
        ("ca.crt", b"nonsense", "ca.crt and ca.key: the certificate is not PEM"),
        ("ca.key", b"nonsense", "ca.crt and ca.key: the key is not an unencrypted PEM key"),
        ("ca.key", make_ca(NOW).key_pem, "ca.crt and ca.key: the key does not belong to the certificate"),
        ("ca.key", b"", "ca.crt and ca.key: ca.key missing"),
    ],
)
async def test_a_damaged_authority_is_an_error_with_a_way_out(
    made: Secrets, key: str, damage: bytes, problem: str
) -> None:
    made.put(key, damage)
    with pytest.raises(TlsSecretDamaged, match=problem) as error:
        await ensure_tls(made, "llm-tuning", NAMES, NOW)
    assert "kubectl -n llm-tuning delete secret llm-tuning-operator-tls" in str(error.value)
    assert made.writes == ["create"]


async def test_a_secret_without_data_is_damaged(made: Secrets) -> None:
    assert made.secret is not None
    del made.secret["data"]
    with pytest.raises(TlsSecretDamaged, match=r"ca\.crt and ca\.key missing"):
        await ensure_tls(made, "llm-tuning", NAMES, NOW)


async def test_a_secret_that_is_not_base64_is_damaged(made: Secrets) -> None:
    assert made.secret is not None
    made.secret["data"]["ca.crt"] = "*"
    with pytest.raises(TlsSecretDamaged, match="not base64"):
        await ensure_tls(made, "llm-tuning", NAMES, NOW)
