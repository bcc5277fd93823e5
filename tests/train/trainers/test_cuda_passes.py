"""Every way through the policy on CUDA with its autocast, in models of many families, without a GPU.

CUDA's autocast has LayerNorm in fp32 where the CPU's has not, and a card refuses products, copies and outputs of mixed
dtypes or devices that a CPU lets pass. The backward pass runs too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor

from llm_tuning.data.token_rows import TokenRow
from llm_tuning.run.devices import CUDA_LOGITS
from llm_tuning.trainers.evaluate import evaluate_policy
from llm_tuning.trainers.head import Head
from llm_tuning.trainers.loop import fit
from llm_tuning.trainers.micro_batches import MicroBatches, flatten, pad
from llm_tuning.trainers.output_tokens import TokenLayout, mean_kl, score_rows, start_states
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.ppo import Ppo, ppo_loss
from llm_tuning.trainers.recipe import Recipe, Task
from llm_tuning.trainers.sft import Sft
from tests.support.fake_cuda import DEVICE, Work, fake_cuda, onto_cuda
from tests.support.families import FAMILIES, make_adapted_model
from tests.support.families import VOCABULARY as VOCABULARY_OF_FAMILIES
from tests.support.ppo_rows import examples, write_ppo_rows
from tests.support.rows import write_rows
from tests.support.train_run import KeepingReporter, make_run


@pytest.fixture
def card() -> Iterator[Work]:
    with fake_cuda() as work:
        yield work


def make_rows(lengths: tuple[int, ...] = (9, 20)) -> list[TokenRow]:
    ids = [np.arange(3, 3 + length, dtype=np.int32) for length in lengths]
    return [TokenRow(row, np.arange(len(row)) > 2, 0.0, number) for number, row in enumerate(ids)]


def policy_on_card(family: str, *, with_values: bool = False, dtype: torch.dtype = torch.bfloat16) -> Policy:
    dropout = 0.0 if family == "experts-mixtral" else 0.05  # PEFT has none for experts
    model = make_adapted_model(family, dtype, dropout=dropout)
    return Policy(onto_cuda(model), device=DEVICE, dtype=dtype, with_values=with_values)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_values_scores_and_gradients_in_bf16(card: Work, family: str) -> None:
    policy = policy_on_card(family, with_values=True)
    assert policy.head is not None
    rows = make_rows()
    learned = sum(int(row.learned.sum()) for row in rows)
    # Trials always succeed on a card without numbers: what a real one finds is in `FAMILIES`.
    for flat in {False, bool(FAMILIES[family].flat and policy.flat_rows)}:
        batch = flatten(rows) if flat else pad(rows)
        policy.zero_grad()
        with disable_input_dtype_casting(policy.model):
            logprobs, values = policy.logprobs_and_values(batch)
            recorded = {
                name: torch.zeros(learned, device=DEVICE)
                for name in ("rewards_N", "reference_logprobs_N", "old_logprobs_N", "old_values_N")
            }
            loss, terms = ppo_loss(
                logprobs, values, **recorded, clip_range=0.2, value_clip_range=0.2, value_loss_coef=0.5, kl_coef=0.1
            )
            (loss / learned).backward()
            states = policy.hidden(batch)
            scores, right = policy.score(batch)
            kl = policy.kl(batch, torch.zeros(learned, states.shape[1], dtype=torch.bfloat16))
        assert (logprobs.dtype, values.dtype, terms.dtype) == (torch.float32, torch.float32, torch.float64)
        assert (scores.dtype, right.dtype, kl.dtype) == (torch.float32, torch.bool, torch.float32)
        assert logprobs.shape == values.shape == scores.shape == right.shape == kl.shape == (learned,)
        assert states.dtype == (torch.float32 if FAMILIES[family].layer_norm else torch.bfloat16)
        gradients = [parameter.grad for group in policy.gradient_groups() for parameter in group]
        assert {gradient.dtype for gradient in gradients if gradient is not None} == {torch.float32}
        assert all(gradient is not None and gradient.device.type == "cuda" for gradient in gradients)


VOCABULARY, HIDDEN, POSITIONS = 151_936, 64, 4_096


def head_on_card(**kind: float) -> tuple[Head, Tensor, Tensor]:
    """A head as wide as Qwen's, states that need a gradient, and targets."""
    weight = torch.empty(VOCABULARY, HIDDEN, dtype=torch.bfloat16, device=DEVICE)
    states = torch.empty(POSITIONS, HIDDEN, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    return Head(weight, **kind), states, torch.empty(POSITIONS, dtype=torch.int64, device=DEVICE)


@torch.no_grad()
def test_logits_on_cuda_are_the_products_own_sums_in_fp32(card: Work) -> None:
    head, states, _ = head_on_card()
    card.clear()
    assert head(states[:8]).dtype == torch.float32
    assert card.launches == {"mm": 1}, "no bf16 in between"


@pytest.mark.parametrize("kind", [{}, {"scale": 0.5, "cap": 30.0}], ids=str)
def test_the_output_layer_on_cuda_is_read_a_few_times_and_logits_stay_bounded(
    card: Work, kind: dict[str, float]
) -> None:
    head, states, targets = head_on_card(**kind)
    layer = head.weight.numel() * head.weight.element_size()
    chunks = math.ceil(POSITIONS / (CUDA_LOGITS // VOCABULARY))
    assert chunks == 5
    ways: dict[str, Callable[[], object]] = {
        "logprobs": lambda: head.logprobs(states, targets),
        "score": lambda: head.score(states, targets),
        "kl": lambda: head.kl(states.detach(), states.detach()),
    }
    reads = {"logprobs": 2 * chunks, "score": chunks, "kl": 4 * chunks}
    for name, way in ways.items():
        card.clear()
        before = card.held
        way()
        assert card.read_of(head.weight) == reads[name] * layer, name
        bounded = 4 * CUDA_LOGITS * (3 if "cap" in kind and name == "logprobs" else 2)
        assert card.peak - before < 1.02 * bounded, name
        assert not card.syncs, name


def test_a_training_pass_stops_the_host_nowhere_and_a_scoring_pass_once_while_the_card_does_the_next_one(
    card: Work, tmp_path: Path
) -> None:
    policy = policy_on_card("llama", with_values=True)
    rows = write_rows(tmp_path / "rows", [12, 9, 30, 17], vocab_size=VOCABULARY_OF_FAMILIES)
    batches = MicroBatches(rows, 32, True, DEVICE)
    everything = np.arange(4)
    layout = TokenLayout(rows, everything)
    passes = len(batches.cut(everything))
    assert passes > 1
    card.clear()
    for batch in batches.mine(everything, "now"):
        (-policy.logprobs(batch).sum()).backward()
    assert not card.syncs
    ways: dict[str, Callable[[], object]] = {
        "evaluation": lambda: evaluate_policy(policy, batches, everything),
        "scores between epochs": lambda: score_rows(policy, batches, layout, everything, "now"),
        "states of the start": lambda: start_states(policy, batches, layout, "now"),
    }
    for name, way in ways.items():
        card.clear()
        way()
        assert sum(card.syncs.values()) == len(card.left) == passes, name
        *others, last = card.left
        assert min(others) > 20, f"{name}: the card waits for the host to lay the next rows"
        assert last < 20, name
    card.clear()
    mean_kl(policy, batches, layout, torch.zeros(layout.size, 64, dtype=torch.bfloat16))
    assert sum(card.syncs.values()) == 1, "the mean alone is read"


def test_states_of_the_start_policy_have_the_precision_of_the_run_where_layer_norm_gives_fp32(
    card: Work, tmp_path: Path
) -> None:
    policy = policy_on_card("gpt-neox")
    rows = write_rows(tmp_path / "rows", [12, 9], vocab_size=VOCABULARY_OF_FAMILIES)
    batches = MicroBatches(rows, 32, True, DEVICE)
    assert policy.hidden(batches.lay(np.arange(2))).dtype == torch.float32
    assert start_states(policy, batches, TokenLayout(rows, np.arange(2)), "now").dtype == torch.bfloat16


class SecondStepError(Exception):
    """Ends a run before its last step, which would be saved."""


@pytest.mark.parametrize("recipe", [Sft, Ppo])
@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
def test_a_step_of_the_loop_waits_for_the_card_once_however_many_passes_it_has(
    card: Work, tiny_base: Path, tmp_path: Path, family: str, recipe: type[Recipe]
) -> None:
    waits: list[int] = []

    class Counter(KeepingReporter):
        def step(self, *args: Any) -> None:
            super().step(*args)
            waits.append(card.syncs.total())
            card.clear()
            if len(waits) == 2:  # the first one makes the optimizer's state
                raise SecondStepError

    policy = policy_on_card(family, with_values=recipe.with_values).train()
    chosen = examples(held_out=False)[:12]  # ids beyond the vocabulary: a card without numbers does not see it
    rows = write_ppo_rows(tmp_path / "rows", tiny_base, chosen, [float(example.good) for example in chosen])
    training = {"precision": "bf16", "batch_size": 4, "max_steps": 3, "eval_steps": 9, "max_tokens_per_pass": 128}
    mode = recipe.__name__.lower()
    run = make_run(tmp_path, tiny_base, mode=mode, training=training, reporter=Counter(), device=DEVICE)
    task = Task.of(run, policy, rows, np.arange(len(rows)), np.arange(0))
    assert len(task.batches.cut(np.arange(4))) > 1
    made = recipe(task)
    card.clear()
    with suppress(SecondStepError), disable_input_dtype_casting(policy.model):
        fit(task, made)
    assert waits[1:] == [1], "loss and gradient norms are read together"
