"""A module's families are tried once each; a module for each kind, since `make` hands whole files to its workers."""

from __future__ import annotations

import pytest

from tests.support.zoo_results import Trials


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("families"))
