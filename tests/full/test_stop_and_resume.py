"""Stopped or killed at the moments of a run that lie between those of tests/train, the end is the same, bit for bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.forked_run import Moment
from tests.train.run.test_stop_and_resume import (
    LOOP,
    PREFERENCES,
    RUN,
    STEPS,
    _libraries,
    arguments,
    ended_finishes_the_same,
    killed_finishes_the_same,
    rows,
    terminated_finishes_the_same,
    undisturbed,
)

__all__ = ["_libraries", "rows", "undisturbed"]  # fixtures of the tests below

SFT_MOMENTS = {
    "data check": Moment("llm_tuning.run.work:tokenise_rows"),
    "loading the base": Moment(f"{RUN}:load_base_model"),
    "before the first step": Moment(f"{RUN}:fit"),
    "in the first step": Moment(f"{LOOP}.training_step", 1),
    "in the last step": Moment(f"{LOOP}.training_step", STEPS),
    "in the final evaluation": Moment(f"{RUN}:evaluate_run"),
    "while the probes are written": Moment(f"{RUN}:write_parity", after=True),
    "while the model card is written": Moment("llm_tuning.run.finish:write_model_card"),
    "after the registry": Moment("llm_tuning.run.finish:_after_rename", after=True),
}
PUBLISHED = {"after the registry"}
PPO_MOMENTS = {
    "reference": Moment("llm_tuning.trainers.ppo:reference_of_start"),
    "in the first epoch": Moment(f"{LOOP}.training_step", 5),
    "in the final evaluation": Moment(f"{RUN}:evaluate_run"),
}


@pytest.mark.parametrize("moment", SFT_MOMENTS)
def test_sigterm_ends_with_75_and_the_next_start_finishes_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], moment: str
) -> None:
    argv = arguments(tiny_base, rows, "sft")
    terminated_finishes_the_same(argv, undisturbed["sft"], SFT_MOMENTS[moment], published=moment in PUBLISHED)


@pytest.mark.parametrize("moment", SFT_MOMENTS)
def test_kill_9_loses_at_most_one_interval_and_the_next_start_finishes_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], moment: str
) -> None:
    argv = arguments(tiny_base, rows, "sft")
    killed_finishes_the_same(argv, undisturbed["sft"], SFT_MOMENTS[moment], published=moment in PUBLISHED)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", PPO_MOMENTS)
def test_ppo_stopped_or_killed_finishes_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], moment: str, number: signal.Signals
) -> None:
    ended_finishes_the_same(arguments(tiny_base, rows, "ppo"), undisturbed["ppo"], PPO_MOMENTS[moment], number)


@pytest.mark.parametrize("mode", PREFERENCES)
def test_preferences_killed_at_the_reference_finish_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], mode: str
) -> None:
    at = Moment(f"llm_tuning.trainers.{mode}:reference_of_start")
    ended_finishes_the_same(arguments(tiny_base, rows, mode), undisturbed[mode], at, signal.SIGKILL)
