"""The model under training as the loop and the recipes call it: micro-batches in, log-probabilities out.

Shapes: B rows, T tokens, N tokens in the loss of a micro-batch (row by row), H hidden size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_tuning.data.token_rows import TokenSequence
from llm_tuning.errors import InputError, Problem
from llm_tuning.modes import DEFAULT_MODE
from llm_tuning.trainers.flat_rows import flat_arguments, take_flat_rows
from llm_tuning.trainers.head import Head, find_head
from llm_tuning.trainers.micro_batches import IGNORED, MicroBatch, flatten, pad
from llm_tuning.trainers.model import autocast, causal_lm, decoder_of
from llm_tuning.trainers.parallel import is_sharded, largest
from llm_tuning.trainers.rope import padded_positions, take_rope_by_row
from llm_tuning.trainers.transfer import to_device


class Policy(nn.Module):
    """A causal language model of transformers, plain or with an adapter, on `device` and in `dtype`.

    The decoder runs once a micro-batch; `head` (see `trainers.head`) reads its states at the positions that predict a
    token in the loss. Where a model's way from states to logits is not known, `head` is None and its own forward runs.
    """

    def __init__(self, model: Any, *, device: str, dtype: torch.dtype, with_values: bool = False) -> None:
        """Put a value head beside the model if `with_values`; raises InputError where the model's head is unknown."""
        super().__init__()
        self.model, self.device, self.dtype = model, device, dtype
        lm = causal_lm(model)
        self.sharded = is_sharded(lm.get_input_embeddings())
        """Whether all ranks have to go through the model together (`empty_pass`)."""
        self._short_row = take_rope_by_row(lm)
        with autocast(device, dtype):
            self.head: Head | None = find_head(lm)
            self.row_layout = take_flat_rows(lm)
        self.value_head: ValueHead | None = None
        if with_values:
            if self.head is None:
                rule = f"is a {type(lm).__name__}, whose way from hidden states to logits is not known"
                raise InputError(Problem("model.path", rule, f"use mode {DEFAULT_MODE}"))
            self.value_head = ValueHead(self.head.weight.shape[1]).to(device)

    @property
    def flat_rows(self) -> bool:
        """Whether rows lie end to end in a micro-batch."""
        return self.row_layout.flat

    def adapter(self) -> list[nn.Parameter]:
        """Return what trains inside the model, without the value head."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def gradient_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters in groups whose gradients are clipped together.

        Hidden states are long vectors: in one group the value head's gradient would shrink the adapter's.
        """
        groups = [self.adapter()]
        return [*groups, list(self.value_head.parameters())] if self.value_head else groups

    def logprobs(self, batch: MicroBatch) -> Tensor:
        """Compute log p of the tokens in the loss, (N,) in fp32, differentiable by what trains (also where N is 0)."""
        with autocast(self.device, self.dtype):
            if self.head is not None:
                hidden_NH, targets_N = self._states(batch)
                return self.head.logprobs(hidden_NH, targets_N)
            logits_NV, targets_N = self._own_logits(batch)
            return logits_NV.log_softmax(-1).gather(1, targets_N[:, None])[:, 0]

    def logprobs_and_values(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute (log p, value) of the tokens in the loss, (N,) each in fp32 and differentiable, from one forward."""
        assert self.head is not None
        assert self.value_head is not None
        with autocast(self.device, self.dtype):
            hidden_NH, targets_N = self._states(batch)
            logprobs_N = self.head.logprobs(hidden_NH, targets_N)
        return logprobs_N, self.value_head(hidden_NH)

    @torch.no_grad()
    def score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute (log p in fp32, whether it is the likeliest token) of each token in the loss, (N,) each."""
        with autocast(self.device, self.dtype):
            if self.head is not None:
                return self.head.score(*self._states(batch))
            logits_NV, targets_N = self._own_logits(batch)
            logprobs_N = logits_NV.log_softmax(-1).gather(1, targets_N[:, None])[:, 0]
            return logprobs_N, logits_NV.argmax(-1) == targets_N

    @torch.no_grad()
    def hidden(self, batch: MicroBatch) -> Tensor:
        """Compute hidden_NH: the states that the tokens in the loss are predicted from."""
        with autocast(self.device, self.dtype):
            hidden_NH = self._states(batch)[0]
        if self.head is not None:
            with self.head.whole():  # as in every other pass, beside which another rank may make this one
                pass
        return hidden_NH

    @torch.no_grad()
    def kl(self, batch: MicroBatch, start_hidden_NH: Tensor) -> Tensor:
        """Compute the exact KL(pi || pi_start), (N,), at the tokens in the loss, by the start policy's states there."""
        assert self.head is not None
        with autocast(self.device, self.dtype):
            (start_NH,) = to_device(self.device, start_hidden_NH)
            return self.head.kl(self._states(batch)[0], start_NH)

    def empty_pass(self, *, backward: bool = False) -> None:
        """Go through a sharded model, and back, for nothing, while another rank does so for its rows.

        Gradients get zeros, and the random numbers that dropout draws are not counted.
        """
        row = TokenSequence(np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.bool_))
        batch = (flatten if self.flat_rows else pad)([row])
        here = [torch.device(self.device)] if self.device.startswith("cuda") else []
        with torch.random.fork_rng(here), torch.set_grad_enabled(backward):
            logprobs_N = self.logprobs(batch)
            if backward:
                logprobs_N.sum().backward()

    def passes_to_join(self, passes: int) -> int:
        """Return how many empty passes make `passes` those of the rank with most; 0 where nothing is sharded."""
        return largest(passes, self.device) - passes if self.sharded else 0

    def _states(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        ids_BT, positions_N, targets_N = self._on_device(batch)
        states_BTH = decoder_of(causal_lm(self.model))(input_ids=ids_BT, **self._arguments(batch)).last_hidden_state
        return states_BTH.flatten(0, 1).index_select(0, positions_N), targets_N

    def _own_logits(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        ids_BT, positions_N, targets_N = self._on_device(batch)
        logits_BTV = causal_lm(self.model)(input_ids=ids_BT, **self._arguments(batch)).logits
        return logits_BTV.flatten(0, 1).index_select(0, positions_N).float(), targets_N

    def _arguments(self, batch: MicroBatch) -> dict[str, Any]:
        if batch.row_lengths is not None:
            return flat_arguments(torch.device(self.device), batch.row_lengths)
        arguments: dict[str, Any] = {"use_cache": False}
        width, lengths = batch.input_ids.shape[1], batch.padded_lengths
        if self._short_row is not None and width > self._short_row and lengths is not None and min(lengths) < width:
            (arguments["position_ids"],) = to_device(self.device, padded_positions(lengths, width))
        return arguments

    def _on_device(self, batch: MicroBatch) -> list[Tensor]:
        """Return ids_BT, and of each token t in the loss the position t - 1, whose output predicts it, and its id."""
        targets_BT = batch.labels[:, 1:]
        rows_N, columns_N = (targets_BT != IGNORED).nonzero(as_tuple=True)
        positions_N = rows_N * batch.labels.shape[1] + columns_N
        return to_device(self.device, batch.input_ids, positions_N, targets_BT[rows_N, columns_N])


class ValueHead(nn.Module):
    """V(s_t), what reward to expect: one linear layer, zero at first, on the state that the next token comes from.

    So the first advantages are the standardised rewards themselves. Kept in fp32 and in checkpoints; the published
    adapter does not have it, since a server has no use for values.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Compute values (N,) of hidden states (N, H); call it outside autocast."""
        values_N1: Tensor = self.linear(hidden_NH.float())
        return values_N1[:, 0]
