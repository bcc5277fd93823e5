"""What a ppo run must remember over a kill, and how it goes into a checkpoint.

No random state: dropout is off and the row order follows from seed and epoch, so nothing draws a random number. The
log-probs and values of the epoch's start are kept, since they cannot be computed again once the weights have moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_tuning.errors import InputError, Problem
from llm_tuning.run.checkpoints import latest_checkpoint, save_checkpoint

STATE_FILE = "ppo_state.pt"

Stateful = torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler


@dataclass
class PpoState:
    """Where the run is. `old_logprobs` and `old_values` are flat over the training rows' output tokens."""

    step: int = 0
    old_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))
    old_values: Tensor = field(default_factory=lambda: torch.empty(0))
    within_target: list[Tensor] = field(default_factory=list)
    """The adapter at the last measurement whose KL was within the target; the start policy before the first one."""
    kl: float = 0.0
    """The last KL measured, of the weights that were kept."""
    stopped_early: str | None = None
    """Never set in a checkpoint, which is of the moment before a measurement: a resume measures again."""


def copy_of(parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    """Their values now, on the CPU."""
    return [parameter.detach().cpu().clone() for parameter in parameters]


@torch.no_grad()
def set_parameters(parameters: list[torch.nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


class Checkpoints:
    """The run's checkpoints: of `parameters`, of optimizer and scheduler (`others`), and of the state."""

    def __init__(
        self, root: Path, parameters: list[torch.nn.Parameter], *, rows_per_step: int, **others: Stateful
    ) -> None:
        self.root, self.parameters, self.rows_per_step, self.others = root, parameters, rows_per_step, others

    def save(self, state: PpoState) -> None:
        """Write a checkpoint of this moment, unless that of this step is there already."""
        content = {
            "state": {item.name: getattr(state, item.name) for item in fields(state)},
            "parameters": copy_of(self.parameters),
            "rows_per_step": self.rows_per_step,
            **{name: other.state_dict() for name, other in self.others.items()},
        }
        save_checkpoint(self.root, state.step, lambda folder: torch.save(content, folder / STATE_FILE))

    def load(self) -> PpoState | None:
        """Go back to the newest checkpoint and return its state; None where there is none.

        Raises InputError where a step took another number of rows then: the place in the epoch would be another.
        """
        found = latest_checkpoint(self.root)
        if found is None:
            return None
        content: dict[str, Any] = torch.load(found[1] / STATE_FILE, map_location="cpu", weights_only=True)
        if content["rows_per_step"] != self.rows_per_step:
            rule = f"give {self.rows_per_step} rows a step, but this run was started with {content['rows_per_step']}"
            raise InputError(Problem("devices", rule, "start it on as many as before, or under another model_id"))
        set_parameters(self.parameters, content["parameters"])
        for name, other in self.others.items():
            other.load_state_dict(content[name])
        return PpoState(**content["state"])
