"""`python -m llm_tuning.openai_api` as a process, as the chart starts it, against an API server on loopback."""

from __future__ import annotations

import io
import signal
import socket
import time

import httpx
import openai
import pytest

from llm_tuning.openai_api.keys import digest
from tests.support.api_process import START_SECONDS, Server


def test_keys_come_and_go_in_a_running_server_and_none_is_in_its_log(server: Server) -> None:
    server.start()
    first = server.add_key("first")
    rows = b'{"prompt": "p", "completion": "c"}\n'
    with server.client(first) as client:
        until_taken(client)
        made = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
        assert client.files.content(made.id).read() == rows
        second = server.add_key("second")
        with server.client(second) as other:
            until_taken(other)
            assert [file.id for file in other.files.list()] == [made.id]
        server.revoke("first")
        until_taken(client, taken=False)
        with pytest.raises(openai.AuthenticationError):
            client.models.retrieve(first)
    metrics = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text
    assert 'llm_tuning_api_requests_total{code="200",endpoint="/v1/files",method="POST"} 1.0' in metrics
    assert server.end() == 0
    log = server.log.read_text()
    assert "POST /v1/files 200" in log
    assert "keys: first, second" in log
    assert "GET /v1/models/[key] 401" in log
    for key in (first, second, digest(first)):
        assert key not in log + metrics


def test_a_large_upload_without_a_key_is_told_so_and_not_read(server: Server) -> None:
    """The answer comes while the client still sends: it must not be lost with the connection."""
    server.start()
    for _ in range(5):
        refused = pytest.raises(openai.AuthenticationError, match="Incorrect API key")
        with server.client("sk-llmtuning-wrong", max_retries=0) as client, refused:
            client.files.create(file=("big.jsonl", io.BytesIO(b"x" * 30_000_000)), purpose="fine-tune")
    metrics = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text
    assert "llm_tuning_api_upload_bytes_total 0.0" in metrics
    assert list((server.folder / "claim" / "datasets" / "uploads").iterdir()) == []


def test_a_limit_is_waited_for_by_the_sdk_itself(server: Server) -> None:
    server.write(limits={"requestsPerMinute": 30})
    key = server.add_key("busy")
    server.start()
    with server.client(key, max_retries=0) as client:
        until_taken(client)
        with pytest.raises(openai.RateLimitError, match="30 requests a minute"):
            _ = [client.files.list() for _ in range(31)]
    with server.client(key) as client:
        began = time.monotonic()
        client.files.list()
        assert 0.5 < time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bases": {}}, "error: settings.yaml.bases"),
        (
            {"bases": {"tiny": {"path": "base/tiny", "lora": {"rnk": 1}}}},
            "bases.tiny.lora.rnk: is not a known field; did you mean rank?",
        ),
        ({"limit": {}}, "limit: is not a known field; did you mean limits?"),
    ],
)
def test_wrong_settings_are_said_and_end_it(server: Server, settings: dict[str, object], says: str) -> None:
    server.write(**settings)
    assert server.run().wait(START_SECONDS) == 64
    assert says in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_a_port_that_is_taken_ends_it(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        assert server.run().wait(START_SECONDS) not in (0, 64)
    assert "address already in use" in server.log.read_text()


def test_a_sigterm_while_it_only_starts_ends_it_at_once(server: Server) -> None:
    process = server.run()
    time.sleep(0.5)
    began = time.monotonic()
    assert server.end() in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    assert time.monotonic() - began < 10
    assert process.poll() is not None


def until_taken(client: openai.OpenAI, *, taken: bool = True) -> None:
    """Wait for the second after which the folder is looked at again."""
    deadline = time.monotonic() + 10
    while True:
        try:
            client.files.list()
            now = True
        except openai.AuthenticationError:
            now = False
        if now is taken:
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_is_under_way_at_a_sigterm_ends_well_and_nothing_new_is_taken(server: Server) -> None:
    server.start()
    key = server.add_key("alice")
    with server.client(key) as client:
        until_taken(client)
    row = b'{"prompt": "p", "completion": "c"}\n'
    form = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
        + row * 100
        + b"\r\n--b--\r\n"
    )
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(form)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as upload:
        upload.sendall(head.encode() + form[:1000])
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while "Waiting for connections to close" not in server.log.read_text():
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        upload.sendall(form[1000:])
        answer = b"".join(iter(lambda: upload.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"filename":"rows.jsonl"' in answer
    assert server.process.wait(30) == 0
