"""`parity.json`: what a server must reproduce to prove that it serves this adapter.

At most 32 short probes with token ids and the per-token log-probabilities of the bare base and of the tuned model,
as the trainer saw them. `llm_tuning.proof` compares differences (tuned minus base here, adapter minus base there), so
that numerical noise between trainer and engine cancels out of the verdict. After a run on 4 bits the numbers are those
of the base without quantisation, as a server has it, wherever that can be loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_tuning.core.files import write_json
from llm_tuning.data.calls import Tools
from llm_tuning.data.chat import TemplateRefused
from llm_tuning.data.messages import Message
from llm_tuning.data.token_rows import TokenRows, TokenSequence
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.errors import InputError
from llm_tuning.models.base import read_config
from llm_tuning.models.layout import PARITY
from llm_tuning.models.rope import length_dependent_ropes
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.gpu import first_line
from llm_tuning.trainers.memory import Stage, out_of_memory
from llm_tuning.trainers.micro_batches import pad
from llm_tuning.trainers.model import bare_base
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.probe_choice import Chosen, choose_probes
from llm_tuning.trainers.unquantised import unquantised_policy

log = logging.getLogger(__name__)

Scores = tuple[list[float], list[float]]
"""Log-probabilities of a probe's tokens under the bare base and under the tuned model."""


def score_probes(
    policy: Policy, rows: TokenRows, *, held_out: NDArray[np.int64], training: NDArray[np.int64]
) -> list[Scores]:
    """Score the probes of `write_parity`: by all ranks together where the model is sharded."""
    return _scores(policy, [_kept(rows, probe) for probe in choose_probes(rows, _pool(held_out, training))])


def write_parity(
    run: TrainRun,
    policy: Policy,
    rows: TokenRows,
    *,
    held_out: NDArray[np.int64],
    training: NDArray[np.int64],
    scores: list[Scores] | None = None,
) -> None:
    """Write `parity.json` into the stage. Probes are held-out rows, or training rows (marked so) without a split.

    `scores` are those of `score_probes`, which makes them here if they are not given. The adapter must be in the
    stage. A `policy` on 4 bits cannot be used afterwards. Where the GPU's memory runs out
    there is no file and a warning: the run is done and must not be lost by it.
    """
    source = "held_out" if len(held_out) else "training"
    chosen = choose_probes(rows, _pool(held_out, training))
    shown = [_kept(rows, probe) for probe in chosen]
    quantization = scored_on = run.config.model.quantization
    try:
        scores = _scores(policy, shown) if scores is None else scores
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        (run.stage / PARITY).unlink(missing_ok=True)  # an earlier start's
        log.warning(
            "the adapter has no %s, and a server cannot prove it: memory ran out %s (%s)",
            PARITY,
            Stage.PROBES,
            first_line(error),
        )
        return
    if quantization != "none" and (served := _scores_as_served(run, policy, shown)) is not None:
        scores, scored_on = served, "none"
    tokenizer = RowTokenizer.load(run.base)
    ropes = length_dependent_ropes(read_config(run.base)).values()
    write_json(
        run.stage / PARITY,
        {
            "version": 1,
            "model_id": run.spec.model_id,
            "base_weight_hash": run.spec.base_weight_hash,
            "template_hash": run.spec.template_hash,
            "dtype": str(policy.dtype).removeprefix("torch."),
            "quantization": quantization,
            "scored_on": scored_on,
            "source": source,
            "ropes": [[rope.kind, rope.original] for rope in ropes],
            "probes": [_probe(rows, one, *of_one, tokenizer) for one, of_one in zip(chosen, scores, strict=True)],
        },
    )


def _pool(held_out: NDArray[np.int64], training: NDArray[np.int64]) -> NDArray[np.int64]:
    return held_out if len(held_out) else training


def _scores(policy: Policy, sequences: Sequence[TokenSequence]) -> list[Scores]:
    was_training = policy.training
    policy.eval()
    with bare_base(policy.model):
        base = [_logprobs(policy, sequence) for sequence in sequences]
    tuned = [_logprobs(policy, sequence) for sequence in sequences]
    policy.train(was_training)
    return list(zip(base, tuned, strict=True))


def _scores_as_served(run: TrainRun, policy: Policy, sequences: Sequence[TokenSequence]) -> list[Scores] | None:
    """Score on the base without quantisation; None, with a warning, where that fails."""
    try:
        served = unquantised_policy(run, policy)
        return _scores(served, sequences) if served is not None else None
    except (InputError, OSError, RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError
        why = first_line(error)[:300]
        log.warning("the probes of the proof are scored on 4 bits, for the base could not be loaded again: %s", why)
        return None


def _kept(rows: TokenRows, probe: Chosen) -> TokenSequence:
    """Return the tokens of a probe."""
    sequence = rows.sequence(probe.number)
    return TokenSequence(sequence.input_ids[: probe.tokens], sequence.learned[: probe.tokens])


def _logprobs(policy: Policy, sequence: TokenSequence) -> list[float]:
    """Compute log p(id_t | ids before t) for t >= 1 of one probe, in the loss or not."""
    everywhere = TokenSequence(sequence.input_ids, np.arange(len(sequence.input_ids)) > 0)
    logprobs_N, _ = policy.score(pad([everywhere]))
    return [round(value, 7) for value in logprobs_N.tolist()]


def _probe(
    rows: TokenRows, probe: Chosen, base: list[float], tuned: list[float], tokenizer: RowTokenizer | None
) -> dict[str, Any]:
    """Describe a probe; `prompt_tokens` of its ids are what a server makes of its messages before the last one."""
    sequence = _kept(rows, probe)
    row, part = rows.place_of(probe.number)
    whole = probe.tokens == rows.sequence_lengths[probe.number]
    messages = rows.messages(row, part) if whole else None
    tools = rows.tools(row, part) if whole else None
    prompt_tokens = rows.prompt_tokens(row, part) if whole else 0
    rendered = None
    if messages and prompt_tokens and tokenizer:
        rendered = _rendered_prompt(messages, tools, sequence.input_ids[:prompt_tokens].tolist(), tokenizer)
    return {
        "messages": messages,
        "tools": tools,
        "text": rows.text(row, part) if whole else None,
        "rendered": rendered,
        "prompt_tokens": prompt_tokens,
        "token_ids": sequence.input_ids.tolist(),
        "learned": sequence.learned.astype(int).tolist(),
        "base_logprobs": base,
        "tuned_logprobs": tuned,
    }


def _rendered_prompt(
    messages: list[Message], tools: Tools | None, ids: list[int], tokenizer: RowTokenizer
) -> str | None:
    """Render the prompt of the last message again; None where that is not what `ids` were made of."""
    try:
        text = tokenizer.template.render(messages[:-1], tools=tools, add_generation_prompt=True)
    except TemplateRefused:
        return None
    return text if tokenizer.ids([text]) == [ids] else None
