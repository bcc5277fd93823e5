"""A module's families are tried once each."""

from __future__ import annotations

import pytest

from tests.support.zoo_results import Trials


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("families"))
