"""The one Secret that holds the operator's CA and serving certificate, made once and kept over upgrades.

Whatever the CA does not decide is healed without a word to the user: a serving certificate that is damaged, too
old or for other names is made again. A damaged CA is an error, because a new one would leave running pods
without a way to report.
"""

from __future__ import annotations

import base64
import binascii
import logging
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from llm_tuning.errors import TuningError
from tuning_operator.core.errors import AlreadyExists, Conflict
from tuning_operator.reports.certificates import KeyPair, is_served_by, make_ca, make_serving_cert, needs_renewal

log = logging.getLogger(__name__)

SECRET_NAME = "llm-tuning-operator-tls"
"""The only Secret that the operator's Role lets it read and change."""
ATTEMPTS = 5
"""How often two operators may cross each other before it is an error."""


class SecretStore(Protocol):
    """What of the cluster is needed; all of it for one name."""

    async def read_secret(self, namespace: str, name: str) -> Mapping[str, Any] | None: ...
    async def create_secret(self, namespace: str, body: dict[str, Any]) -> Mapping[str, Any]: ...
    async def replace_secret(self, namespace: str, name: str, body: dict[str, Any]) -> Mapping[str, Any]: ...


class TlsSecretDamaged(TuningError, RuntimeError):  # noqa: N818 - says what happened
    """The Secret's CA cannot be used; the message says what to do."""

    def __init__(self, namespace: str, problem: str) -> None:
        super().__init__(
            f"Secret {namespace}/{SECRET_NAME}: {problem}; restore it from a backup, or delete it"
            f" (kubectl -n {namespace} delete secret {SECRET_NAME}) and restart the operator: it makes a new CA,"
            " and TuningJobs that are running finish as usual but report no more progress"
        )


@dataclass(frozen=True)
class Tls:
    """What the progress server serves with and what pods trust."""

    context: ssl.SSLContext
    ca_pem: str


def serving_names(namespace: str, service: str = "llm-tuning-operator") -> list[str]:
    """Return the DNS names under which pods of any namespace reach the Service."""
    return [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"]


async def ensure_tls(cluster: SecretStore, namespace: str, names: Iterable[str], now: datetime) -> Tls:
    """Read the Secret, made or renewed where needed; TlsSecretDamaged if its CA cannot be used."""
    names = sorted(set(names))
    for _ in range(ATTEMPTS):
        secret = await cluster.read_secret(namespace, SECRET_NAME)
        found = (None, None) if secret is None else _read_pairs(secret, namespace)
        ca, serving = _usable_pairs(*found, names=names, now=now)
        if (ca, serving) == found:
            return Tls(serving_context(serving), ca.certificate_pem.decode())
        try:
            if secret is None:
                await cluster.create_secret(namespace, _build_secret(namespace, ca, serving))
                log.info("made the CA of the reporting endpoint: Secret %s/%s", namespace, SECRET_NAME)
            else:
                # The resourceVersion in it makes the API server refuse what another operator has changed meanwhile.
                await cluster.replace_secret(namespace, SECRET_NAME, {**secret, "data": _build_data(ca, serving)})
                log.info("renewed certificates of the progress server: Secret %s/%s", namespace, SECRET_NAME)
        except (AlreadyExists, Conflict):
            continue  # another operator was quicker: what it wrote is read
    raise TlsSecretDamaged(namespace, f"another client changed it {ATTEMPTS} times in a row")


def serving_context(pair: KeyPair) -> ssl.SSLContext:
    """Build the server's TLS context of a pair; TLS 1.3 only, as both ends are this project's."""
    return build_context(pair.certificate_pem, pair.key_pem)


def build_context(certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """Build the server's TLS context of a pair in PEM; raises ssl.SSLError where the two do not belong together."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = (
        0  # no client resumes a session: each ticket would be signed and kept for a client that comes once
    )
    load_pair(context, certificate_pem, key_pem)
    return context


def load_pair(context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes) -> None:
    """Load the pair into `context`, which serves new connections with it."""
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # OpenSSL reads files only; this one is the user's alone
        file.write(certificate_pem + b"\n" + key_pem)
        file.flush()
        context.load_cert_chain(file.name)


def _read_pairs(secret: Mapping[str, Any], namespace: str) -> tuple[KeyPair, KeyPair | None]:
    """Read the CA, and the serving pair or None where it is damaged; raises TlsSecretDamaged for a damaged CA."""
    data = secret.get("data") or {}
    try:
        ca = _read_pair(data, "ca")
    except ValueError as problem:
        raise TlsSecretDamaged(namespace, f"ca.crt and ca.key: {problem}") from None
    try:
        return ca, _read_pair(data, "tls")
    except ValueError as problem:
        log.warning("Secret %s/%s: tls.crt and tls.key are made again: %s", namespace, SECRET_NAME, problem)
        return ca, None


def _read_pair(data: Mapping[str, str], stem: str) -> KeyPair:
    missing = [key for key in (f"{stem}.crt", f"{stem}.key") if not data.get(key)]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing")
    return KeyPair.from_pem(_decoded(data[f"{stem}.crt"]), _decoded(data[f"{stem}.key"]))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None


def _usable_pairs(
    ca: KeyPair | None, serving: KeyPair | None, *, names: list[str], now: datetime
) -> tuple[KeyPair, KeyPair]:
    """Return the pairs found, each made again if it ends within the year or does not fit; the CA keeps its key."""
    if ca is None or needs_renewal(ca.certificate, now):
        ca = make_ca(now, ca.key if ca else None)
    if serving is None or needs_renewal(serving.certificate, now) or not is_served_by(ca, serving, names):
        serving = make_serving_cert(ca, names, now)
    return ca, serving


def _build_secret(namespace: str, ca: KeyPair, serving: KeyPair) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET_NAME, "namespace": namespace},
        "type": "Opaque",
        "data": _build_data(ca, serving),
    }


def _build_data(ca: KeyPair, serving: KeyPair) -> dict[str, str]:
    pem = {
        "ca.crt": ca.certificate_pem,
        "ca.key": ca.key_pem,
        "tls.crt": serving.certificate_pem,
        "tls.key": serving.key_pem,
    }
    return {key: base64.b64encode(value).decode() for key, value in pem.items()}
