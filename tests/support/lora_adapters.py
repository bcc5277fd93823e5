"""Adapters made by hand for the serving tests: random weights of a chosen size, with the `parity.json` they would have.

The log-probabilities come from transformers and PEFT directly, not from the project's own `write_parity`: the tests of
the proof should not inherit a fault of the trainer.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llm_tuning.models.base import inspect_base, weight_hash

PROBE_TEXTS = [
    ("What does a generator return?", "An iterator; values are made one at a time."),
    ("How is a tuple different from a list?", "It cannot be changed after it is made."),
    ("Name the statement that leaves a loop.", "break"),
    ("When does the else clause of a loop run?", "When the loop ends without break."),
    ("What is a slice?", "A part of a sequence, written with colons between its bounds and step."),
    ("Why use with for files?", "It closes them, also when an error is raised."),
]


def make_adapter(
    folder: Path,
    base: Path,
    *,
    b_scale: float,
    seed: int = 1,
    rank: int = 16,
    autocast: bool = False,
    chat_template: str | None = None,
) -> Path:
    """Write a LoRA on `base` whose B is normal with standard deviation `b_scale`, and its parity.json, to `folder`.

    `autocast` computes the log-probabilities in bfloat16, as a trainer on a GPU does.
    `chat_template` replaces the base's.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if autocast else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config, autocast_adapter_dtype=True).eval()
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, b_scale) if b_scale else weight.zero_()
    tuned.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def logprobs(ids: list[int]) -> list[float]:
        ids_T = torch.tensor(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits_TV = tuned(input_ids=ids_T[None]).logits[0, :-1]
        return logits_TV.float().log_softmax(-1).gather(1, ids_T[1:, None])[:, 0].tolist()

    probes: list[dict[str, Any]] = []
    for question, answer in PROBE_TEXTS:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        with tuned.disable_adapter():
            base_logprobs = logprobs(ids)
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        probe = {"messages": messages, "text": None, "rendered": rendered, "token_ids": ids, "learned": [0] * len(ids)}
        probes.append(probe | {"base_logprobs": base_logprobs, "tuned_logprobs": logprobs(ids)})
    base_hash = weight_hash(inspect_base(base), folder.parent / f"{folder.name}.base_hashes.json")
    parity = {
        "version": 1,
        "model_id": folder.name,
        "base_weight_hash": base_hash,
        "template_hash": "",
        "source": "held_out",
    }
    parity |= {"dtype": str(dtype).removeprefix("torch."), "probes": probes}
    (folder / "parity.json").write_text(json.dumps(parity))
    (folder / "model.json").write_text(json.dumps({"model_id": folder.name, "base": {"weight_hash": base_hash}}))
    return folder


def copy_adapter(source: Path, folder: Path, *, alpha_factor: int = 1) -> Path:
    """A copy of an adapter, its lora_alpha multiplied."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_alpha"] *= alpha_factor
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
