"""Offline PPO in its plain form: what one writes first. The recipe must give its losses, faster and in less memory.

Batches padded as they come, the reference scored again in every epoch, a second forward pass for the values, a full
log-softmax over the vocabulary at every position. Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import get_scheduler

from llm_tuning.api import TuningConfig
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.trainers.batching import StepBatches


@dataclass
class Batch:
    ids: Tensor  # (B, T)
    attention: Tensor  # (B, T)
    output: Tensor  # (B, T - 1): which of the positions 1.. are output tokens
    reward: Tensor  # (B,)


def plain_ppo(
    model: PeftModel, rows: TokenRows, training_rows: np.ndarray, config: TuningConfig, *, rows_per_pass: int
) -> list[float]:
    """Train the adapter of `model` (start policy: the bare base) and return the loss of every step."""
    training, ppo = config.training, config.ppo
    rewards = rows.numbers[training_rows]
    mean, std = rewards.mean(), rewards.std()
    value_head = nn.Linear(model.get_output_embeddings().weight.shape[1], 1)
    nn.init.zeros_(value_head.weight)
    nn.init.zeros_(value_head.bias)
    adapter = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*adapter, *value_head.parameters()], lr=training.learning_rate, weight_decay=0.0)
    batches = StepBatches(
        training_rows, batch_size=training.batch_size, grad_accum=1, seed=training.seed, lengths=rows.lengths
    )
    total = training.epochs * len(batches)
    scheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=round(training.warmup_ratio * total),
        num_training_steps=total,
    )

    def batch_of(indices: np.ndarray) -> Batch:
        width = int(rows.lengths[indices].max())
        shape = (len(indices), width)
        ids, attention, output = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
        for b, index in enumerate(indices):
            row = rows[int(index)]
            ids[b, : len(row.input_ids)], attention[b, : len(row.input_ids)] = row.input_ids, 1
            output[b, : len(row.input_ids)] = row.learned
        reward = (rows.numbers[indices] - mean) / std
        return Batch(
            torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(output[:, 1:]), torch.tensor(reward)
        )

    def logprobs_of(batch: Batch) -> Tensor:
        logits_BTV = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
        logprobs_BTV = logits_BTV[:, :-1].log_softmax(-1)
        return logprobs_BTV.gather(2, batch.ids[:, 1:, None])[..., 0]

    def values_of(batch: Batch) -> Tensor:
        output = model(input_ids=batch.ids, attention_mask=batch.attention, output_hidden_states=True, use_cache=False)
        return value_head(output.hidden_states[-1])[:, :-1, 0]

    losses = []
    for epoch in range(training.epochs):
        steps = [np.split(rows_, range(rows_per_pass, len(rows_), rows_per_pass)) for rows_ in batches.epoch(epoch)]
        known: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        with torch.no_grad():
            for passes in steps:
                known.append([])
                for indices in passes:
                    batch = batch_of(indices)
                    with model.disable_adapter():
                        reference = logprobs_of(batch)
                    known[-1].append((reference, logprobs_of(batch), values_of(batch)))
        for passes, facts in zip(steps, known, strict=True):
            tokens = int(rows.learned_counts[np.concatenate(passes)].sum())
            step_loss = 0.0
            for indices, (reference, old, old_values) in zip(passes, facts, strict=True):
                batch = batch_of(indices)
                now, values = logprobs_of(batch), values_of(batch)
                reward = batch.reward.float()[:, None].expand_as(now)
                advantage = reward - old_values
                ratio = torch.exp(now - old)
                surrogate = torch.min(
                    ratio * advantage, torch.clamp(ratio, 1 - ppo.clip_range, 1 + ppo.clip_range) * advantage
                )
                near = old_values + torch.clamp(values - old_values, -ppo.value_clip_range, ppo.value_clip_range)
                value_loss = torch.max((values - reward) ** 2, (near - reward) ** 2) / 2
                k3 = torch.exp(reference - now) - (reference - now) - 1
                loss_BT = -surrogate + ppo.value_loss_coef * value_loss + ppo.kl_coef * k3
                loss = (loss_BT * batch.output).sum() / tokens
                loss.backward()
                step_loss += loss.item()
            nn.utils.clip_grad_norm_(adapter, training.max_grad_norm)
            nn.utils.clip_grad_norm_(value_head.parameters(), training.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(step_loss)
    return losses
