"""helm, unpacked once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chart import Chart, unpack_helm


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def chart(helm: Path) -> Chart:
    return Chart(helm)
