"""What a run computes besides its steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.models.operations import Operations
from llm_tuning.planning.work import run_operations
from llm_tuning.run.setting import Rows, Steps
from tests.support.shapes import make_setting

COST = Operations(matrices=100.0, adapter=10.0, attention=0.0, head=0.0)
SETTING = make_setting(tokens=100, learned=50)
ROWS = Rows(count=1000, tokens=10_000, learned=5_000, longest=20)


@pytest.mark.parametrize(("held_out", "answers"), [(0, 0), (5, 5), (500, 40)])
@pytest.mark.parametrize(("start_adapter", "policies"), [(False, 2), (True, 3)])
def test_answers_to_held_out_rows_with_tools_are_in_the_plan(
    held_out: int, answers: int, start_adapter: bool, policies: int
) -> None:
    steps = Steps(training_rows=1000 - held_out, held_out=held_out, rows_per_step=10, per_epoch=100, total=100)
    setting = replace(SETTING, start_adapter=start_adapter)
    plain, tools = (
        run_operations(COST, setting, rows=replace(ROWS, with_tools=count), steps=steps, training=TrainingSpec())
        for count in (0, 900)
    )
    assert tools - plain == pytest.approx(answers * policies * ROWS.mean * 110.0)
