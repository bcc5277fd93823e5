"""Certificates that cert-manager makes: served as they lie there, taken anew when they change, never half."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tuning_operator.reports.certificates import KeyPair, make_ca, make_serving_cert
from tuning_operator.reports.tls_folder import TlsFilesUnusable, TlsFolder

NOW = datetime.now(UTC)
CA = make_ca(NOW)


def write(folder: Path, ca: KeyPair, serving: KeyPair) -> None:
    for name, value in (
        ("ca.crt", ca.certificate_pem),
        ("tls.crt", serving.certificate_pem),
        ("tls.key", serving.key_pem),
    ):
        (folder / name).write_bytes(value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, CA, make_serving_cert(CA, ["localhost"], NOW))
    return tmp_path


@contextmanager
def served(context: ssl.SSLContext) -> Iterator[int]:
    """A server on that port that shakes hands with everyone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except (ssl.SSLError, OSError):
                    connection.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def certificate_seen(port: int, ca_pem: str) -> bytes:
    """What a pod that trusts `ca_pem` is shown; raises ssl.SSLError."""
    trusting = ssl.create_default_context(cadata=ca_pem)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        trusting.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        found = connection.getpeercert(binary_form=True)
        assert found is not None
        return ssl.DER_cert_to_PEM_cert(found).encode()


def test_a_new_certificate_is_served_by_the_listener_that_is_up(folder: Path) -> None:
    files = TlsFolder(folder)
    tls = files.load()
    assert files.renew(tls.context) is None
    with served(tls.context) as port:
        first = certificate_seen(port, tls.ca_pem)
        renewed = make_serving_cert(CA, ["localhost"], NOW)
        write(folder, CA, renewed)
        assert files.renew(tls.context) == tls.ca_pem
        assert certificate_seen(port, tls.ca_pem) == renewed.certificate_pem != first
        assert files.renew(tls.context) is None


def test_another_authority_is_told_to_the_pods_that_come(folder: Path) -> None:
    files = TlsFolder(folder)
    tls = files.load()
    other = make_ca(NOW)
    write(folder, other, make_serving_cert(other, ["localhost"], NOW))
    ca_pem = files.renew(tls.context)
    assert ca_pem == other.certificate_pem.decode()
    with served(tls.context) as port:
        assert certificate_seen(port, ca_pem)
        with pytest.raises(ssl.SSLError):
            certificate_seen(port, tls.ca_pem)


def test_a_change_that_is_half_made_changes_nothing(folder: Path) -> None:
    files = TlsFolder(folder)
    tls = files.load()
    before, renewed = (folder / "tls.crt").read_bytes(), make_serving_cert(CA, ["localhost"], NOW)
    (folder / "tls.crt").write_bytes(renewed.certificate_pem)
    with pytest.raises(TlsFilesUnusable, match="no pair"):
        files.renew(tls.context)
    with served(tls.context) as port:
        assert certificate_seen(port, tls.ca_pem) == before
        (folder / "tls.key").write_bytes(renewed.key_pem)
        assert files.renew(tls.context) == tls.ca_pem
        assert certificate_seen(port, tls.ca_pem) == renewed.certificate_pem


@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "tls.key"])
def test_a_file_that_is_missing_or_empty_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("")
    with pytest.raises(TlsFilesUnusable, match=rf"{name} is empty; the issuer"):
        TlsFolder(folder).load()
    (folder / name).unlink()
    with pytest.raises(TlsFilesUnusable, match=rf"{name}: No such file"):
        TlsFolder(folder).load()
