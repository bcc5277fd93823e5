"""InferenceService's models beyond their verdict (test_spec_corpus): examples, statuses, and the base's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.api.inference_service import InferenceService, InferenceServiceSpec, read_status
from llm_tuning.api.yaml import load_yaml_mapping
from llm_tuning.errors import InputError
from tests.support.spec_corpus import INFERENCE_SERVICE

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("inferenceservice*.yaml")), ids=lambda path: path.name)
def test_an_example_is_valid(example: Path) -> None:
    assert InferenceService.parse(load_yaml_mapping(example)).spec.routes


@pytest.mark.parametrize(
    ("model", "want"),
    [
        ({"path": "base/tiny"}, "tiny"),
        ({"path": "tiny"}, "tiny"),
        ({"path": "base/tiny", "name": "org/chat"}, "org/chat"),
        ({"path": "base/tiny", "name": None}, "tiny"),
    ],
)
def test_the_base_is_called_by_its_name_or_the_end_of_its_path(model: dict[str, str | None], want: str) -> None:
    assert InferenceServiceSpec.parse({**INFERENCE_SERVICE.minimal, "model": model}).base_name == want


def test_a_second_route_of_a_name_is_told_by_place_and_name() -> None:
    route = {"name": "faq", "targets": [{"modelId": "ft_a"}]}
    with pytest.raises(InputError, match=r"spec\.routes\[1\]: another route has the name 'faq' already; rename one"):
        InferenceServiceSpec.parse({**INFERENCE_SERVICE.minimal, "routes": [route, route]}, where="spec")


def test_a_status_of_another_version_is_read() -> None:
    status = read_status({"readyReplicas": 2, "sparkle": 1, "adapters": [{"modelId": "ft_a", "sparkle": 1}]})
    assert (status.ready_replicas, status.adapters[0].model_id, status.adapters[0].effective) == (2, "ft_a", "Unknown")
    assert read_status(None).conditions == []
