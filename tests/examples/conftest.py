"""The demo's scripts import each other as they do when they are run: from their own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"


@pytest.fixture(autouse=True, scope="session")
def _scripts_on_the_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DEMO))
        yield
