"""Prompts with the answers of other rows, from which kto estimates how far the policy is from the start policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm_tuning.data.token_rows import TokenRows, TokenSequence
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.micro_batches import MicroBatches
from llm_tuning.trainers.parallel import sum_over_ranks
from llm_tuning.trainers.policy import Policy


def mismatched(rows: TokenRows, order: Indices, *, max_length: int, spare: int) -> list[TokenSequence]:
    """Build of each row in `order` its prompt with the answer of the row before it, and of the first with the last's.

    So TRL's KTOTrainer does with the rows of a batch. A row that is alone takes the answer of row `spare`. Cut at
    `max_length` tokens; at least one of them is in the loss.
    """
    answers = np.roll(order, 1) if len(order) > 1 else np.array([spare])
    return [_join(rows, int(prompt), int(answer), max_length) for prompt, answer in zip(order, answers, strict=True)]


def _join(rows: TokenRows, prompt: int, answer: int, max_length: int) -> TokenSequence:
    asked, answered = rows[prompt], rows[answer]
    context = asked.input_ids[: np.argmax(asked.learned)]
    start = np.argmax(answered.learned)
    ids = np.concatenate([context, answered.input_ids[start:]])[:max_length]
    learned = np.concatenate([np.zeros(len(context), dtype=np.bool_), answered.learned[start:]])[:max_length]
    return TokenSequence(ids, learned)


@torch.no_grad()
def score_sequences(
    policy: Policy, batches: MicroBatches, sequences: Sequence[TokenSequence], doing: str | None = None
) -> Tensor:
    """Compute the log-probs of the tokens in the loss of all sequences, flat, fp32 on the CPU, the same on every rank.

    With `doing` a request to stop raises TryAgain on every rank; within a step it waits for the step's end.
    """
    counts = np.array([int(sequence.learned.sum()) for sequence in sequences])
    starts = np.cumsum(counts) - counts
    logprobs = torch.zeros(int(counts.sum()))
    cut = batches.cut_lengths([len(sequence.input_ids) for sequence in sequences])
    for at in batches.deal(cut, doing):
        scored = policy.logprobs(batches.lay_out([sequences[i] for i in at])).float().cpu()
        positions = np.concatenate([np.arange(starts[i], starts[i] + counts[i]) for i in at])
        logprobs[torch.from_numpy(positions)] = scored
    return sum_over_ranks(logprobs, batches.device)
