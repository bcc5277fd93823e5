"""Kahneman-Tversky optimisation: learn from answers that are marked as good or bad."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from llm_tuning.core.model import ApiModel
from llm_tuning.data.pair_shapes import LabelField
from llm_tuning.data.rows import RowForm
from llm_tuning.data.shapes import PROMPT_COMPLETION, PROMPT_OUTPUT
from llm_tuning.errors import Problem
from llm_tuning.modes.mode import LOSS_PANEL, OTHER_COLOR, TRAINING_COLOR, Line, Memory, Mode, Panel, Score

if TYPE_CHECKING:
    from llm_tuning.data.report import Report


class KtoSpec(ApiModel):
    """Kahneman-Tversky optimisation; used when mode is kto."""

    beta: Annotated[float, Field(ge=0.0001, le=100)] = Field(
        0.1, description="How much it costs to leave the start policy: the higher, the nearer the model stays to it."
    )

    desirable_weight: Annotated[float, Field(ge=0, le=100)] = Field(
        1.0, description="Weight of the loss of good answers; with fewer of them than of bad ones, raise it."
    )

    undesirable_weight: Annotated[float, Field(ge=0, le=100)] = Field(
        1.0, description="Weight of the loss of bad answers; with fewer of them than of good ones, raise it."
    )


def judge_labels(report: Report) -> Iterator[Problem]:
    """Yield a problem where all rows have one label."""
    labels = report.rewards
    if labels is not None and labels.min == labels.max:
        rule = f"is {'true' if labels.min else 'false'} in every row: nothing tells good answers from bad ones"
        yield Problem(f"{report.path}, label", rule, "add answers of the other kind, or {set:mode=sft} for good ones")


KTO = Mode(
    name="kto",
    help="learn from answers marked as good or bad",
    title="Kahneman-Tversky optimisation (good answers are made likelier and bad ones less likely)",
    recipe="llm_tuning.trainers.kto",
    default_learning_rate=5e-5,
    rows=RowForm(
        mode="kto",
        shapes=(PROMPT_COMPLETION, PROMPT_OUTPUT),
        accepted="{prompt, completion, label}",
        number=LabelField(("label",), needed="kto needs true or false in every row"),
        judge=judge_labels,
        takes=frozenset(("label",)),
        advice={"preference": "write each answer as a row of its own, with `label`: true or false"},
    ),
    settings=KtoSpec,
    settings_help="How labels are learned",
    uses_dropout=False,
    scores=(
        Score("desirable_reward", "Reward of good answers"),
        Score("undesirable_reward", "Reward of bad answers"),
        Score("reward_margin", "Reward margin"),
        Score("label_accuracy", "Label accuracy"),
    ),
    panels=(
        Panel(LOSS_PANEL.title, "", (Line("train/loss", "training", TRAINING_COLOR),)),
        Panel(
            "Rewards",
            "",
            (
                Line("train/desirable_reward", "good answers", OTHER_COLOR),
                Line("train/undesirable_reward", "bad answers", TRAINING_COLOR),
            ),
        ),
        Panel("KL estimate", "nats an answer", (Line("train/kl", "training", TRAINING_COLOR),)),
    ),
    memory=Memory(
        # The start policy scores every row once. For the KL it and the policy of the moment score as many in each epoch.
        scoring_passes=lambda epochs: 1 + 2 * math.ceil(epochs),
    ),
)
