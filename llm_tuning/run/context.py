"""What a recipe is given: the configuration, the folders, its device and rank, and where to report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from llm_tuning.api import TuningConfig
from llm_tuning.models.base import inspect_base
from llm_tuning.models.layout import CHECKPOINTS, ROWS, STAGE
from llm_tuning.run.devices import tokens_per_pass
from llm_tuning.run.division import Division
from llm_tuning.run.nodes import name_rank
from llm_tuning.run.spec import RunSpec


class Reporter(Protocol):
    """Where a recipe reports its progress. No method may block the training step."""

    def start(self, total_steps: int, start_step: int) -> None:
        """Begin the report, before the first step; `start_step` is above 0 after a resume."""

    def step(self, step: int, epoch: float, metrics: dict[str, float], tokens: int) -> None:
        """Report an optimizer step; `tokens` counts its real (not padded) tokens, summed over all ranks."""

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Report other values at a step, such as an evaluation."""

    def slow_rank(self, message: str | None) -> None:
        """Report that a rank is far slower than the others; None: none is, or is any more."""

    def stage(self, name: str) -> None:
        """Show what the run is doing outside the steps, in one or two words: `evaluating`, `saving`."""


@dataclass(frozen=True)
class TrainRun:
    """One rank's view of a run. Only rank 0 (`is_main`) writes files, except for its own state in checkpoints."""

    spec: RunSpec
    device: str
    rank: int
    world: int
    reporter: Reporter
    division: Division | None = None
    """What `training.sharding` came to (`trainers.division`); None before that, and where one rank is alone."""
    hosts: tuple[str, ...] = ()
    """Names of the nodes, where there are several."""

    @property
    def config(self) -> TuningConfig:
        return self.spec.config

    @property
    def base(self) -> Path:
        """The folder of the base model."""
        return Path(self.spec.config.model.path)

    def name_of(self, rank: int) -> str:
        """Name a rank as messages do, with its node, or else its device."""
        name = name_rank(rank, self.world, self.hosts)
        return name if self.hosts else f"{name} ({self.spec.devices[rank]})"

    @property
    def shards(self) -> int:
        """How many ranks share a copy of the base; 1: each has all of it."""
        return 1 if self.division is None else self.division.shards

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the base."""
        return self.shards > 1

    @cached_property
    def tokens_per_pass(self) -> int:
        """Tokens of a micro-batch at most, padding counted."""
        return tokens_per_pass(self.config.training, self.device, inspect_base(self.base).parameters)

    @property
    def work(self) -> Path:
        return self.spec.work

    @property
    def cache(self) -> Path:
        """The folder of what runs on the same base need not compute again."""
        return self.spec.cache

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def rows(self) -> Path:
        """Folder of the tokenised rows, written by the data check."""
        return self.work / ROWS

    @property
    def checkpoints(self) -> Path:
        return self.work / CHECKPOINTS

    @property
    def stage(self) -> Path:
        """The adapter directory in the making; renamed to its place when complete."""
        return self.work / STAGE
