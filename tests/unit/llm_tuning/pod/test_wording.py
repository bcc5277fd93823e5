"""A problem of the library in the words of a TuningJob."""

from __future__ import annotations

import pytest

from llm_tuning.errors import InputError, Problem
from llm_tuning.pod.wording import message_of


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (
            Problem("devices", "there are too few", "ask for more"),
            "spec.resources.gpus: there are too few; ask for more",
        ),
        (Problem("model_id", "has checkpoints"), "metadata.name: has checkpoints"),
        (Problem("training.precision", "is bf16"), "spec.training.precision: is bf16"),
        (Problem("rows", "{field:devices} are too few"), "rows: spec.resources.gpus are too few"),
    ],
)
def test_a_problem_is_placed_in_the_spec(problem: Problem, said: str) -> None:
    assert message_of(InputError(problem), None) == said
