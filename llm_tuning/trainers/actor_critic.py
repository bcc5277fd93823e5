"""Policy and value from one forward pass: the decoder runs once, then output head and value head read its states.

Shapes: B rows, T tokens, N output tokens of a pass (row by row), H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm_tuning.trainers.chunked_head import Head, causal_lm, chunked_kl, chunked_logprobs, output_head, output_states
from llm_tuning.trainers.value_head import ValueHead


@dataclass(frozen=True)
class ActorCritic:
    """The model with its adapter, the value head beside it, and the precision that both run in."""

    model: nn.Module
    head: Head
    value_head: ValueHead
    device: str
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, *, device: str, dtype: torch.dtype, gradient_checkpointing: bool) -> ActorCritic:
        """Put a value head beside `model` and switch dropout off, for good. Raises InputError (see `output_head`)."""
        silence_dropout(model, gradient_checkpointing=gradient_checkpointing)
        with autocast(device, dtype):
            head = output_head(model)
        hidden_size = causal_lm(model).get_output_embeddings().weight.shape[-1]
        return cls(model, head, ValueHead(hidden_size).to(device), device, dtype)

    def __call__(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(logprobs_N, values_N) in fp32 of a padded batch's output tokens; differentiable."""
        with autocast(self.device, self.dtype):
            hidden_NH, targets_N = self._states(batch)
            logprobs_N = chunked_logprobs(self.head, hidden_NH, targets_N)
        return logprobs_N, self.value_head(hidden_NH)

    @torch.no_grad()
    def hidden(self, batch: dict[str, Tensor]) -> Tensor:
        """hidden_NH: the states that a padded batch's output tokens are predicted from."""
        with autocast(self.device, self.dtype):
            return self._states(batch)[0]

    @torch.no_grad()
    def kl(self, batch: dict[str, Tensor], start_hidden_NH: Tensor) -> Tensor:
        """Exact KL(pi || pi_start), (N,), at a padded batch's output tokens, given the start policy's states there."""
        with autocast(self.device, self.dtype):
            return chunked_kl(self.head, self._states(batch)[0], start_hidden_NH.to(self.device))

    def trained(self) -> list[nn.Parameter]:
        """The adapter's parameters, without the value head."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _states(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return output_states(self.model, batch["input_ids"].to(self.device), batch["labels"].to(self.device))


def autocast(device: str, dtype: torch.dtype) -> torch.autocast:
    """bf16 where `dtype` says so; with fp32 it does nothing."""
    return torch.autocast(device.split(":", maxsplit=1)[0], dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def silence_dropout(model: nn.Module, *, gradient_checkpointing: bool) -> None:
    """No pass draws a random number: a ratio of probabilities must not measure two dropout masks.

    Evaluation mode is enough unless gradients are checkpointed, which transformers does in training mode only; then
    every rate in the model is set to zero as well.
    """
    model.eval()
    if not gradient_checkpointing:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    causal_lm(model).activation_checkpointing_enable({"use_reentrant": False})
    model.train()
