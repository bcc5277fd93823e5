"""The server of the fine-tuning API as a process, the API server that it asks, and the service that its chats go to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_process import Server, api_server_on_a_thread
from tests.support.fake_api_server import FakeApiServer, write_kubeconfig
from tests.support.openai_chats import talking_service


@pytest.fixture
def api_server() -> Iterator[FakeApiServer]:
    with api_server_on_a_thread() as made:
        yield made


@pytest.fixture
def server(tmp_path: Path, api_server: FakeApiServer) -> Iterator[Server]:
    """Not started yet."""
    (tmp_path / "claim" / "datasets" / "uploads").mkdir(parents=True)
    made = Server(tmp_path, write_kubeconfig(tmp_path / "kubeconfig", api_server.connection.server))
    made.write()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def service() -> Iterator[str]:
    """Return its address."""
    with talking_service() as url:
        yield url
