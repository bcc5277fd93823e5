"""What a training mode is: one object that holds all that the rest of the library needs to know of it.

A mode is data and small functions, free of torch: the command line, the CRD, the data check, the plan, the manifest,
the card and the report ask it. The recipe that it names by its import path does the training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from llm_tuning.core.figures import HELD_OUT_LOSS, LOSS
from llm_tuning.core.model import ApiModel
from llm_tuning.data.rows import RowForm

NAME_PATTERN = r"[a-z][a-z0-9]{1,15}"
"""A name is a field of the spec, the beginning of flags and of model_ids, and a word in CEL."""

S = TypeVar("S", bound=ApiModel)


@dataclass(frozen=True)
class Score:
    """One figure of the held-out evaluation, by its name in `evaluation.json`."""

    name: str
    title: str
    """What tables call it."""
    unit: str = ""


SCORES = (
    Score("loss", "Loss", "nats a token"),
    Score("perplexity", "Perplexity"),
    Score("token_accuracy", "Token accuracy"),
)
"""What every mode is measured by."""

CALLS_PARSED, CALLS_FIT, CALLS_EQUAL, CALLED_ANYWAY = "calls_parsed", "calls_fit", "calls_equal", "called_anyway"
CALL_SCORES = (
    Score(CALLS_PARSED, "Calls that can be read"),
    Score(CALLS_FIT, "Calls that fit their tool"),
    Score(CALLS_EQUAL, "Calls as recorded"),
    Score(CALLED_ANYWAY, "Calls in place of words"),
)
"""What every mode is measured by where held-out rows have tools: shares of the answers that are generated for them."""

TRAINING_COLOR, HELD_OUT_COLOR, OTHER_COLOR = "#3465a4", "#d9480f", "#5c940d"


@dataclass(frozen=True)
class Line:
    """One series of a panel: the metric's name, its label and colour; `marked` draws the points."""

    name: str
    label: str
    color: str
    marked: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes of the loss curve."""

    title: str
    unit: str
    lines: tuple[Line, ...]


LOSS_PANEL = Panel(
    "Loss",
    "nats per learned token",
    (Line(LOSS, "training", TRAINING_COLOR), Line(HELD_OUT_LOSS, "held out", HELD_OUT_COLOR, marked=True)),
)


@dataclass(frozen=True)
class Memory:
    """What a recipe holds and computes besides what every mode does, for the plan of a run."""

    value_head: bool = False
    """A value head reads the hidden states of the tokens in the loss, in fp32."""
    sequences: int = 1
    """Of a row, in one micro-batch: two for a pair, whose loss needs both."""
    scoring_passes: Callable[[float], int] = lambda epochs: 0
    """Forward passes over all training rows, besides the steps, in a run of so many epochs."""


@dataclass(frozen=True)
class Mode(Generic[S]):
    """A training mode. `register` in `llm_tuning.modes` adds one from outside the package."""

    name: str
    help: str
    """How it learns, as `--tuning_mode` and the CRD explain it: "learn the outputs"."""
    title: str
    """Its name in a model card."""
    recipe: str
    """Module whose `train(run)` trains."""
    default_learning_rate: float
    rows: RowForm
    """The row shapes it takes, how they become examples, and which data sets are senseless for it."""
    rows_by_settings: Callable[[S], RowForm] | None = None
    """The same where settings decide how rows are read; `rows` is then that of the defaults."""
    row_settings: Sequence[str] = ()
    """Those settings, which the data check alone takes, too."""
    settings: type[S] | None = None
    """The group of its settings, a field of the spec by the mode's name; all of them decide the weights."""
    settings_help: str = ""
    uses_dropout: bool = True
    """`lora.dropout` is on in training and so decides the weights; a mode that compares two forwards has none."""
    evaluation_decides: bool = False
    """An evaluation may end the run, so that `training.evalSteps` decides the weights."""
    scores: Sequence[Score] = ()
    """Beside SCORES; the status of a TuningJob has them for base, start adapter and tuned model. The first one says
    whether the lesson was learned: the condition Evaluated shows it, the loss where there is none."""
    panels: Sequence[Panel] = (LOSS_PANEL,)
    memory: Memory = field(default_factory=Memory)
    answers: Callable[[float, int], bool] = lambda number, sequence: True
    """Whether the model should answer as a sequence of a row does, by the row's number and the sequence's place."""

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise ValueError(f"the mode's name must match {NAME_PATTERN}, got {self.name!r}")

    def form_of(self, config: Any) -> RowForm:
        """Return the form of the rows under the settings of a TuningConfig or a TuningJob's spec."""
        return self.rows if self.rows_by_settings is None else self.rows_by_settings(self.settings_of(config))

    def settings_of(self, config: Any) -> S:
        """Return the settings of this mode in a TuningConfig or a TuningJob's spec."""
        return cast(S, getattr(config, self.name))
