"""Two processes against one, each with the whole base or with half of it: speed, and the memory of each of them.

Equal work: each process makes one pass of as many tokens a step, so two do twice the tokens of one. Speed is of wall
time and needs as many free cores (or GPUs) as processes; CPU seconds beside it tell what the work itself costs,
whatever else the machine does. Each measurement is one of new processes with one thread each; the forms take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_tuning.data.token_rows import TokenRowsWriter
from llm_tuning.run.devices import HUGE_PAGES
from tests.bench.parallel_forms import WARM_UP_STEPS
from tests.support.tiny_base import make_tokenizer

ROOT = Path(__file__).parents[2]
ROUNDS = 3
STEPS = 2
VOCABULARY = 4096
MIB, GIB = 2**20, 2**30

ON_GPUS = torch.cuda.device_count() >= 2

FAST = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
"""92 M parameters: a pass of 1,536 tokens, the default on CPUs, takes some seconds on a core, and so many milliseconds
of talk between two processes are seen as what they are."""
DEEP = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 80, "num_attention_heads": 10}
"""402 M parameters in as many layers as a 70B has, and passes of eight tokens: what each rank has beside its share of
the base is a layer or four, the embeddings, activations and an adapter. In a shallow base, or in long passes, it is
those that would be measured."""
FAST_ON_GPUS = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
"""A 7B."""


def make(folder: Path, shape: dict[str, int], tokens: int, rows: int) -> None:
    """Write a random base of this shape, and rows of so many tokens."""
    make_tokenizer(folder / "base", vocab_size=VOCABULARY)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=8192, tie_word_embeddings=False, **shape)
    model = LlamaForCausalLM(config).to(torch.bfloat16)  # computed in fp32 on a CPU, so none of it stays a file's page
    model.save_pretrained(folder / "base", max_shard_size="1GB")
    random = np.random.default_rng(0)
    with TokenRowsWriter(folder / "rows") as writer:
        for number in range(rows):
            ids = random.integers(4, VOCABULARY, tokens).astype(np.int32)
            writer.append(ids, np.arange(tokens) >= tokens // 2, row_number=number, text="")


def measure(
    folder: Path, world: int, sharding: str, tokens: int, *, checkpointed: bool = False
) -> list[dict[str, float]]:
    """Return what each of `world` processes says that train together."""
    (folder / "rendezvous").unlink(missing_ok=True)
    ranks = []
    for rank in range(world):
        own = {"CUDA_VISIBLE_DEVICES": str(rank)} if ON_GPUS else {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        own |= HUGE_PAGES if sharding == "full" else {}  # as ranks are started
        given = [folder, rank, world, sharding, tokens, int(checkpointed)]
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.bench.parallel_forms", *map(str, given)],
                cwd=ROOT,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} | own,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "".join(said for _, said in ended)[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_two_processes_do_nearly_twice_the_work_of_one_and_sharded_ones_not_much_less(tmp_path: Path) -> None:
    tokens = 4096 if ON_GPUS else 1536
    make(tmp_path, FAST_ON_GPUS if ON_GPUS else FAST, tokens, rows=2 * (WARM_UP_STEPS + STEPS))
    forms = {"one": (1, "none"), "replicated": (2, "none"), "sharded": (2, "full")}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, (world, sharding) in forms.items():
            ranks = measure(tmp_path, world, sharding, tokens)
            wall, cpu = median(rank["a_second"] for rank in ranks), median(rank["a_cpu_second"] for rank in ranks)
            speeds[name].append((wall, cpu))
            load = os.getloadavg()[0]
            print(f"  {name:10s} {wall:6.0f} tokens a second, {cpu:6.0f} a CPU second, load {load:.1f}", flush=True)
    by_wall, by_cpu = ({name: median(pair[i] for pair in pairs) for name, pairs in speeds.items()} for i in (0, 1))
    missed = []
    print("\ntokens a second (medians of", ROUNDS, "interleaved runs)")
    for name, other, times, least in (("replicated", "one", 2, 0.85), ("sharded", "replicated", 1, 0.7)):
        ratio = by_wall[name] / (times * by_wall[other])
        of_cpu = by_cpu[name] / by_cpu[other]
        print(
            f"  {name:10s} / {times} x {other:10s}: {by_wall[name]:6.0f} / {times * by_wall[other]:6.0f} = {ratio:.2f} "
            f"(target >= {least}); of CPU time {of_cpu:.2f}"
        )
        if ratio < least:
            missed.append(name)
    assert not missed


def test_memory_of_a_rank_is_its_share_of_the_base_and_little_more(tmp_path: Path) -> None:
    tokens, worlds = 8, (1, 2) if ON_GPUS and torch.cuda.device_count() < 4 else (1, 2, 4)
    make(tmp_path, DEEP, tokens, rows=max(worlds) * (WARM_UP_STEPS + 1))
    whole = (1 if ON_GPUS else 2) * sum(file.stat().st_size for file in (tmp_path / "base").glob("*.safetensors"))
    peaks = {}
    missed: list[str] = []
    for world in worlds:
        ranks = measure(tmp_path, world, "full", tokens, checkpointed=True)
        peaks[world] = max(rank["peak"] for rank in ranks)
        loading, most = max(rank["loading"] for rank in ranks), whole / world + whole / DEEP["num_hidden_layers"] + GIB
        print(
            f"  {world} ranks: peak {peaks[world] / MIB:5.0f} MiB; while loading {loading / MIB:5.0f} of the host "
            f"(target <= {most / MIB:.0f}: its share, a layer and a GiB)",
            flush=True,
        )
        if loading > most:
            missed.append(f"loading of {world}")
    for world, share in ((2, 0.6), (4, 0.35)):
        if world in peaks:
            ratio = peaks[world] / peaks[1]
            print(f"  a rank of {world} against one: {ratio:.3f} (target <= {share})")
            if ratio > share:
                missed.append(f"peak of {world}")
    assert not missed
