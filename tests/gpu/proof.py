"""The proof that a served adapter takes effect, against an engine of other arithmetic, with its controls.

A base of random weights would not do: its log-probabilities are flat, and every error is small in them. So a small one
is trained first, on Python's own documentation.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_tuning.proof.judge import Verdict, judge
from llm_tuning.proof.parity import UNQUANTISED, Parity, read_parity
from llm_tuning.trainers import sft
from tests.gpu.engine import Engine
from tests.gpu.findings import Finding, Place, below, not_here, same, shown, within
from tests.support.ppo_rows import examples, write_ppo_rows
from tests.support.tiny_base import make_base
from tests.support.train_run import make_run

LORA = {"rank": 8, "alpha": 16, "dropout": 0.0}


def proof(place: Place) -> Iterator[Finding]:
    """Train a base and adapters on it; judge the true one and false ones."""
    hidden, layers = place.choose(cuda=(384, 12), cpu=(128, 3))
    base = make_base(place.scratch / "proof-base", hidden_size=hidden, layers=layers)
    untrained = Path(shutil.copytree(base, place.scratch / "proof-other-base"))
    before, after = _pretrain(base, place)
    yield below("the base's loss", after, place.choose(cuda=0.6, cpu=0.85) * before, "nats")

    one, other = (_train(place, base, f"proof-{seed}", seed=seed) for seed in (0, 1))
    parity = read_parity(one)
    engine = Engine(base, device=place.device, dtype=torch.bfloat16)
    engine_base = _ask(engine, parity, None)

    def verdict(adapter: Path, of: Parity = parity, bases: Any = engine_base, **options: Any) -> Any:
        return _judge(of, bases, _ask(engine, of, adapter, **options))

    true = verdict(one)
    yield same("the adapter as trained", true.verdict, Verdict.EFFECTIVE)
    yield within("noise of the base, rms", true.numbers.noise, 1e-4, 0.06, "nats")
    yield shown("effect of the training, rms", f"{true.numbers.trained_effect:.3g} nats")
    yield within("slope", true.numbers.slope, 0.97, 1.03)
    yield same("an adapter of zeros", verdict(one, strength=0.0).verdict, Verdict.NO_EFFECT)
    yield same("alpha halved", verdict(one, strength=0.5).verdict, Verdict.DIFFERENT)
    yield same("another seed's adapter", verdict(other).verdict, Verdict.DIFFERENT)
    changed = Engine(untrained, device=place.device, dtype=torch.bfloat16)
    foreign = _judge(parity, _ask(changed, parity, None), _ask(changed, parity, one))
    yield same("another base", foreign.verdict, Verdict.DIFFERENT)
    yield from _four_bits(place, base, engine)


def _four_bits(place: Place, base: Path, engine: Engine) -> Iterator[Finding]:
    """Train on 4 bits, serve on 16: an honest adapter must be answered by, and a false one not."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield not_here("an adapter trained on 4 bits", "bitsandbytes is not installed")
        return
    adapter = _train(place, base, "proof-4bit", seed=0, quantization="4bit")
    parity = read_parity(adapter)
    bases = _ask(engine, parity, None)
    honest = _judge(parity, bases, _ask(engine, parity, adapter))
    halved = _judge(parity, bases, _ask(engine, parity, adapter, strength=0.5))
    yield shown("trained on 4 bits: noise, rms", f"{honest.numbers.noise:.3g} nats")
    yield same("trained on 4 bits: probes scored on", parity.scored_on, UNQUANTISED)
    expected = "effective or too small to tell, never different"
    passed = honest.verdict in (Verdict.EFFECTIVE, Verdict.TOO_SMALL_TO_TELL)
    yield Finding.of("trained on 4 bits", expected=expected, seen=honest.verdict, passed=passed)
    passed = halved.verdict is not Verdict.EFFECTIVE
    yield Finding.of("trained on 4 bits, alpha halved", expected="not effective", seen=halved.verdict, passed=passed)


def _ask(engine: Engine, parity: Parity, adapter: Path | None, *, strength: float = 1.0) -> list[list[float]]:
    engine.load(adapter, strength=strength)
    return engine.logprobs([probe.token_ids for probe in parity.probes])


def _judge(parity: Parity, bases: Any, adapted: Any) -> Any:
    on_4_bits = parity.scored_on != UNQUANTISED
    return judge(parity.probes, bases, adapted, trainer_dtype=parity.dtype, scored_on_4_bits=on_4_bits)


def _pretrain(base: Path, place: Place) -> tuple[float, float]:
    """Train all weights of the base in place; returns the losses of the first and the last steps."""
    from transformers import AutoModelForCausalLM

    tokens = _text(base).to(place.device)
    batch, width = place.choose(cuda=(64, 256), cpu=(8, 64))
    seconds, most = place.choose(cuda=(30.0, 2000), cpu=(600.0, 120))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(place.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    losses, ends = [], time.monotonic() + seconds
    while len(losses) < most and time.monotonic() < ends:
        starts = torch.randint(0, len(tokens) - width, (batch,), generator=generator)
        ids = torch.stack([tokens[start : start + width] for start in starts.tolist()])
        optimizer.zero_grad()
        with torch.autocast(place.device.split(":")[0], dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    model.cpu().save_pretrained(base)
    return float(losses[0]), float(torch.stack(losses[-5:]).mean())


def _text(base: Path) -> Tensor:
    import pydoc_data.topics

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    texts = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    return torch.tensor([token for one in tokenizer.encode_batch(texts) for token in one.ids])


def _train(place: Place, base: Path, name: str, *, seed: int, quantization: str = "none") -> Path:
    """Train an adapter to answer helpfully; returns its folder."""
    work = place.scratch / name
    chosen = [example for example in examples(held_out=False) if example.good]
    write_ppo_rows(work / "rows", base, chosen, [1.0] * len(chosen))
    training = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": place.choose(cuda=100, cpu=20), "seed": seed}
    training |= {"precision": "bf16", "eval_fraction": 0.3}
    run = make_run(work, base, device=place.device, training=training, lora=LORA, quantization=quantization)
    sft.train(run)
    return run.stage
