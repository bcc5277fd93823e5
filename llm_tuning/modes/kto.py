"""Kahneman-Tversky optimisation: learn from answers that are marked as good or bad."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from llm_tuning.core.model import ApiModel
from llm_tuning.modes.mode import LOSS_PANEL, OTHER_COLOR, TRAINING_COLOR, Line, Memory, Mode, Panel, Score
from llm_tuning.modes.preference_rows import kto_rows


class KtoSpec(ApiModel):
    """Kahneman-Tversky optimisation; used when mode is kto."""

    beta: Annotated[float, Field(ge=0.0001, le=100)] = Field(
        0.1, description="How much it costs to leave the start policy: the higher, the nearer the model stays to it."
    )

    desirable_weight: Annotated[float, Field(ge=0.0001, le=100)] = Field(
        1.0, description="Weight of the loss of good answers; with fewer of them than of bad ones, raise it."
    )

    undesirable_weight: Annotated[float, Field(ge=0.0001, le=100)] = Field(
        1.0, description="Weight of the loss of bad answers; with fewer of them than of good ones, raise it."
    )

    threshold: Annotated[float, Field(ge=-1e9, le=1e9)] | None = Field(
        None,
        description="Of rows with a rated answer each, answers with this reward or a higher one are good and the "
        "others bad. Without it such rows are refused.",
    )


KTO = Mode(
    name="kto",
    help="learn from answers marked as good or bad",
    title="Kahneman-Tversky optimisation (good answers are made likelier and bad ones less likely)",
    recipe="llm_tuning.trainers.kto",
    default_learning_rate=5e-5,
    rows=kto_rows(),
    rows_by_settings=lambda settings: kto_rows(threshold=settings.threshold),
    row_settings=("threshold",),
    settings=KtoSpec,
    settings_help="How labels are learned",
    uses_dropout=False,
    scores=(
        Score("label_accuracy", "Label accuracy"),
        Score("desirable_reward", "Reward of good answers"),
        Score("undesirable_reward", "Reward of bad answers"),
        Score("reward_margin", "Reward margin"),
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
    answers=lambda number, sequence: number > 0,  # the good ones
)
