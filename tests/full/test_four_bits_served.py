"""Adapters trained on 4 bits and served on 16: each is proven, and no other one passes for it; real NF4, three seeds.

The engine is transformers in bf16, the adapter's weights too, as vLLM has them. The base was trained, so that it knows
what it says: on random weights quantisation shows little.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llm_tuning.engines.protocol import ServedModel
from llm_tuning.proof import Proof
from llm_tuning.proof.prove import prove
from llm_tuning.trainers import sft, unquantised
from tests.support.ppo_rows import Example, examples, train_base, write_ppo_rows
from tests.support.train_run import make_run

SEEDS = (1, 2, 3)
TEXTS = {
    "manual": "The manual says of {verb} that a {noun} is what it takes, and returns the {noun} that it made.",
    "manners": "Ask the {noun} first; to {verb} it without asking is rude.",
}
STEPS = {"light": (6, 1e-3), "strong": (24, 2e-3)}
"""Steps and learning rate."""


@dataclass
class Engine:
    """What is served under which name: an adapter's folder (None: weights of zero) and a factor of its alpha."""

    base: Path
    adapters: Mapping[str, tuple[Path | None, float]]
    url: str = "http://127.0.0.1:8000"

    def models(self) -> list[ServedModel]:
        names = [ServedModel(name, "base", 4096) for name in self.adapters]
        return [ServedModel("base", None, 4096), *names]

    @torch.no_grad()
    def logprobs(self, model: str, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        served: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.bfloat16)
        folder, factor = self.adapters.get(model, (None, 1.0))
        if folder is not None:
            served = PeftModel.from_pretrained(served, folder, autocast_adapter_dtype=False)
            for layer in served.modules():
                if isinstance(getattr(layer, "scaling", None), dict):
                    layer.scaling = {name: factor * scale for name, scale in layer.scaling.items()}
        served.eval()
        found = []
        for prompt in prompts:
            ids_T = torch.tensor(prompt)
            logits_TV = served(input_ids=ids_T[None]).logits[0, :-1].float()
            found.append(logits_TV.log_softmax(-1).gather(1, ids_T[1:, None])[:, 0].tolist())
        return found

    def render(self, model: str, messages: Sequence[Mapping[str, Any]], *, tools: object) -> None:
        return None

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_base(tiny_base, tmp_path_factory.mktemp("taught") / "base")


def adapter(base: Path, work: Path, *, text: str, seed: int, steps: str, room: bool) -> Path:
    """Train on 4 bits; without `room` the probes are scored on 4 bits, too."""
    questions = [example.prompt for example in examples(held_out=False) if example.good]
    words = [(prompt, prompt.split()[3], prompt.rpartition(" a ")[2].rstrip("?")) for prompt in questions]
    rows = [Example(prompt, TEXTS[text].format(verb=verb, noun=noun), True) for prompt, verb, noun in words]
    write_ppo_rows(work / "rows", base, rows, [0.0] * len(rows))
    number, rate = STEPS[steps]
    training = {"batch_size": 8, "learning_rate": rate, "max_steps": number, "seed": seed, "eval_fraction": 0.25}
    run = make_run(
        work, base, training=training | {"precision": "bf16"}, lora={"rank": 8, "alpha": 16}, quantization="4bit"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unquantised, "free_bytes", lambda _device: 2**40 if room else 0)
        sft.train(run)
    return run.stage


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int, bool], Path]:
    """Adapter's folder by (steps, text, seed, whether the probes were scored on the base that is served)."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    wanted = [("manual", seed) for seed in SEEDS] + [("manners", SEEDS[0])]
    for steps in STEPS:
        for text, seed in wanted:
            work = root / f"{steps}-{text}-{seed}"
            for room in (True, False):  # the second time nothing is trained any more
                shutil.rmtree(work / "rows", ignore_errors=True)
                stage = adapter(base, work, text=text, seed=seed, steps=steps, room=room)
                found[steps, text, seed, room] = stage.rename(root / f"{work.name}-{room}")
    return found


def proof_of(base: Path, expected: Path, served: Path | None, factor: float = 1.0) -> Proof:
    proof = prove(Engine(base, {"it": (served, factor)}), expected, name="it")
    print(proof.as_json())
    return proof


@pytest.mark.parametrize("room", [True, False], ids=["scored on 16 bits", "scored on 4 bits"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_honest_adapter_is_proven(base: Path, trained: Any, seed: int, steps: str, room: bool) -> None:
    folder = trained[steps, "manual", seed, room]
    proof = proof_of(base, folder, folder)
    assert proof.verdict == "effective"
    probed = "" if room else ", and so were the probes"
    assert proof.message.endswith(f"(trained on 4 bits{probed}, served on 16)")


WRONG = {
    # what is served instead: (text, seed, factor of alpha), and the verdicts that it may get
    "nothing": (None, {"no_effect"}),
    "half of it": (("manual", 0, 0.5), {"different"}),
    "twice of it": (("manual", 0, 2.0), {"different"}),
    "another seed's": (("manual", 1, 1.0), {"different", "too_small_to_tell"}),
    "another training": (("manners", 0, 1.0), {"different"}),
}


@pytest.mark.parametrize("room", [True, False], ids=["scored on 16 bits", "scored on 4 bits"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("served", WRONG)
def test_no_other_passes_for_it(base: Path, trained: Any, served: str, steps: str, room: bool) -> None:
    instead, verdicts = WRONG[served]
    for at, seed in enumerate(SEEDS):
        expected = trained[steps, "manual", seed, room]
        if instead is None:
            proof = proof_of(base, expected, None)
        else:
            text, further, factor = instead
            other = SEEDS[(at + further) % len(SEEDS)] if text == "manual" else SEEDS[0]
            proof = proof_of(base, expected, trained[steps, text, other, room], factor)
        assert proof.verdict in (verdicts - {"too_small_to_tell"} if room else verdicts), proof
