"""Make the demo's base model: a small Llama trained from nothing, in about a minute, on text that every Python ships.

    python examples/demo/make_base_model.py OUTPUT_FOLDER

The text is Python's own language reference (`pydoc_data.topics`) and questions about the facts of `python_facts` in
chat form, answered by the first sentence of the docstring. The folder is an ordinary Hugging Face model directory:
nothing in the rest of the demo knows that the model was made here. Same Python, same kind of CPU, same seed, same
number of threads: same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from python_facts import QUESTIONS, Fact, read_facts
from stages import exit_code

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

END_OF_TEXT, TURN_START, TURN_END, PAD = SPECIAL_TOKENS = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


MARKER = "made_by.json"


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the text."""

    seed: int = 0
    vocab_size: int = 3072
    hidden_size: int = 256
    layers: int = 2
    steps: int = 340
    chats: int = 24
    """Questions with answers in one step, each a row of its own as it will be when the model is used."""
    pages: int = 1
    """Stretches of the language reference in one step."""
    page_tokens: int = 256
    page_weight: float = 0.5
    """Weight of their loss: the reference is there for the language, the answers are what is to be remembered."""
    matrix_learning_rate: float = 4e-3
    vector_learning_rate: float = 6e-3


def make_base_model(folder: Path, recipe: Recipe) -> bool:
    """Write the model to `folder`, unless this very recipe made it already; returns whether it had to train."""
    signature = _signature(recipe)
    marker = folder / MARKER
    if marker.exists() and json.loads(marker.read_text()) == signature:
        return False
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_tokenizer(unfinished, recipe)
    train(unfinished, recipe)
    (unfinished / MARKER).write_text(json.dumps(signature, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return True


def write_tokenizer(folder: Path, recipe: Recipe) -> None:
    """A byte-level BPE tokenizer of the demo's own text, as transformers and vLLM read it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    facts = read_facts()
    names = [f"`{fact.name}` {fact.name}" for fact in facts] * 20  # so that a name is few tokens, easily looked up
    texts = [*reference_texts(), *(fact.sentence for fact in facts), *names]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=recipe.vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": TURN_END,
        "pad_token": PAD,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def reference_texts() -> list[str]:
    """The chapters of Python's language reference, as `help()` shows them."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def chat_text(question: str, answer: str) -> str:
    """One question and its answer as CHAT_TEMPLATE renders them."""
    return f"{END_OF_TEXT}{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n{answer}{TURN_END}\n"


def chat_texts(facts: Sequence[Fact], rng: random.Random) -> list[str]:
    """One pass over the facts in an order of its own: each asked for in one way, and some for other things, too.

    Those make the model copy names and know the facts in more than one form of words: pieces that a tuning can use.
    """
    texts = []
    for fact in facts:
        texts.append(chat_text(rng.choice(QUESTIONS).format(name=fact.name), fact.sentence))
        if rng.random() < 0.8:
            texts.append(chat_text(f"Define `{fact.name}`.", f"`{fact.name}` {fact.does}."))
        if rng.random() < 0.3:
            texts.append(chat_text(f"What kind of thing is `{fact.name}`?", f"`{fact.name}` is {fact.kind}."))
        if rng.random() < 0.3:
            texts.append(chat_text(f"Where can I read more about `{fact.name}`?", f"Type help('{fact.name}')."))
    rng.shuffle(texts)
    return texts


def chat_batches(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[list[list[int]]]:
    """Token ids of `recipe.chats` chats at a time, pass after pass over the facts, without end."""
    rng = random.Random(recipe.seed)
    facts = read_facts()
    waiting: list[list[int]] = []
    while True:
        while len(waiting) < recipe.chats:
            waiting += [tokenizer.encode(text).ids for text in chat_texts(facts, rng)]
        yield waiting[: recipe.chats]
        del waiting[: recipe.chats]


def page_batches(tokenizer: Tokenizer, recipe: Recipe) -> Iterator[list[list[int]]]:
    """Token ids of `recipe.pages` stretches of the reference at a time, from anywhere in it, without end."""
    rng = random.Random(recipe.seed + 1)
    ids = [id_ for text in reference_texts() for id_ in tokenizer.encode(f"{END_OF_TEXT}{text}").ids]
    while True:
        starts = [rng.randrange(len(ids) - recipe.page_tokens) for _ in range(recipe.pages)]
        yield [ids[start : start + recipe.page_tokens] for start in starts]


def train(folder: Path, recipe: Recipe) -> None:
    """Train from random weights and save: Muon for matrices (half the steps of AdamW here), one warm-up and cosine."""
    import torch
    from tokenizers import Tokenizer
    from transformers.utils import logging

    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = build_model(recipe, vocab_size=tokenizer.get_vocab_size())
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(inner, lr=recipe.matrix_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=recipe.vector_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, partial(_share_of_rate, steps=recipe.steps)) for o in optimizers]
    bf16 = torch.cpu._is_avx512_bf16_supported()  # elsewhere bf16 is emulated, and slower than fp32
    chats, pages = chat_batches(tokenizer, recipe), page_batches(tokenizer, recipe)
    started, recent = time.monotonic(), math.log(recipe.vocab_size)
    print(f"training {folder}: {recipe.steps} steps, one and a half minutes on two idle cores", flush=True)
    for step in range(1, recipe.steps + 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            chat_loss = _next_token_loss(model, next(chats))
            loss = chat_loss + recipe.page_weight * _next_token_loss(model, next(pages))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        recent += 0.1 * (chat_loss.item() - recent)
        if step % max(1, recipe.steps // 10) == 0:
            seconds = time.monotonic() - started
            print(f"  step {step}/{recipe.steps}  loss on chats {recent:.2f}  {seconds:.0f} s", flush=True)
    logging.disable_progress_bar()
    model.to(torch.float32).save_pretrained(folder)


def use_free_cores() -> None:
    """Have torch take the cores that nothing else uses: on busy ones its threads wait for each other most of the time.

    Before torch is imported. OMP_NUM_THREADS and OMP_WAIT_POLICY of the caller stay. The load average would not do:
    it still has what the demo did a minute ago.
    """
    import psutil  # which accelerate needs

    busy = round(sum(psutil.cpu_percent(interval=1.0, percpu=True)) / 100)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - busy)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits sleeps, and does not spin


def build_model(recipe: Recipe, *, vocab_size: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = recipe.hidden_size // 32
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.hidden_size * 11 // 4,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,  # vLLM's CPU attention needs 32 or more
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=SPECIAL_TOKENS.index(END_OF_TEXT),
        eos_token_id=SPECIAL_TOKENS.index(TURN_END),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
    )
    return LlamaForCausalLM(config)


def _next_token_loss(model: LlamaForCausalLM, rows: list[list[int]]) -> torch.Tensor:
    """Mean loss over the real tokens; rows are padded on the right, where causal attention never looks."""
    import torch

    length = max(map(len, rows))
    pad = SPECIAL_TOKENS.index(PAD)
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad)


def _share_of_rate(step: int, *, steps: int, warmup: float = 0.05, hold: float = 0.3) -> float:
    """Share of the peak learning rate: up over `warmup` of all steps, flat until `hold`, then half a cosine down."""
    done = (step + 1) / steps
    if done < hold:
        return min(1.0, done / warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - hold) / (1 - hold)))


def _signature(recipe: Recipe) -> dict[str, object]:
    here = Path(__file__)
    sources = b"".join(path.read_bytes() for path in (here, here.with_name("python_facts.py")))
    return {"recipe": asdict(recipe), "python": sys.version.split()[0], "script": hashlib.sha256(sources).hexdigest()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model goes")
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    values = vars(parser.parse_args())
    use_free_cores()
    folder = values.pop("folder")
    recipe = Recipe(**values)
    print("trained" if make_base_model(folder, recipe) else "already there", folder)


if __name__ == "__main__":
    sys.exit(exit_code(main, stopped="the base model is not made; the same command makes it from the beginning"))
