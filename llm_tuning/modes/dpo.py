"""Direct preference optimisation: learn which of two answers is better."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_tuning.core.model import ApiModel
from llm_tuning.data.pairing import MAX_PAIRS_PER_PROMPT
from llm_tuning.modes.mode import LOSS_PANEL, OTHER_COLOR, TRAINING_COLOR, Line, Memory, Mode, Panel, Score
from llm_tuning.modes.preference_rows import dpo_rows

LossType = Literal["sigmoid", "ipo", "sigmoid_norm"]


class DpoSpec(ApiModel):
    """Direct preference optimisation; used when mode is dpo."""

    loss_type: LossType = Field(
        "sigmoid",
        description="Loss of a pair: sigmoid is that of DPO, ipo keeps the distance between the answers finite, and "
        "sigmoid_norm is sigmoid with means over the tokens of an answer in place of sums.",
    )

    beta: Annotated[float, Field(ge=0.0001, le=100)] = Field(
        0.1, description="How much it costs to leave the start policy: the higher, the nearer the model stays to it."
    )

    label_smoothing: Annotated[float, Field(ge=0, le=0.49)] = Field(
        0.0, description="The share of pairs that are taken to have their answers the wrong way round."
    )

    min_difference: Annotated[float, Field(ge=0, le=1e9)] = Field(
        0.0,
        description="Of rows with one rated answer each, two answers of a prompt are a pair where their rewards differ, "
        "and by at least this.",
    )

    max_pairs_per_prompt: Annotated[int, Field(ge=1, le=100)] = Field(
        MAX_PAIRS_PER_PROMPT,
        description="Of such rows, how many pairs the answers of one prompt make at most: those whose rewards differ "
        "most.",
    )


PREFERENCE_PANELS = (
    Panel(LOSS_PANEL.title, "", (Line("train/loss", "training", TRAINING_COLOR),)),
    Panel("Reward accuracy", "share of pairs", (Line("train/reward_accuracy", "training", TRAINING_COLOR),)),
    Panel(
        "Log-likelihood against the start policy",
        "nats an answer",
        (
            Line("train/chosen_change", "chosen", OTHER_COLOR),
            Line("train/rejected_change", "rejected", TRAINING_COLOR),
        ),
    ),
)

DPO = Mode(
    name="dpo",
    help="learn which of two answers is better",
    title="direct preference optimisation (the chosen answer is made likelier than the rejected one)",
    recipe="llm_tuning.trainers.dpo",
    default_learning_rate=5e-5,
    rows=dpo_rows(),
    rows_by_settings=lambda settings: dpo_rows(
        min_difference=settings.min_difference, max_pairs_per_prompt=settings.max_pairs_per_prompt
    ),
    row_settings=("min_difference", "max_pairs_per_prompt"),
    settings=DpoSpec,
    settings_help="How preferences are learned",
    uses_dropout=False,
    scores=(
        Score("reward_accuracy", "Reward accuracy"),
        Score("reward_margin", "Reward margin"),
        Score("chosen_change", "Change of chosen answers", "nats an answer"),
        Score("rejected_change", "Change of rejected answers", "nats an answer"),
        Score("short_accuracy", "Reward accuracy where the shorter answer is chosen"),
        Score("short_pairs", "Pairs whose shorter answer is chosen"),
        Score("length_correlation", "Correlation of margin and length"),
    ),
    panels=PREFERENCE_PANELS,
    memory=Memory(sequences=2, scoring_passes=lambda epochs: 1),
    answers=lambda number, sequence: sequence == 0,  # the chosen one
)
