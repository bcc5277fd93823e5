"""A first run that diverges after checkpoints were saved: it is refused, and what was learned until then stays."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from llm_tuning.codes.tune_llm import run_tuning
from llm_tuning.errors import InputError
from llm_tuning.trainers import loop


def test_a_first_run_that_diverges_keeps_its_checkpoints_and_the_next_start_goes_on_from_them(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": f"Question {i}?", "output": f"Answer {i}."} for i in range(24)]))
    models = tmp_path / "models"
    real, steps, diverges = loop.sum_gradients, [0], True

    def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
        real(parameters)
        steps[0] += 1
        if diverges and steps[0] == 3:
            parameters[0].grad = torch.full_like(parameters[0], math.inf)

    def run() -> str:
        settings = {"devices": "cpu", "save_steps": 1, "max_steps": 4, "tracking_uri": None}
        return run_tuning(str(tiny_base), str(rows), model_id="m", output_dir=str(models), **settings)

    monkeypatch.setattr(loop, "sum_gradients", sum_gradients)
    with pytest.raises(InputError, match="became"):
        run()
    kept = models / ".work" / "m" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir() if path.is_dir())[-1] == "checkpoint-2"
    steps, diverges = [0], False
    assert run() == "m"
    assert steps == [2], "the steps that were saved were trained again"
