"""The SFT recipe against TRL as it comes, against the same tokens without padding, and from its start to a first step.

A 13 M parameter Llama with a vocabulary of 8,192; rows of which the second half is learned; eight rows a step, the
same ones in each form. Each measurement is a process of its own with one thread; the forms take turns. Ratios are of
tokens per CPU second, which other jobs on the machine hardly change; on a quiet machine wall time gives the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from llm_tuning.data.token_rows import TokenRowsWriter
from tests.bench.sft_forms import ROWS_PER_STEP, WARM_UP_STEPS
from tests.support.tiny_base import make_base, make_tokenizer

ROOT = Path(__file__).parents[2]
ROUNDS = 3
STEPS = 8
VOCABULARY = 8192
THREADS = "1"


def make_bench_base(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder, vocab_size=VOCABULARY)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_bench_rows(folder: Path, lengths: np.ndarray) -> None:
    random = np.random.default_rng(0)
    with TokenRowsWriter(folder / "rows") as writer:
        for number, length in enumerate(lengths.tolist()):
            ids = random.integers(4, VOCABULARY, length).astype(np.int32)
            writer.append(ids, np.arange(length) >= max(1, length // 2), row_number=number, text=f"row {number}")


def measure(form: str, folder: Path, dtype: str = "") -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.sft_forms", form, str(folder), dtype],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": THREADS, "HF_HUB_OFFLINE": "1", "BENCH_STARTED": str(time.time())},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sets of rows over one base: skewed lengths, as many tokens in equal rows, and rows of 256."""
    root = tmp_path_factory.mktemp("sft-bench")
    make_bench_base(root / "base")
    rows = ROWS_PER_STEP * (WARM_UP_STEPS + STEPS)
    skewed = np.clip(np.random.default_rng(1).lognormal(np.log(150), 0.8, rows), 30, 800).astype(int)
    made = {"skewed": skewed, "equal": np.full(rows, round(skewed.mean())), "256": np.full(rows, 256)}
    for name, lengths in made.items():
        make_bench_rows(root / name, lengths)
        (root / name / "base").symlink_to(root / "base")
    return {name: root / name for name in made}


@pytest.mark.timeout(7200)
def test_sft_speed_against_trl_and_against_no_padding(folders: dict[str, Path]) -> None:
    from llm_tuning.trainers.precision import computes_in_bf16

    dtypes = ("bf16", "fp32") if computes_in_bf16("cpu") else ("fp32",)  # emulated, one form takes ten minutes
    forms = [
        (form, rows, dtype)
        for dtype in dtypes
        for form, rows in (
            ("trl", "skewed"),
            ("trl-rows", "skewed"),
            ("recipe", "skewed"),
            ("recipe", "equal"),
            ("trl-plain", "256"),
            ("recipe", "256"),
        )
    ]
    speeds: dict[tuple[str, str, str], list[float]] = {key: [] for key in forms}
    for _ in range(ROUNDS):
        for form, rows, dtype in forms:
            measured = measure(form, folders[rows], dtype)
            cpu, wall = measured["tokens_per_cpu_second"], measured["tokens_per_second"]
            speeds[form, rows, dtype].append(cpu)
            print(f"  {form:10s} {rows:8s} {dtype}: {cpu:6.0f} tokens a CPU second, {wall:6.0f} a second", flush=True)
    table = []
    for dtype in dtypes:
        least_against_trl, least_row_by_row = {"bf16": (4.0, 2.3), "fp32": (2.5, 1.6)}[dtype]
        table += [
            (f"skewed / TRL defaults, {dtype}", ("recipe", "skewed"), ("trl", "skewed"), dtype, least_against_trl),
            (
                f"skewed / TRL row by row, {dtype}",
                ("recipe", "skewed"),
                ("trl-rows", "skewed"),
                dtype,
                least_row_by_row,
            ),
            (f"skewed / no padding, {dtype}", ("recipe", "skewed"), ("recipe", "equal"), dtype, 0.85),
            (f"rows of 256 / TRL, {dtype}", ("recipe", "256"), ("trl-plain", "256"), dtype, 0.97),
        ]
    missed = []
    print("\nSFT real tokens a CPU second (medians of", ROUNDS, "interleaved runs)")
    for name, ours, other, dtype, least in table:
        mine, theirs = median(speeds[*ours, dtype]), median(speeds[*other, dtype])
        print(f"  {name:34s} {mine:8.0f} / {theirs:8.0f} = {mine / theirs:5.2f}   (target >= {least})")
        if mine / theirs < least:
            missed.append(name)
    assert not missed


@pytest.mark.timeout(1800)
def test_process_start_to_first_step_against_a_script_with_trl_mlflow_and_datasets(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    rows = [{"prompt": f"What is {i} plus one?", "output": f"It is {i + 1}."} for i in range(64)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    seconds: dict[str, list[float]] = {"start-trl": [], "start-recipe": []}
    for _ in range(ROUNDS):
        for form, taken in seconds.items():
            taken.append(measure(form, tmp_path)["seconds"])
    ours, theirs = median(seconds["start-recipe"]), median(seconds["start-trl"])
    print(f"\nprocess start to first step: {ours:.1f} s / {theirs:.1f} s = {ours / theirs:.2f}   (target <= 0.90)")
    assert ours / theirs <= 0.90
