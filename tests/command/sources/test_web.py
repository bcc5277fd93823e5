"""One file by https, from a server with TLS of the test's own authority."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llm_tuning.sources import http
from llm_tuning.sources.fetch import Fetched, fetch
from llm_tuning.sources.patience import Limits
from llm_tuning.sources.reasons import SourceBusy, SourceRefused, Terminal
from llm_tuning.sources.uri import parse_uri
from tests.support.hub_server import content
from tuning_operator.reports.certificates import make_ca, make_serving_cert

ROWS = content(200_000)
SHA = hashlib.sha256(ROWS).hexdigest()
QUICK = Limits(tries=2, backoff_seconds=0.01)


class Site:
    """A server of one file whose headers a test changes."""

    def __init__(self, folder: Path) -> None:
        self.rows = ROWS
        self.headers = {"ETag": '"1"', "Content-Type": "application/jsonl"}
        self.status, self.head_status = 200, 200
        self.methods: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.methods.append(self.command)
                status = site.head_status if self.command == "HEAD" else site.status
                start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
                self.send_response(status if status != 200 else 206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(site.rows) - 1}/{len(site.rows)}")
                told = {"Content-Length": str(len(site.rows) - start), **site.headers}
                for name, value in told.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                if self.command == "GET" and status == 200:
                    self.wfile.write(site.rows[start:])

            do_HEAD = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *args: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None: ...

        ca = make_ca(datetime.now(UTC))
        serving = make_serving_cert(ca, ["localhost"], datetime.now(UTC))
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(ca.certificate_pem)
        (folder / "tls.pem").write_bytes(serving.certificate_pem + serving.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls.pem")
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(found.ca))
    http._opener.cache_clear()
    yield found
    found.server.shutdown()
    found.server.server_close()
    http._opener.cache_clear()


def get(site: Site, root: Path, name: str = "rows.jsonl", **known: str) -> Fetched:
    return fetch(parse_uri(f"https://{site.address}/{name}", "dataset"), root / "sources", limits=QUICK, **known)


def test_a_file_is_fetched_once_for_what_its_server_calls_its_content(site: Site, tmp_path: Path) -> None:
    first = get(site, tmp_path)
    assert first.path.name == "rows.jsonl"
    assert first.path.read_bytes() == ROWS
    assert site.methods == ["HEAD", "HEAD", "GET"]
    assert get(site, tmp_path).moved == 0
    site.rows, site.headers["ETag"] = content(1000, 7), '"2"'
    second = get(site, tmp_path)
    assert second.path.read_bytes() == site.rows
    assert not get(site, tmp_path, commit=first.commit).asked
    with pytest.raises(SourceRefused, match="has changed since") as changed:
        get(site, tmp_path / "another", commit=first.commit)
    assert changed.value.reason is Terminal.REVISION


def test_a_hash_pins_it_and_nobody_is_asked_twice(site: Site, tmp_path: Path) -> None:
    site.headers["ETag"] = ""
    assert get(site, tmp_path, f"rows.jsonl#sha256={SHA}").commit == SHA
    site.methods.clear()
    assert not get(site, tmp_path, f"rows.jsonl#sha256={SHA}").asked
    assert not site.methods


def test_another_content_than_the_hash_says_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="the hashes differ") as refused:
        get(site, tmp_path, f"rows.jsonl#sha256={'0' * 64}")
    assert refused.value.reason is Terminal.HASH


def test_a_server_without_head_is_asked_with_get(site: Site, tmp_path: Path) -> None:
    site.head_status = 405
    assert get(site, tmp_path).path.read_bytes() == ROWS


@pytest.mark.parametrize(
    ("headers", "status", "reason", "said"),
    [
        ({"Content-Type": "text/html; charset=utf-8"}, 200, Terminal.FORMAT, "is a page (HTML)"),
        ({"ETag": ""}, 200, Terminal.FORMAT, "cannot be pinned"),
        ({"Content-Length": ""}, 200, Terminal.FORMAT, "has no size"),
        ({}, 404, Terminal.NOT_FOUND, "is not there (HTTP 404)"),
        ({}, 401, Terminal.ACCESS, "asks for a sign-in (HTTP 401)"),
    ],
)
def test_what_no_file_of_rows_is_gets_its_reason(  # noqa: PLR0917
    site: Site, tmp_path: Path, headers: dict[str, str], status: int, reason: Terminal, said: str
) -> None:
    site.headers |= headers
    site.status = site.head_status = status
    with pytest.raises(SourceRefused) as refused:
        get(site, tmp_path)
    assert refused.value.reason is reason
    assert said in str(refused.value)


def test_a_redirect_to_plain_http_is_not_followed(site: Site, tmp_path: Path) -> None:
    site.status = site.head_status = 302
    site.headers["Location"] = "http://127.0.0.1:9/rows.jsonl"
    with pytest.raises(SourceBusy, match="redirects from https to http"):
        get(site, tmp_path)


def test_a_certificate_of_nobody_known_says_what_to_name(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    http._opener.cache_clear()
    with pytest.raises(SourceBusy, match="SSL_CERT_FILE"):
        get(site, tmp_path)
