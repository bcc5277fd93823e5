"""A base without torch: what the commands of this tier look at and do not load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.plain_base import make_plain_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the trainer's tests have it, its weights written by hand."""
    return make_plain_base(tmp_path_factory.mktemp("base") / "tiny-llama")
