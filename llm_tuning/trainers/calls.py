"""Whether a model has learned to call tools: answers to held-out prompts are generated and compared with the rows.

At most 40 answers a policy, greedily, in the run's own arithmetic. They are never a reason to lose a run: where they
cannot be made, the evaluation says why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_tuning.data.call_reader import NotReadable
from llm_tuning.data.call_sample import Asked, CallSample, ReasoningShown, sample_calls, until_stop
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.modes import MODES
from llm_tuning.modes.mode import CALLED_ANYWAY, CALLS_EQUAL, CALLS_FIT, CALLS_PARSED
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import Indices, token_budget_batches
from llm_tuning.trainers.gpu import first_line
from llm_tuning.trainers.memory import out_of_memory
from llm_tuning.trainers.micro_batches import MicroBatches
from llm_tuning.trainers.model import autocast, causal_lm
from llm_tuning.trainers.parallel import any_rank, sum_over_ranks
from llm_tuning.trainers.policy import Policy

log = logging.getLogger(__name__)

MAX_ROWS = 16
"""Answers that are generated together."""


@dataclass
class CallScorer:
    """Asks policies for the answers of a sample, all ranks taking a share."""

    policy: Policy
    batches: MicroBatches
    sample: CallSample | None = None
    reason: str = ""
    """Why there are no scores, though there are tools."""
    has_tools: bool = True
    _warned: bool = field(default=False, init=False)

    @classmethod
    def of(cls, run: TrainRun, policy: Policy, batches: MicroBatches, held_out: Indices) -> CallScorer:
        """Choose the sample; the same on every rank."""
        try:
            tokenizer = RowTokenizer.load(run.base)
            if tokenizer is None:
                return cls(policy, batches, has_tools=False)
            is_wanted = MODES[run.config.mode].answers
            sample = sample_calls(batches.rows, held_out, tokenizer, is_wanted)
        except ReasoningShown as error:
            return cls(policy, batches, reason=str(error))
        except NotReadable as error:
            return cls(policy, batches, reason=f"the chat template of the base: {error}")
        return cls(policy, batches, sample, has_tools=sample is not None)

    def scores(self) -> Mapping[str, float]:
        """Compute the scores of the policy that is in place, none where there are none; raises TryAgain on a stop."""
        if self.sample is None or self.reason:
            return {}
        counts, failed = torch.zeros(6, dtype=torch.float64), ""
        was_training = self.policy.training
        self.policy.eval()
        try:
            for share in self._shares():
                try:
                    self._count(share, counts)
                except Exception as error:  # whatever a model's own way to generate raises: the run is done without
                    if self.policy.sharded and isinstance(error, RuntimeError) and out_of_memory(error):
                        raise  # the other ranks would wait for this one
                    failed = failed or _named(error)
        finally:
            self.policy.train(was_training)
        if any_rank(bool(failed), self.batches.device):
            self.reason = f"answers could not be generated ({failed or 'on another rank'})"
            log.warning("no scores of tool calls: %s", self.reason)
            return {}
        return _shares_of(sum_over_ranks(counts, self.batches.device).tolist())

    def as_dict(self) -> dict[str, Any] | None:
        """Return what `evaluation.json` says of the sample, None where no row has tools."""
        if not self.has_tools:
            return None
        asked = self.sample.asked if self.sample else ()
        said: dict[str, Any] = {
            "with_calls": sum(bool(answer.recorded) for answer in asked),
            "without_calls": sum(not answer.recorded for answer in asked),
        }
        if self.sample and self.sample.not_read:
            said["not_read"] = self.sample.not_read
        return said | ({"reason": self.reason} if self.reason else {})

    def _shares(self) -> Iterator[Sequence[Asked]]:
        """Yield the batches of this rank; all take as many turns and leave together on a stop."""
        assert self.sample is not None
        asked, batches = self.sample.asked, self.batches
        lengths = torch.tensor([len(answer.prompt) + answer.max_tokens for answer in asked]).numpy()
        cut = [
            at[first : first + MAX_ROWS]
            for at in token_budget_batches(lengths, batches.max_tokens)
            for first in range(0, len(at), MAX_ROWS)
        ]
        idle = self._generate_nothing if self.policy.sharded else None
        for share in batches.deal(cut, "during evaluation", idle=idle):
            yield [asked[int(at)] for at in share]

    def _generate_nothing(self) -> None:
        """Generate beside the other ranks, whose answers need this one's part of a sharded model."""
        nothing = Asked(np.zeros(1, dtype=np.int32), 1, [], ())
        with suppress(Exception):  # which the others raise, too, and report
            generate(self.policy, [nothing], frozenset())

    def _count(self, share: Sequence[Asked], counts: Tensor) -> None:
        assert self.sample is not None
        for asked, ids in zip(share, generate(self.policy, share, self.sample.tokenizer.stop_ids), strict=True):
            found = self.sample.read(asked, ids)
            if asked.recorded:
                counts[:4] += torch.tensor([1.0, found.parsed, found.fits, found.equal])
            else:
                counts[4:] += torch.tensor([1.0, found.called])


def _shares_of(counts: Sequence[float]) -> dict[str, float]:
    calls, parsed, fit, equal, words, called = counts
    scores = {CALLS_PARSED: parsed / calls, CALLS_FIT: fit / calls, CALLS_EQUAL: equal / calls} if calls else {}
    return scores | ({CALLED_ANYWAY: called / words} if words else {})


def _named(error: Exception) -> str:
    """Name an error without the rows that its text may quote."""
    return first_line(error)[:200] if isinstance(error, RuntimeError) else type(error).__name__


@torch.no_grad()
def generate(policy: Policy, asked: Sequence[Asked], stop_ids: frozenset[int]) -> list[list[int]]:
    """Generate an answer to each prompt, greedily: ids up to the first stop, at most `max_tokens` of each."""
    width, most = max(len(answer.prompt) for answer in asked), max(answer.max_tokens for answer in asked)
    ids_BT = torch.zeros(len(asked), width, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, answer in enumerate(asked):
        ids_BT[row, width - len(answer.prompt) :] = torch.from_numpy(answer.prompt.astype("int64"))
        mask_BT[row, width - len(answer.prompt) :] = 1
    lm = causal_lm(policy.model)
    with autocast(policy.device, policy.dtype), _greedy(lm, most, stop_ids):
        out_BT = lm.generate(inputs=ids_BT.to(policy.device), attention_mask=mask_BT.to(policy.device))
    answers = zip(out_BT[:, width:].tolist(), asked, strict=True)
    return [list(until_stop(ids[: answer.max_tokens], stop_ids)) for ids, answer in answers]


@contextmanager
def _greedy(lm: Any, most: int, stop_ids: frozenset[int]) -> Iterator[None]:
    """Let `lm` generate the likeliest tokens, without the sampling and the penalties that a base may come with."""
    from transformers import GenerationConfig

    own = lm.generation_config
    lm.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=sorted(stop_ids) or None, pad_token_id=0, use_cache=True
    )
    try:
        yield
    finally:
        lm.generation_config = own
