"""Rows for the ppo tests: questions with a helpful and an unhelpful answer, tokenised as the data check does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_tuning.data.token_rows import TokenRow, TokenRows, TokenRowsWriter

VERBS = ("open", "close", "read", "write", "copy", "move", "find", "count", "sort", "print")
NOUNS = ("file", "list", "string", "module", "class", "table", "number", "folder", "name", "table row", "set", "line")
GOOD = "Sure: to {verb} the {noun}, call the {verb} function with it and look at the result."
BAD = "No idea. Nobody needs to {verb} a {noun}, so ask somebody else or give it up."


@dataclass(frozen=True)
class Example:
    prompt: str
    output: str
    good: bool


def examples(*, held_out: bool) -> list[Example]:
    """Both answers to every question; a quarter of the questions is held out."""
    found = []
    for v, verb in enumerate(VERBS):
        for n, noun in enumerate(NOUNS):
            if ((v + n) % 4 == 3) == held_out:
                prompt = f"How do I {verb} a {noun}?"
                found.append(Example(prompt, GOOD.format(verb=verb, noun=noun), True))
                found.append(Example(prompt, BAD.format(verb=verb, noun=noun), False))
    return found


class Encoder:
    """Chat rows of the tiny base's tokenizer; the answer and its end token are learned."""

    def __init__(self, base: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))

    def __call__(self, example: Example, reward: float = 0.0, number: int = 0) -> TokenRow:
        prompt = f"<|endoftext|><|im_start|>user\n{example.prompt}<|im_end|>\n<|im_start|>assistant\n"
        context = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        answer = self.tokenizer.encode(example.output + "<|im_end|>", add_special_tokens=False).ids
        ids = np.array(context + answer, dtype=np.int32)
        return TokenRow(ids, np.arange(len(ids)) >= len(context), reward, number)


def write_ppo_rows(path: Path, base: Path, chosen: Sequence[Example], rewards: Sequence[float]) -> TokenRows:
    """Tokenise `chosen` with their rewards into a folder as a run reads it."""
    encode = Encoder(base)
    with TokenRowsWriter(path) as writer:
        for number, (example, reward) in enumerate(zip(chosen, rewards, strict=True)):
            row = encode(example)
            messages = [
                {"role": "user", "content": example.prompt},
                {"role": "assistant", "content": example.output},
            ]
            writer.append(row.input_ids, row.learned, row_number=number, number=float(reward), messages=messages)
    return TokenRows.open(path)


def train_base(base: Path, target: Path, *, steps: int = 150, seed: int = 0) -> Path:
    """A copy of `base` that has learned to answer, helpfully or not with equal chances: every weight trained."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    from llm_tuning.trainers.micro_batches import pad

    shutil.copytree(base, target)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    encode = Encoder(base)
    rows = [encode(example) for example in examples(held_out=False)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    random = np.random.default_rng(seed)
    for _ in range(steps):
        batch = pad([rows[i] for i in random.choice(len(rows), 16, replace=False)])
        optimizer.zero_grad()
        model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(target)
    return target


def answers_loglik(base: Path, adapter: Path | None) -> tuple[float, float]:
    """Mean log-likelihood of the good and of the bad answers to the held-out questions."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from llm_tuning.trainers.micro_batches import pad

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    chosen, encode = examples(held_out=True), Encoder(base)
    batch = pad([encode(example) for example in chosen])
    with torch.no_grad():
        logprobs = model(input_ids=batch.input_ids).logits[:, :-1].log_softmax(-1)
    targets = batch.labels[:, 1:]
    logliks = (logprobs.gather(2, targets.clamp(min=0)[..., None])[..., 0] * (targets != -100)).sum(1).numpy()
    good = np.array([example.good for example in chosen])
    return float(logliks[good].mean()), float(logliks[~good].mean())
