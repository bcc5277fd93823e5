"""One family of the zoo through the product, as a user would take it, held to `zoo_reference`.

SFT of two steps over all rows, PPO that starts at its adapter; all in this process, so that families share the imports,
and without MLflow and curves, which take a run longer than its steps do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_tuning.codes.tune_llm import run_tuning
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import InputError
from llm_tuning.models.layout import TOKENIZER_CONFIG
from llm_tuning.models.manifest import Manifest, read_manifest
from llm_tuning.trainers.loop import Loop
from tests.support.zoo import Family, families, make_base
from tests.support.zoo_reference import Reference, Row, by_layer

SETTINGS: dict[str, Any] = {
    "devices": "cpu",
    "precision": "fp32",
    "batch_size": 64,
    "epochs": 2,
    "learning_rate": 1e-2,
    "lora_rank": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "eval_fraction": 0.25,
    "seed": 42,  # of which long rows and conversations of several turns are on both sides
    "max_length": 1024,
}


OTHER_IDS = "gives other token ids"
SET = re.compile(r'set ("tokenizer_class": "\w+")')


@dataclass
class Outcome:
    """What came of a family; differences are the worst ones found, in nats a token, and relative for gradients."""

    family: str
    class_name: str
    modules: list[str] = field(default_factory=list)
    """Last name parts of the layers that were trained."""
    padding_free: bool | None = None
    attention: str = ""
    loss: float = 0.0
    """Of the base on held-out rows, and of the two steps."""
    gradient: float = 0.0
    """|g - reference| / |reference| over all weights of the adapter, of the two steps."""
    peft: float = 0.0
    """Of log-probabilities of the probes, in plain PEFT."""
    ppo: str = ""
    """Why PPO that starts at the adapter is refused: empty where it took its step."""
    refused: str = ""
    """Why SFT refuses the base: empty where it is trained."""
    remedy: str = ""
    """What the refusal of the folder as published said to set in tokenizer_config.json, which was done."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """The adapter before an optimizer step, the loss of that step and its gradients."""

    loss: float
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]


@dataclass
class Seen:
    """What the product trained on, and how."""

    training: list[Row] = field(default_factory=list)
    held_out: list[Row] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def try_family(name: str, folder: Path) -> Outcome:
    """Take the family through SFT, the reference, plain PEFT and PPO in `folder`; what it makes stays there."""
    family = families()[name]
    outcome = Outcome(name, family.architecture or family.class_name)
    base = make_base(name, folder / "base")
    common = SETTINGS | {"output_dir": str(folder / "models"), "tracking_uri": None}
    with seen_steps() as seen:
        try:
            outcome.remedy = _tune(base, write_rows(folder / "sft.jsonl"), common)
        except InputError as error:
            outcome.refused = _rules(error)
            return outcome
    adapter = folder / "models/sft"
    manifest = read_manifest(adapter)
    assert manifest is not None
    assert manifest.hardware is not None
    outcome.padding_free, outcome.attention = manifest.hardware.padding_free, manifest.hardware.attention
    reference = Reference(base, family.class_name, adapter, logits_of=family.logits_of)
    _check_rows(family, seen)
    _compare(outcome, reference, adapter, manifest, seen)
    outcome.ppo = _ppo_after(base, folder, common)
    return outcome


def _tune(base: Path, rows: str, common: dict[str, Any]) -> str:
    """Train; where a server would have other token ids, do as the refusal says first, and return what that was."""
    try:
        run_tuning(str(base), rows, model_id="sft", **common)
    except InputError as error:
        if OTHER_IDS not in _rules(error) or not (said := SET.search(str(error))):
            raise
        config = base / TOKENIZER_CONFIG
        config.write_text(json.dumps(json.loads(config.read_text()) | json.loads("{" + said[1] + "}")))
        run_tuning(str(base), rows, model_id="sft", **common)
        return said[1]
    return ""


def _compare(outcome: Outcome, reference: Reference, adapter: Path, manifest: Manifest, seen: Seen) -> None:
    for probe in json.loads((adapter / "parity.json").read_text())["probes"]:
        ids = probe["token_ids"]
        with torch.no_grad():
            tuned = reference.logprobs(ids)
        for got, want in ((probe["tuned_logprobs"], tuned), (probe["base_logprobs"], reference.base_logprobs(ids))):
            outcome.peft = max(outcome.peft, float((torch.tensor(got) - want).abs().max()))
    outcome.loss = abs(manifest.metrics["base"]["loss"] - reference.base_loss(seen.held_out))
    for step in seen.steps:
        loss, gradients = reference.step(step.weights, seen.training)
        outcome.loss = max(outcome.loss, abs(step.loss - loss))
        outcome.gradient = max(outcome.gradient, _relative(step.gradients, gradients))
    outcome.modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in seen.steps[0].weights})


def _check_rows(family: Family, seen: Seen) -> None:
    assert len(seen.steps) == 2
    for rows in (seen.training, seen.held_out):
        lengths = [len(row.input_ids) for row in rows]
        assert len(rows) > 1
        between = family.beyond or min(lengths) + 32  # some templates begin with a long system message
        assert min(lengths) < between < max(lengths), "no long row among short ones"


def _ppo_after(base: Path, folder: Path, common: dict[str, Any]) -> str:
    common = common | {"epochs": 1, "tuning_mode": "ppo", "init_adapter": "sft", "model_id": "ppo"}
    try:
        with without_curves():
            run_tuning(str(base), write_rated_rows(folder / "ppo.jsonl"), **common)
    except InputError as error:
        return _rules(error)
    manifest = read_manifest(folder / "models/ppo")
    assert manifest is not None
    assert manifest.training is not None
    assert manifest.training.steps == 1
    return ""


def _rules(error: InputError) -> str:
    """What is wrong, without the places, which are paths of this run."""
    return "; ".join(problem.rule for problem in error.problems)


@contextmanager
def seen_steps() -> Iterator[Seen]:
    """Keep what runs that are started inside train on, and each step's weights and gradients."""
    seen, clip = Seen(), Loop._clip_grad_norm

    def keep_and_clip(self: Loop, model: Any) -> Tensor:
        task = self.task
        if not seen.steps:
            seen.training = sequences(task.rows, task.steps.whole(0)[0])
            seen.held_out = sequences(task.rows, task.held_out)
        named = [(name, p) for name, p in task.policy.model.named_parameters() if p.requires_grad]
        weights = by_layer((name, p.detach().clone()) for name, p in named)
        gradients = by_layer((name, torch.zeros_like(p) if p.grad is None else p.grad.clone()) for name, p in named)
        seen.steps.append(Step(float(self._means[0]), weights, gradients))
        return clip(self, model)

    with without_curves() as patch:
        patch.setattr(Loop, "_clip_grad_norm", keep_and_clip)
        yield seen


@contextmanager
def without_curves() -> Iterator[pytest.MonkeyPatch]:
    """Draw no curve of the runs inside: a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm_tuning.run.finish.draw_loss_curve", lambda *_, **__: None)
        yield patch


def sequences(rows: TokenRows, indices: Any) -> list[Row]:
    """The sequences of the rows at `indices`."""
    found = (sequence for i in indices for sequence in rows[int(i)].sequences)
    return [Row(sequence.input_ids.tolist(), sequence.learned.tolist()) for sequence in found]


def _relative(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert got.keys() == want.keys()
    flat_got, flat_want = (torch.cat([found[name].flatten() for name in sorted(found)]) for found in (got, want))
    return float((flat_got - flat_want).norm() / flat_want.norm())


WORDS = ("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "indigo", "kelp", "lotus", "maple")


def write_rows(path: Path) -> str:
    """20 conversations, without a system message, which not every template takes: short, long, of several turns."""
    with path.open("w") as file:
        for i in range(20):
            turns = [{"role": "user", "content": _words(i, 3)}, {"role": "assistant", "content": _words(i + 5, 4)}]
            if i % 6 == 1:
                turns += [{"role": "user", "content": _words(i + 2, 4)}, {"role": "assistant", "content": _words(i, 5)}]
            if i % 6 == 0:
                turns[0]["content"] = _words(i, 50)
            file.write(json.dumps({"messages": turns}) + "\n")
    return str(path)


def write_rated_rows(path: Path) -> str:
    """20 rated answers, of one prompt each."""
    with path.open("w") as file:
        for i in range(20):
            row = {"prompt": _words(i, 50 if i % 6 == 0 else 3), "output": _words(i + 5, 4), "reward": (i % 5) / 4}
            file.write(json.dumps(row) + "\n")
    return str(path)


def _words(start: int, count: int) -> str:
    return " ".join(WORDS[(start + 3 * k + k * k) % len(WORDS)] for k in range(count)) + f" {start}."
