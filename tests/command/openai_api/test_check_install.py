"""What `helm test` runs, against a running server: all well, a server that is not there, a right that is missing."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_tuning.openai_api.check_install import KEY_NAME, main
from tests.support.api_process import Server
from tests.support.fake_api_server import FakeApiServer

SECRET = "llm-tuning-api-test"


@contextmanager
def kubelet(api_server: FakeApiServer, folder: Path) -> Iterator[None]:
    """Bring the Secret into the folder, soon after each change."""
    over = threading.Event()
    folder.mkdir(parents=True)

    def sync() -> None:
        while not over.wait(0.3):
            data = api_server.secrets.kept[SECRET]["data"]
            for name in {path.name for path in folder.iterdir()} - set(data):
                (folder / name).unlink()
            for name, text in data.items():
                (folder / name).write_bytes(base64.b64decode(text))

    thread = threading.Thread(target=sync)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_all_is_well_and_nothing_is_left(
    server: Server, api_server: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api_server.secrets.put(SECRET, {})
    server.start()
    environment = {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.port}/v1", "KEY_SECRET": SECRET}
    with kubelet(api_server, server.folder / "keys" / SECRET):
        assert main(environment, connection=api_server.connection, patience_seconds=60) == 0
        said = capsys.readouterr().out
    assert [line[:4] for line in said.splitlines()] == ["ok: "] * 5, said
    assert "a new key counts; a file is taken" in said
    assert "a wrong job is refused: invalid_training_file, param training_file" in said
    assert api_server.secrets.kept[SECRET]["data"] == {}
    assert api_server.all("tuningjobs") == []
    uploads = server.folder / "claim" / "datasets" / "uploads"
    assert [path for path in uploads.iterdir() if path.name != ".work"] == []


def test_a_server_that_does_not_answer_fails_every_step_and_leaves_no_key(
    api_server: FakeApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api_server.secrets.put(SECRET, {})
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "KEY_SECRET": SECRET}
    assert main(environment, connection=api_server.connection, patience_seconds=0) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5
    assert all("failed: " in line and "APIConnectionError" in line for line in said)
    assert KEY_NAME not in api_server.secrets.kept[SECRET]["data"]


def test_a_secret_that_is_not_there_is_said(api_server: FakeApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "KEY_SECRET": SECRET}
    assert main(environment, connection=api_server.connection, patience_seconds=0) == 1
    assert capsys.readouterr().out.startswith("failed: the test's key: PATCH /api/v1/namespaces/team/secrets/")
