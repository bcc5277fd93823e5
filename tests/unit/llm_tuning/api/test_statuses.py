"""The statuses that tests/full/test_crds.py has the API server store: what they lack would not be looked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llm_tuning.api.kube import ApiModel
from tests.support.spec_corpus.statuses import JOB_STATUS, SERVICE_STATUS


def unwritten(model: ApiModel, path: str = "status") -> Iterator[str]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if value is None or value == []:
            yield f"{path}.{name}"
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, ApiModel):
                yield from unwritten(one, f"{path}.{name}")


@pytest.mark.parametrize("status", [JOB_STATUS, SERVICE_STATUS], ids=lambda status: type(status).__name__)
def test_every_field_is_written(status: ApiModel) -> None:
    assert list(unwritten(status)) == []
