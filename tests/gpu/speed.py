"""Speed and memory of real shapes: what the plan and the defaults assume, against what a card does."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import torch

from llm_tuning.trainers.micro_batches import flatten
from tests.gpu.findings import Finding, Place, below, not_here, shown
from tests.gpu.machine import ceiling_tflops
from tests.gpu.passes import GIB, Bench, Measured, best_of, free, launches, make_base_on

LEAST_SPEED = {("0.5B", 32768): 150e3, ("1.5B", 16384): 65e3, ("7B", 8192): 13e3}
"""Tokens a second expected of an H200, by reading; see docs/gpu.md."""
PEAK_OF_PLAN = (0.85, 1.1)
OLD_CHUNK = 27
"""Positions that went through an output layer of 152k at a time before chunks fitted a GPU."""


def small_bases(place: Place) -> Iterator[Finding]:
    """Measure passes of 0.5B and 1.5B by their size, and what the output layer and the launches take of them."""
    sizes = place.choose(cuda={"0.5B": (4096, 16384, 32768), "1.5B": (4096, 16384, 32768)}, cpu={"tiny": (256, 512)})
    for name, of_pass in sizes.items():
        bench = Bench(place, name)
        for tokens in of_pass:
            yield from _speed(place, bench, tokens)
        yield from _shares(place, bench, of_pass[0])
        if not place.cuda:
            yield not_here("largest pass", "needs CUDA")
        elif name == "1.5B":
            yield shown(f"{name}: largest pass by doubling", f"{_largest(bench, of_pass[-1])} tokens")
        del bench
        free()


def _speed(place: Place, bench: Bench, tokens: int) -> Iterator[Finding]:
    rows = bench.rows(tokens)
    planned = bench.planned(rows)
    what = f"{bench.name}{', checkpointed' if bench.checkpointing else ''}, {tokens:,} a pass"
    if place.cuda and planned > 0.95 * torch.cuda.get_device_properties(place.device).total_memory:
        yield not_here(what, f"by the plan it takes {planned / GIB:.0f} GiB, more than this card has")
        return
    measured = bench.measure(rows, place.choose(cuda=3.0, cpu=0.2))
    seen = f"{measured.speed:,.0f} tokens/s, {measured.seconds * 1e3:.0f} ms" + _share(place, bench, measured)
    least = LEAST_SPEED.get((bench.name, tokens)) if place.cuda and not bench.checkpointing else None
    if least is not None and "H200" in torch.cuda.get_device_name(place.device):
        yield Finding.of(what, expected=f">= {least:,.0f} tokens/s", seen=seen, passed=measured.speed >= least)
    else:
        yield shown(what, seen)
    if place.cuda:
        low, high = PEAK_OF_PLAN
        passed = low <= measured.peak / planned <= high
        seen = f"{measured.peak / planned:.2f}: {measured.peak / GIB:.2f} of {planned / GIB:.2f} GiB"
        yield Finding.of(f"{what}: peak of the plan's", expected=f"{low:g} to {high:g}", seen=seen, passed=passed)
    else:
        yield not_here(f"{what}: peak of the plan's", f"needs CUDA; the plan says {planned / GIB:.3f} GiB")


def _share(place: Place, bench: Bench, measured: Measured) -> str:
    ceiling = ceiling_tflops(place)
    return f", MFU {measured.mfu(bench.shape, ceiling):.1%} of the measured product" if ceiling else ""


def _shares(place: Place, bench: Bench, tokens: int) -> Iterator[Finding]:
    """See what of a pass is the output layer, and what launching costs."""
    batch = flatten(bench.rows(tokens))
    policy, seconds = bench.policy, place.choose(cuda=1.0, cpu=0.1)
    head = policy.head
    assert head is not None
    hidden = policy.hidden(batch).detach().requires_grad_()
    targets = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)

    def output_layer() -> None:
        with torch.autocast(place.device.split(":")[0], dtype=torch.bfloat16):
            head.logprobs(hidden, targets).sum().backward()

    what = f"{bench.name}: output layer of {len(hidden):,} tokens"
    now, _ = best_of(place, output_layer, seconds)
    yield (
        below(what, now * 1e3, 8.0, "ms") if place.cuda and bench.name == "0.5B" else shown(what, f"{now * 1e3:.1f} ms")
    )
    with patch("llm_tuning.trainers.head.positions_at_a_time", lambda *_: OLD_CHUNK):
        before, _ = best_of(place, output_layer, seconds)
    yield shown(f"{what}, {OLD_CHUNK} at a time", f"{before * 1e3:.1f} ms")

    count, milliseconds = launches(place, lambda: bench.step(batch))
    kind = "kernels launched" if place.cuda else "operations"
    yield shown(f"{bench.name}: a step", f"{count} {kind}, {milliseconds:.0f} ms of the CPU")
    way = bench.model.config._attn_implementation
    bench.model.set_attn_implementation("row_by_row")
    loop = bench.measure(bench.rows(tokens), seconds)
    bench.model.set_attn_implementation(way)
    yield shown(f"{bench.name}: attention row by row instead of {way}", f"{loop.speed:,.0f} tokens/s")


def _largest(bench: Bench, tokens: int) -> int:
    """Double a pass until memory is out; returns the last one that fitted."""
    while True:
        try:
            bench.step(flatten(bench.rows(2 * tokens)))
        except torch.OutOfMemoryError:
            bench.optimizer.zero_grad()
            free()
            return tokens
        tokens *= 2


def large_base(place: Place) -> Iterator[Finding]:
    """Measure the 7B shape, checkpointed and not, and what an evaluation takes beside it."""
    name = place.choose(cuda="7B", cpu="tiny")
    for checkpointing in (False, True):
        bench = Bench(place, name, checkpointing=checkpointing)
        for tokens in place.choose(cuda=(4096, 8192), cpu=(256,)):
            yield from _speed(place, bench, tokens)
        if checkpointing and place.cuda:
            yield from _evaluation(place, bench)
        del bench
        free()
    if not place.cuda:
        yield not_here("memory of an evaluation", "needs CUDA")


def _evaluation(place: Place, bench: Bench) -> Iterator[Finding]:
    batch = flatten(bench.rows(4096))
    bench.policy.eval()
    before = torch.cuda.memory_allocated()
    _, peak = best_of(place, lambda: bench.policy.score(batch) and None, 1.0)
    yield below("7B: an evaluation's pass of 4,096 tokens", (peak - before) / GIB, 2.5, "GiB")


def compiled(place: Place) -> Iterator[Finding]:
    """See what torch.compile of the decoder layers would give: information only."""
    if not place.cuda:
        yield not_here("torch.compile of decoder layers", "says something on a GPU only, and takes minutes to compile")
        return
    import time

    bench = Bench(place, "0.5B")
    rows = bench.rows(16384)
    plain = bench.measure(rows, 1.0)
    before = time.monotonic()
    for layer in bench.model.model.layers:
        layer.compile(dynamic=True)
    bench.step(flatten(rows))
    taken = time.monotonic() - before
    after = bench.measure(rows, 1.0)
    seen = f"{plain.seconds * 1e3:.0f} ms to {after.seconds * 1e3:.0f} ms a pass of 16,384, compiled in {taken:.0f} s"
    yield shown("torch.compile of decoder layers, 0.5B", seen)


def against_trl(place: Place) -> Iterator[Finding]:
    """Train the same rows with TRL's SFTTrainer as it comes, and packed."""
    name, tokens = place.choose(cuda=("0.5B", 16384), cpu=("tiny", 512))
    bench = Bench(place, name)
    rows = bench.rows(4 * tokens)
    ours = bench.measure(bench.rows(tokens), place.choose(cuda=3.0, cpu=0.2)).speed
    del bench
    free()
    speeds = {}
    for form, packing in (("as it comes", False), ("packed", True)):
        speeds[form] = _trl(place, make_base_on(place.device, name), rows, packing=packing)
        yield shown(f"TRL {form}: tokens/s", f"{speeds[form]:,.0f}")
        free()
    times = ", ".join(f"{ours / speed:.2f} x {form}" for form, speed in speeds.items())
    seen = f"{ours:,.0f} tokens/s, {times}"
    if place.cuda:
        yield Finding.of("passes of ours", expected=">= 1.5 x packed", seen=seen, passed=ours >= 1.5 * speeds["packed"])
    else:
        yield shown("passes of ours", seen)


def _trl(place: Place, model: object, rows: list[object], *, packing: bool) -> float:
    """Return the tokens a second of TRL's trainer, its first three steps left out."""
    import time

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_args: object, **_kwargs: object) -> None:
            if place.cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    steps, batch = place.choose(cuda=(10, 8), cpu=(5, 4))
    length = place.choose(cuda=2048, cpu=128)
    records = [{"input_ids": row.input_ids[:length].tolist()} for row in rows] * 8  # type: ignore[attr-defined]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(place.scratch / f"trl-{packing}"),
            max_steps=steps,
            per_device_train_batch_size=batch,
            packing=packing,
            max_length=length,
            bf16=True,
            gradient_checkpointing=False,
            use_cpu=not place.cuda,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(records),
        processing_class=_tokenizer(place),
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear"),
        callbacks=[Clock()],
    )
    trainer.train()
    seen = trainer.state.num_input_tokens_seen or sum(log.get("num_tokens", 0) for log in trainer.state.log_history)
    return seen / steps * (steps - 3) / (ends[-1] - ends[2])


def _tokenizer(place: Place) -> object:
    from transformers import AutoTokenizer

    from tests.support.tiny_base import make_tokenizer

    make_tokenizer(place.scratch / "tokenizer")
    return AutoTokenizer.from_pretrained(place.scratch / "tokenizer")
