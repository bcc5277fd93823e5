"""Offline PPO on recorded outputs: learn from outputs with rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from llm_tuning.core.model import ApiModel
from llm_tuning.data.rows import NumberField, RowForm
from llm_tuning.data.shapes import PROMPT_COMPLETION, PROMPT_OUTPUT
from llm_tuning.errors import Problem
from llm_tuning.modes.mode import (
    HELD_OUT_COLOR,
    OTHER_COLOR,
    TRAINING_COLOR,
    Line,
    Memory,
    Mode,
    Panel,
    Score,
)

if TYPE_CHECKING:
    from llm_tuning.data.report import Report


class PpoSpec(ApiModel):
    """Offline PPO on recorded outputs; used when mode is ppo."""

    clip_range: Annotated[float, Field(ge=0.001, le=1)] = Field(
        0.2, description="Clipping of the probability ratio against the policy at the start of the epoch."
    )

    value_clip_range: Annotated[float, Field(ge=0.001, le=100)] = Field(
        0.2, description="Clipping of the value against the value at the start of the epoch."
    )

    value_loss_coef: Annotated[float, Field(ge=0, le=10)] = Field(0.5, description="Weight of the value loss.")

    kl_coef: Annotated[float, Field(ge=0, le=100)] = Field(
        0.05, description="Weight of the k3 penalty towards the start policy on the recorded tokens."
    )

    target_kl: Annotated[float, Field(ge=0.0001, le=100)] = Field(
        0.2,
        description="The run stops when the exact KL (nats a token) to the start policy on held-out rows is above this.",
    )


def judge_rewards(report: Report) -> Iterator[Problem]:
    """Yield a problem where the rewards are the same in every row, or cannot be standardised."""
    spread = report.rewards
    if spread is None:
        return
    if spread.min == spread.max:
        rule = f"the reward is {spread.min:g} in every row: nothing tells good outputs from bad ones"
        yield Problem(f"{report.path}, reward", rule, "give rewards that differ, or {set:mode=sft}")
    elif not math.isfinite(spread.std):
        rule = "the rewards differ by more than can be standardised"
        yield Problem(f"{report.path}, reward", rule, "scale them down")


PPO = Mode(
    name="ppo",
    help="learn from outputs with rewards",
    title="offline PPO (outputs are weighted by their recorded rewards)",
    recipe="llm_tuning.trainers.ppo",
    default_learning_rate=5e-5,
    rows=RowForm(
        mode="ppo",
        shapes=(PROMPT_OUTPUT, PROMPT_COMPLETION),
        accepted="{prompt, output, reward}",
        number=NumberField(("reward", "rating"), needed="ppo needs a number in every row"),
        judge=judge_rewards,
        takes=frozenset(("tools", "reasoning")),
        is_right=lambda side, number: False,
        advice={
            "preference": "write each answer as a row of its own, with a reward",
            "label": "write it as `reward`",
        },
    ),
    settings=PpoSpec,
    settings_help="How far training from rewards may go",
    uses_dropout=False,
    evaluation_decides=True,  # above targetKl it stops the run
    scores=(Score("reward_weighted_loglik", "Reward-weighted log-likelihood"),),
    panels=(
        Panel("Policy loss", "", (Line("train/policy_loss", "training", TRAINING_COLOR),)),
        Panel("Value loss", "", (Line("train/value_loss", "training", OTHER_COLOR),)),
        Panel(
            "Distance to the start policy",
            "nats per token",
            (
                Line("train/kl_penalty", "penalty, recorded tokens", TRAINING_COLOR),
                Line("eval/kl", "exact KL, held out", HELD_OUT_COLOR, marked=True),
            ),
        ),
    ),
    memory=Memory(
        value_head=True,
        # The start policy scores every row once, and the policy of the moment at each further epoch.
        scoring_passes=math.ceil,
    ),
)
