"""A server of the API, and OpenAI's SDK for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.openai_world import World, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """With two bases and no job."""
    async with open_world(tmp_path) as made:
        yield made
