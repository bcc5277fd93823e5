"""Every kind of model and every family of the zoo, divided over two ranks: to the bit the whole one, or refused."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CTRLConfig, CTRLLMHeadModel, LlamaForCausalLM

from llm_tuning.data.call_sample import Asked
from llm_tuning.errors import InputError
from llm_tuning.models.families import Servable, servable
from llm_tuning.run.division import Division
from llm_tuning.trainers.calls import generate
from llm_tuning.trainers.fine_tune import load_policy
from llm_tuning.trainers.model import attach_lora, checkpoint_gradients, load_base_model
from llm_tuning.trainers.parallel import process_group
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.sft import Sft
from llm_tuning.trainers.sharding import refuse_unless_it_runs
from tests.support import zoo
from tests.support.families import FAMILIES, VOCABULARY, make_model
from tests.support.train_run import make_run
from tests.support.zoo_results import EQUAL, hold_sharded
from tests.train.trainers.test_gradients import gradients, in_micro_batches, make_rows

Load = Callable[[Path, int, bool], Policy]
"""A policy by the folder of its base, the rank and whether it is sharded."""


@dataclass(frozen=True)
class Seen:
    """What a rank saw of a policy: its own rows' loss and gradients, plain and with checkpointing, and an answer."""

    flat: bool
    losses: list[float]
    gradients: torch.Tensor
    answer: list[int]
    held: float
    """The share of the base's numbers that lie on this rank."""


def see(policy: Policy, rank: int) -> Seen:
    frozen = [parameter for parameter in policy.model.parameters() if not parameter.requires_grad]
    held = sum(getattr(parameter, "_local_tensor", parameter).numel() for parameter in frozen)
    torch.manual_seed(1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    losses, found = [], []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint_gradients(policy.model)
            policy.train()
        torch.manual_seed(2)
        rows = make_rows([40, 17, 60], seed=rank)
        loss, got = in_micro_batches(policy.model, rows, policy, flat=policy.flat_rows)
        losses.append(loss)
        found.append(got)
        policy.empty_pass(backward=True)
        assert not gradients(policy.model).any()
    policy.eval()
    asked = Asked(np.arange(5, 12 + rank, dtype=np.int32), 2 + rank, [], ())  # of which the ranks make unequal numbers
    answer = generate(policy, [asked], frozenset())[0]
    assert found[0].any()
    return Seen(
        policy.flat_rows, losses, torch.cat(found), answer, held / sum(parameter.numel() for parameter in frozen)
    )


def of_kind(folder: Path, rank: int, sharded: bool) -> Policy:
    base = load_base_model(folder, device="cpu", dtype=torch.float32, sharded=sharded)
    if sharded:
        refuse_unless_it_runs(base, device="cpu", dtype=torch.float32)
    targets = ["c_attn"] if base.config.model_type == "gpt2" else "all-linear"
    adapted = attach_lora(base, rank=4, alpha=8, dropout=0.0, target_modules=targets, seed=1)
    return Policy(adapted, device="cpu", dtype=torch.float32)


def of_family(folder: Path, rank: int, sharded: bool) -> Policy:
    """As a run loads it."""
    run = make_run(
        folder.parent / f"{folder.name}-run",
        folder,
        training={"gradient_checkpointing": False},
        lora={"rank": 4, "alpha": 8, "dropout": 0.0},
        rank=rank,
        world=2,
    )
    return load_policy(replace(run, division=Division(2, 2, "as asked")) if sharded else run, Sft, torch.float32)


def compared(load: Load, folder: Path, rank: int) -> str:
    """Return how the base in `folder` differs when it is divided."""
    try:
        parts = see(load(folder, rank, True), rank)
    except InputError as error:
        return str(error)
    whole = see(load(folder, rank, False), rank)
    if parts.flat != whole.flat:
        return "its rows lie otherwise"
    if parts.losses != whole.losses or not torch.equal(parts.gradients, whole.gradients):
        difference = (parts.gradients - whole.gradients).norm() / whole.gradients.norm()
        return f"its gradients differ by {difference:.0e}"
    if parts.answer != whole.answer:
        return "its answer differs"
    return EQUAL if parts.held <= 0.51 else f"a rank holds {parts.held:.2f} of it"


def on_two_ranks(load: Load, names: Sequence[str], folder: Path) -> dict[str, str]:
    """Compare the bases that are in `folder` under their names; returns what both ranks said of each."""

    def of_rank(rank: int) -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        with process_group(folder / "rendezvous", rank=rank, world=2, device="cpu"):
            found = {name: compared(load, folder / name, rank) for name in names}
        (folder / f"found-{rank}.json").write_text(json.dumps(found))

    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=of_rank, args=(rank,)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    first, second = (json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    found: dict[str, str] = first
    return found


@pytest.mark.timeout(1800)
def test_every_kind_of_model_is_divided_what_it_is_whole(tmp_path: Path) -> None:
    for name in FAMILIES:
        make_model(name).save_pretrained(tmp_path / name)
    assert on_two_ranks(of_kind, list(FAMILIES), tmp_path) == dict.fromkeys(FAMILIES, EQUAL)


@pytest.mark.timeout(1800)
def test_every_family_of_the_zoo_that_is_trained_is_divided_what_it_is_whole(tmp_path: Path) -> None:
    trained = [name for name in zoo.families() if isinstance(servable(zoo.bare_config(name)), Servable)]
    for name in trained:
        zoo.make_model(name, tmp_path / name)
    found = on_two_ranks(of_family, trained, tmp_path)
    hold_sharded(found)
    assert found == dict.fromkeys(trained, EQUAL)


def test_a_base_whose_parts_do_not_come_together_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = LlamaForCausalLM.forward

    def past_the_decoder(self: Any, *given: Any, **named: Any) -> Any:
        output = own(self, *given, **named)
        output.logits = output.logits * self.model.norm.weight.mean()
        return output

    make_model("llama").save_pretrained(tmp_path / "llama")
    unmarked = CTRLConfig(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, dff=96)
    CTRLLMHeadModel(unmarked).save_pretrained(tmp_path / "ctrl")
    monkeypatch.setattr(LlamaForCausalLM, "forward", past_the_decoder)
    found = on_two_ranks(of_kind, ["llama", "ctrl"], tmp_path)
    rule, remedy = "training.sharding: divides the base, and ", "; set it to none"
    assert found["llama"].startswith(f"{rule}LlamaForCausalLM does not run in parts: ")
    assert found["llama"].endswith(remedy)
    assert found["ctrl"] == f"{rule}the layers of CTRLLMHeadModel are not known{remedy}"
