"""A training mode from outside of the package, whole: of two answers learn the good one and unlearn the bad one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llm_tuning.core.model import ApiModel
from llm_tuning.data.rows import RowForm, Shape
from llm_tuning.data.shapes import prompt_and
from llm_tuning.errors import Problem
from llm_tuning.modes import Line, Mode, Panel, Score, register

if TYPE_CHECKING:
    from llm_tuning.data.report import Report
    from llm_tuning.run.context import TrainRun

GOOD, BAD = prompt_and("good"), prompt_and("bad")


class ToySpec(ApiModel):
    """Two answers to a prompt."""

    weight: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="Weight of the bad answer.")
    both: bool = Field(True, description="Use the bad answer at all.")


def judge(report: Report) -> Iterator[Problem]:
    """Refuse a file in which one row stands again and again."""
    if report.duplicates.count == report.kept - 1:
        yield Problem(report.path, "has one row again and again", "give others")


TOY = Mode(
    name="toy",
    help="learn the better of two answers",
    title="toy training (the better answer is learned)",
    recipe=__name__,
    default_learning_rate=3e-3,
    rows=RowForm(
        mode="toy",
        shapes=(Shape("good/bad", ("prompt", "good", "bad"), lambda row: (*GOOD(row), *BAD(row))),),
        accepted="{prompt, good, bad}",
        judge=judge,
    ),
    settings=ToySpec,
    settings_help="How much is unlearned",
    uses_dropout=False,
    scores=(Score("margin", "Margin", "nats a token"),),
    panels=(Panel("Toy loss", "", (Line("train/loss", "training", "#3465a4"),)),),
)
register(TOY)


def train(run: TrainRun) -> None:
    """Train `run`: the loss falls with the good answers' log-probability and rises with the bad ones'."""
    import torch

    from llm_tuning.trainers.evaluate import Measured
    from llm_tuning.trainers.fine_tune import fine_tune
    from llm_tuning.trainers.recipe import Recipe

    settings = TOY.settings_of(run.config)
    bad = -settings.weight if settings.both else 0.0

    class Toy(Recipe):
        def loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            sequences = self.task.rows.sequences_of(batch.rows)
            counts = torch.from_numpy(self.task.rows.sequence_learned_counts[sequences]).long()
            weights_N = torch.tensor([1.0, bad]).repeat(len(batch.rows)).repeat_interleave(counts)
            loss = -(weights_N * self.task.policy.logprobs(batch)).sum()
            return loss, loss.detach()[None]

        def scores(self, measured: Measured) -> Mapping[str, float]:
            good, other = (measured.loglik / measured.tokens).view(-1, 2).mean(0).tolist()
            return {"margin": good - other}

    fine_tune(run, Toy)
