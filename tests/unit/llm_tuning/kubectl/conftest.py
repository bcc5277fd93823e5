"""The API server that $KUBECONFIG leads to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fake_api_server import FakeApiServer, write_kubeconfig


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApiServer]:
    """Listening, and in $KUBECONFIG."""
    made = FakeApiServer()
    await made.start()
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", made.connection.server)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    yield made
    await made.stop()
