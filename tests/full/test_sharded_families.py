"""Every kind of model that the trainer knows, divided over two ranks: the gradients of the whole one, or a refusal."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_tuning.errors import InputError
from llm_tuning.trainers.model import attach_lora, load_base_model
from llm_tuning.trainers.parallel import process_group
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.sharding import refuse_unless_it_runs
from tests.support.families import FAMILIES, make_model
from tests.train.trainers.test_gradients import gradients, in_micro_batches, make_rows

REFUSED = {"opt"}
"""Its causal LM calls the decoder past what holds its position embeddings."""


def step(folder: Path, name: str, rank: int, *, sharded: bool) -> tuple[float, torch.Tensor, float]:
    """Load the base and return the loss and gradients of a step on this rank's rows, and the share that it holds."""
    base = load_base_model(folder, device="cpu", dtype=torch.float32, sharded=sharded)
    if sharded:
        refuse_unless_it_runs(base, device="cpu", dtype=torch.float32)
    every = list(base.parameters())
    held = sum(getattr(parameter, "_local_tensor", parameter).numel() for parameter in every)
    targets = ["c_attn"] if FAMILIES[name].kind == "gpt2" else "all-linear"
    adapted = attach_lora(base, rank=4, alpha=8, dropout=0.0, target_modules=targets, seed=1)
    torch.manual_seed(1)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.normal_(std=0.1)
    policy = Policy(adapted, device="cpu", dtype=torch.float32)
    assert policy.head is not None
    assert policy.sharded == sharded
    loss, got = in_micro_batches(adapted, make_rows([40, 17, 60], seed=rank), policy, flat=policy.flat_rows)
    policy.empty_pass(backward=True)
    assert not gradients(adapted).any()
    return loss, got, held / sum(parameter.numel() for parameter in every)


def of_rank(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with process_group(folder / "rendezvous", rank=rank, world=2, device="cpu"):
        for name in FAMILIES:
            whole = step(folder / name, name, rank, sharded=False)
            try:
                part = step(folder / name, name, rank, sharded=True)
            except InputError as error:
                found[name] = str(error)
                continue
            found[name] = [part[0] == whole[0], torch.equal(part[1], whole[1]), part[2]]
    (folder / f"found-{rank}.json").write_text(json.dumps(found))


@pytest.mark.timeout(900)
def test_every_family_divided_has_the_gradients_of_the_whole_one_or_is_refused(tmp_path: Path) -> None:
    for name in FAMILIES:
        make_model(name).save_pretrained(tmp_path / name)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=of_rank, args=(tmp_path, rank)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        assert {name for name in found if isinstance(found[name], str)} == REFUSED
        for name in FAMILIES.keys() - REFUSED:
            same_loss, same_gradients, share = found[name]
            assert (same_loss, same_gradients) == (True, True), name
            assert share <= 0.56, name
        assert found["opt"].startswith(
            "training.sharding: divides the base, and OPTForCausalLM does not run in parts: "
        )
