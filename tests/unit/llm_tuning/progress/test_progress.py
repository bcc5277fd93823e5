"""What people and the cluster see of a run, and that seeing costs no step."""

from __future__ import annotations

import io
import json
import os
import pty
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TextIO

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llm_tuning.progress import Progress, Snapshot, fitting_displays
from llm_tuning.progress.bar import Bar
from llm_tuning.progress.endpoint import StatusEndpoint
from llm_tuning.progress.lines import JsonLines
from tests.support.status_server import closed_port, silent_server, status_server

HALF_WAY = Snapshot(
    stage="training",
    step=50,
    total_steps=100,
    epoch=0.5,
    tokens_per_second=1234.56,
    remaining_seconds=247.4,
    metrics={"train/loss": 2.123456, "train/learning_rate": 2e-4, "eval/loss": 2.5},
    stepping=True,
)


class Shown(io.StringIO):
    """A stream that tells when a line is there."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def wait(event: threading.Event) -> None:
    assert event.wait(30)
    event.clear()


# JSON lines


def test_the_first_line_comes_with_the_first_step_and_the_last_with_the_end() -> None:
    stream = Shown()
    progress = Progress([JsonLines(stream, interval_seconds=3600)])
    progress.update(Snapshot(stage="loading"))
    progress.update(replace(HALF_WAY, step=1))
    wait(stream.written)
    for step in range(2, 100):
        progress.update(replace(HALF_WAY, step=step))
    progress.close(replace(HALF_WAY, step=100, done=True, stage="done"))
    assert [(line["step"], line["percent"]) for line in stream.lines()] == [(1, 1), (100, 100)]


def test_a_line_comes_every_interval_with_the_newest_values() -> None:
    stream = Shown()
    progress = Progress([JsonLines(stream, interval_seconds=0.01)])
    for step in (1, 2, 3):
        progress.update(replace(HALF_WAY, step=step))
        wait(stream.written)
        wait(stream.written)
    progress.close(replace(HALF_WAY, step=4))
    steps = [line["step"] for line in stream.lines()]
    assert steps == sorted(steps)
    assert set(steps) == {1, 2, 3, 4}


def test_a_line_has_the_names_of_a_tuning_job_s_status() -> None:
    stream = Shown()
    JsonLines(stream).show(HALF_WAY)
    [line] = stream.lines()
    assert datetime.fromisoformat(line.pop("lastUpdateTime")).tzinfo is not None
    assert line == {
        "stage": "training",
        "percent": 50,
        "step": 50,
        "totalSteps": 100,
        "epoch": 0.5,
        "loss": 2.12346,
        "evalLoss": 2.5,
        "tokensPerSecond": 1234.6,
        "remainingSeconds": 247,
    }


def test_a_loss_that_is_not_a_number_does_not_break_the_json() -> None:
    stream = Shown()
    JsonLines(stream).show(replace(HALF_WAY, metrics={"train/loss": float("nan")}))
    assert "loss" not in stream.lines()[0]


def test_the_last_step_is_not_the_end() -> None:
    assert replace(HALF_WAY, step=100).percent == 99
    assert replace(HALF_WAY, step=100, done=True).percent == 100
    assert Snapshot(step=3).percent == 0


def test_a_closed_pipe_ends_the_lines_and_not_the_run() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    stream = os.fdopen(write_end, "w")
    lines = JsonLines(stream)
    lines.show(HALF_WAY)
    lines.close(HALF_WAY)
    with pytest.raises(BrokenPipeError):
        stream.close()  # what was written could go nowhere


def test_without_a_step_nothing_is_said() -> None:
    stream = Shown()
    progress = Progress([JsonLines(stream)])
    progress.close(Snapshot())
    progress = Progress([JsonLines(stream)])
    progress.update(Snapshot(stage="loading"))
    progress.close(Snapshot())
    assert stream.getvalue() == ""


def test_the_thread_sleeps_while_nothing_is_due() -> None:
    for displays in ([], [JsonLines(io.StringIO(), interval_seconds=3600)]):
        progress = Progress(displays)
        progress.update(HALF_WAY)
        others = time.process_time() - time.thread_time()
        time.sleep(0.3)
        assert time.process_time() - time.thread_time() - others < 0.1
        progress.close(HALF_WAY)


# The bar


@pytest.fixture
def terminal() -> Iterator[tuple[TextIO, io.FileIO]]:
    """A real terminal: our end to write to, and the other end, which reads what would be on the screen."""
    screen, ours = pty.openpty()
    with os.fdopen(ours, "w") as stream, os.fdopen(screen, "rb", buffering=0) as reader:
        yield stream, reader


def read_until(reader: io.FileIO, text: str) -> str:
    seen = b""
    while text.encode() not in seen:
        chunk = reader.read(65536)
        assert chunk
        seen += chunk
    return seen.decode()


def test_a_terminal_gets_a_bar_with_loss_speed_and_time_left(
    terminal: tuple[TextIO, io.FileIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, reader = terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    progress = Progress(fitting_displays(stream))
    progress.update(Snapshot(stage="loading"))
    read_until(reader, "loading")
    progress.update(HALF_WAY)
    seen = read_until(reader, "left")
    for text in ("training", "50/100", "loss 2.123", "1,235 tokens/s", "4:07 left"):
        assert text in seen
    progress.close(replace(HALF_WAY, step=100, done=True, stage="done"))
    assert "100/100" in read_until(reader, "\x1b[?25h"), "the cursor is shown again"


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05 left"), (59.6, "1:00 left"), (7447, "2:04:07 left")])
def test_time_left_reads_as_a_clock(
    terminal: tuple[TextIO, io.FileIO], monkeypatch: pytest.MonkeyPatch, seconds: float, text: str
) -> None:
    stream, reader = terminal
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    bar = Bar(stream)
    bar.show(replace(HALF_WAY, remaining_seconds=seconds))
    bar.close(replace(HALF_WAY, remaining_seconds=seconds))
    assert text in read_until(reader, text)


def test_a_dumb_terminal_and_a_pipe_get_lines(
    terminal: tuple[TextIO, io.FileIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert [type(display) for display in fitting_displays(terminal[0])] == [JsonLines]
    monkeypatch.setenv("TERM", "xterm")
    assert [type(display) for display in fitting_displays(io.StringIO())] == [JsonLines]
    assert [type(display) for display in fitting_displays(terminal[0])] == [Bar]


# The status endpoint


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with the key and the self-signed certificate of 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "status")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def test_a_pod_posts_the_protocol_over_tls_with_its_token(
    certificate: Path, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with status_server(certificate) as server:
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", server.url)
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(token))
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(certificate))
        progress = Progress(fitting_displays(io.StringIO()))
        progress.update(HALF_WAY)
        bearer, body = server.next()
        progress.close(replace(HALF_WAY, step=100, done=True, remaining_seconds=None))
        last = server.next()[1]["trainerStatus"]
    assert bearer == "Bearer first"
    status = body["trainerStatus"]
    assert datetime.fromisoformat(status["lastUpdatedTime"]).tzinfo is not None
    assert (status["progressPercentage"], status["estimatedRemainingSeconds"]) == (50, 247)
    assert {metric["name"]: metric["value"] for metric in status["metrics"]} == {
        "current_step": "50",
        "total_steps": "100",
        "current_epoch": "0.5",
        "loss": "2.123456",
        "learning_rate": "0.0002",
        "eval_loss": "2.5",
        "tokens_per_second": "1234.6",
    }
    assert last["progressPercentage"] == 100
    assert "estimatedRemainingSeconds" not in last


def test_a_replaced_token_is_used_by_the_next_post(certificate: Path, token: Path) -> None:
    with status_server(certificate) as server:
        endpoint = StatusEndpoint(server.url, token, certificate)
        endpoint.show(HALF_WAY)
        token.write_text("second")
        endpoint.show(HALF_WAY)
        assert [server.next()[0], server.next()[0]] == ["Bearer first", "Bearer second"]


def test_an_unknown_authority_gets_no_token(certificate: Path, token: Path, caplog: pytest.LogCaptureFixture) -> None:
    with status_server(certificate) as server:
        StatusEndpoint(server.url, token, None).show(HALF_WAY)
        assert server.posts.empty()
    assert "certificate verify failed" in caplog.text


def test_a_redirect_is_not_followed_with_the_token(token: Path, caplog: pytest.LogCaptureFixture) -> None:
    with status_server() as elsewhere, status_server(answer=307, location=elsewhere.url) as server:
        StatusEndpoint(server.url, token).show(HALF_WAY)
        server.next()
        assert elsewhere.posts.empty()
    assert "307" in caplog.text


def test_a_failing_endpoint_is_said_once_and_tried_again(token: Path, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = StatusEndpoint(f"http://{closed_port()}", token)
    for _ in range(3):
        endpoint.show(HALF_WAY)
    assert len(caplog.records) == 1
    with status_server() as server:
        endpoint.url = server.url
        endpoint.show(HALF_WAY)
        server.next()
    endpoint.show(HALF_WAY)
    assert len(caplog.records) == 2, "after a success a failure is news again"


def test_a_missing_token_file_is_no_reason_to_post_without_one(tmp_path: Path) -> None:
    with status_server() as server:
        StatusEndpoint(server.url, tmp_path / "missing").show(HALF_WAY)
        assert server.posts.empty()


def test_a_silent_endpoint_never_blocks_a_step_and_ends_with_the_run(token: Path) -> None:
    stream = Shown()
    with silent_server() as address:
        endpoint = StatusEndpoint(f"http://{address}", token, interval_seconds=0.01)
        progress = Progress([JsonLines(stream, interval_seconds=3600), endpoint])
        progress.update(HALF_WAY)
        time.sleep(0.2)  # the request is on its way and will not be answered
        began = time.monotonic()
        for step in range(1000):
            progress.update(replace(HALF_WAY, step=step))
        assert time.monotonic() - began < 1.5, "one request takes two seconds"
        closing = time.monotonic()
        progress.close(replace(HALF_WAY, done=True))
        assert time.monotonic() - closing < 4.0
    assert stream.lines()[-1]["percent"] == 100, "the last line is there all the same"
