"""Loss and gradients of a step of dpo and of kto are those of TRL's trainers on the same rows with the same settings.

The trained adapter is moved away from the start policy first: at the start the losses are constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from llm_tuning.data.token_rows import TokenRows, TokenSequence
from llm_tuning.trainers import dpo, kto
from llm_tuning.trainers.fine_tune import load_policy
from llm_tuning.trainers.model import attach_lora, load_base_model
from llm_tuning.trainers.recipe import Recipe, Task
from llm_tuning.trainers.save import save_adapter
from tests.support.ppo_rows import examples
from tests.support.preference_rows import pairs, write_labels, write_pairs
from tests.support.train_run import make_run

ROWS = 12
LORA = {"rank": 4, "alpha": 8}
RECIPES = {"dpo": dpo.Dpo, "kto": kto.Kto}
OF_TRL = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": ROWS,
    "train_sampling_strategy": "sequential",
    "max_length": None,
}


@pytest.fixture(scope="module")
def start_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the base much."""
    folder = tmp_path_factory.mktemp("start")
    model = attach_lora(
        load_base_model(tiny_base, device="cpu", dtype=torch.float32),
        rank=4,
        alpha=8,
        dropout=0.0,
        target_modules="all-linear",
        seed=1,
    )
    move(model, seed=7, by=0.3)
    save_adapter(model, tiny_base, folder, base_name=str(tiny_base), chat_template=None)
    return folder


@torch.no_grad()
def move(model: Any, *, seed: int, by: float) -> None:
    """Add to every trained weight what its name and the seed give."""
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            random = torch.Generator().manual_seed(seed + sum(map(ord, name)))
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=by)


def gradients(model: Any) -> dict[str, Tensor]:
    return {
        name.removeprefix("base_model.model."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }


def ours(
    mode: str, base: Path, work: Path, start: Path | None, settings: Mapping[str, Any]
) -> tuple[float, dict[str, Tensor], np.ndarray]:
    """The loss and the gradients of the first step, in many micro-batches, and its rows."""
    run = make_run(
        work,
        base,
        mode=mode,
        settings=settings,
        training={"batch_size": ROWS, "eval_fraction": 0.0, "max_steps": 1, "max_tokens_per_pass": 150},
        lora=LORA,
        start_adapter=start,
    )
    recipe_type: type[Recipe] = RECIPES[mode]
    policy = load_policy(run, recipe_type, torch.float32)
    rows = TokenRows.open(run.rows)
    task = Task.of(run, policy, rows, *rows.hold_out(0.0, run.config.training.seed))
    recipe = recipe_type(task)
    (step,) = task.steps.whole(0)
    move(policy.model, seed=3, by=0.05)
    recipe.begin_step(step, 0)
    cut = task.batches.cut(step, whole_rows=recipe.whole_rows)
    assert len(cut) > 3
    total = 0.0
    for sequences in cut:
        loss, _ = recipe.loss(task.batches.lay(sequences))
        (loss / recipe.weight(step)).backward()
        total += loss.item()
    return total / recipe.weight(step), gradients(policy.model), step


def theirs(trainer: Any) -> tuple[float, dict[str, Tensor]]:
    move(trainer.model, seed=3, by=0.05)
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), gradients(trainer.model)


def model_for_trl(base: Path, start: Path | None) -> dict[str, Any]:
    model = load_base_model(base, device="cpu", dtype=torch.float32)
    if start is not None:
        return {"model": PeftModel.from_pretrained(model, str(start), is_trainable=True)}
    # From the weights of `attach_lora`: a LoRA begins at random ones.
    adapted = attach_lora(model, rank=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=42)
    weights = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    return {"weights": weights, "model": load_base_model(base, device="cpu", dtype=torch.float32)}


def trainer_of(kind: Any, base: Path, start: Path | None, args: Any, records: list[dict[str, Any]]) -> Any:
    class Trainer(kind):  # type: ignore[misc]
        """With token ids as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    given = model_for_trl(base, start)
    weights = given.pop("weights", {})
    if start is None:
        given["peft_config"] = LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    trainer = Trainer(
        args=args,
        train_dataset=Dataset.from_list(records),
        processing_class=AutoTokenizer.from_pretrained(base),
        **given,
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    return trainer


def ids_of(sequence: TokenSequence) -> tuple[list[int], list[int]]:
    begin = int(np.argmax(sequence.learned))
    return sequence.input_ids[:begin].tolist(), sequence.input_ids[begin:].tolist()


def assert_same(got: tuple[float, dict[str, Tensor]], want: tuple[float, dict[str, Tensor]]) -> None:
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    assert got[1].keys() == want[1].keys()
    all_got, all_want = (torch.cat([gradient[name].flatten() for name in want[1]]) for gradient in (got[1], want[1]))
    assert float(all_want.norm()) > 1e-4
    assert float((all_got - all_want).norm() / all_want.norm()) < 1e-5


@pytest.mark.parametrize("with_start", [False, True], ids=["base", "start adapter"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "sigmoid_norm"])
def test_a_step_of_dpo_is_trls(
    tiny_base: Path, start_adapter: Path, tmp_path: Path, loss_type: str, with_start: bool
) -> None:
    start = start_adapter if with_start else None
    rows = write_pairs(tmp_path / "work/rows", tiny_base, pairs(held_out=False)[:ROWS])
    settings = {"loss_type": loss_type, "beta": 0.3}
    *got, step = ours("dpo", tiny_base, tmp_path / "work", start, settings)
    records = []
    for index in step:
        chosen, rejected = (ids_of(sequence) for sequence in rows[int(index)].sequences)
        assert chosen[0] == rejected[0]
        records.append({"prompt_ids": chosen[0], "chosen_ids": chosen[1], "rejected_ids": rejected[1]})
    args = DPOConfig(output_dir=str(tmp_path / "trl"), loss_type=[loss_type], beta=0.3, **OF_TRL)
    assert_same((got[0], got[1]), theirs(trainer_of(DPOTrainer, tiny_base, start, args, records)))


@pytest.mark.parametrize("with_start", [False, True], ids=["base", "start adapter"])
def test_a_step_of_kto_is_trls_with_its_estimate_of_the_kl(
    tiny_base: Path, start_adapter: Path, tmp_path: Path, with_start: bool
) -> None:
    start = start_adapter if with_start else None
    chosen = examples(held_out=False)[:ROWS]
    rows = write_labels(tmp_path / "work/rows", tiny_base, chosen, [e.good and i > 3 for i, e in enumerate(chosen)])
    settings = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.75}
    *got, step = ours("kto", tiny_base, tmp_path / "work", start, settings)
    records: list[dict[str, Any]] = []
    for index in step:
        prompt, completion = ids_of(rows[int(index)].sequences[0])
        records.append({"prompt_ids": prompt, "completion_ids": completion, "label": bool(rows.numbers[index])})
    for record, before in zip(records, [records[-1], *records[:-1]], strict=True):
        record["KL_completion_ids"] = before["completion_ids"]
    args = KTOConfig(output_dir=str(tmp_path / "trl"), **settings, **OF_TRL)
    trainer = trainer_of(KTOTrainer, tiny_base, start, args, records)
    want = theirs(trainer)
    assert trainer._metrics["train"]["kl"][0] > 0.01, "the estimate is in play"
    assert_same((got[0], got[1]), want)
