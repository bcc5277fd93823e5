"""The worker that tests of passes and of the loop share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.pass_bench import Bench
from tuning_operator.core import warnings as pass_loop
from tuning_operator.pods import reporting


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A worker whose throttles run on its own clock."""
    made = Bench()
    for module in (reporting, pass_loop):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=made.clock))
    return made
