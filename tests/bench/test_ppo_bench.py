"""Ppo against its plain form: reference scored in each epoch, separate value forward, full log-softmax, padded batches.

A 20 M parameter Llama with a vocabulary of 32,000, rows of 30 to 800 tokens (lognormal) of which half is output, eight
rows a step. Both do the same two epochs and must give the same losses; the recipe's time includes scoring the
start policy and measuring the KL. Each measurement is a process of its own, the two forms in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from llm_tuning.data.token_rows import TokenRowsWriter

ROOT = Path(__file__).parents[2]
ROUNDS = 3
LEAST_SPEEDUP = 3.5
MOST_MEMORY = 0.25
VOCABULARY = 32_000


def _make(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    random = np.random.default_rng(0)
    with TokenRowsWriter(folder / "rows") as writer:
        for number in range(25):
            length = int(np.clip(random.lognormal(np.log(150), 0.8), 30, 800))
            ids = random.integers(4, VOCABULARY, length).astype(np.int32)
            learned = np.arange(length) >= length // 2
            writer.append(ids, learned, row_number=number, number=float(random.normal()), text=f"row {number}")


def _measure(form: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.ppo_forms", form, str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _clear(folder: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)


@pytest.mark.timeout(3600)
def test_ppo_takes_a_fraction_of_the_plain_forms_time_and_memory(tmp_path: Path):
    _make(tmp_path)
    plain, recipe = [], []
    for _ in range(ROUNDS):
        plain.append(_measure("plain", tmp_path))
        _clear(tmp_path, "cache", "checkpoints")
        recipe.append(_measure("recipe", tmp_path))
    _clear(tmp_path, "checkpoints")
    second = _measure("recipe", tmp_path)

    seconds = {
        form: median(r["seconds_an_epoch"] for r in runs) for form, runs in (("plain", plain), ("recipe", recipe))
    }
    memory = {form: median(r["memory_mib"] for r in runs) for form, runs in (("plain", plain), ("recipe", recipe))}
    print(f"\nseconds an epoch: plain {[round(r['seconds_an_epoch'], 2) for r in plain]}")
    print(f"                 recipe {[round(r['seconds_an_epoch'], 2) for r in recipe]}")
    print(f"ratio of the medians: {seconds['plain'] / seconds['recipe']:.2f}x")
    print(f"memory over the loaded model ({plain[0]['loaded_mib']:.0f} MiB), MiB: {memory}")
    print(f"ratio: {memory['recipe'] / memory['plain']:.3f}")
    difference = np.abs(np.array(recipe[0]["losses"]) - np.array(plain[0]["losses"])).max()
    print(f"largest difference of a step's loss: {difference:.1e}, losses {[round(x, 4) for x in plain[0]['losses']]}")
    print(f"reference forwards: first job {recipe[0]['reference_forwards']}, second {second['reference_forwards']}")
    print(f"second job: {second['seconds_an_epoch']:.2f} s an epoch")

    np.testing.assert_allclose(recipe[0]["losses"], plain[0]["losses"], atol=1e-4)
    assert recipe[0]["reference_forwards"] > 0
    assert second["reference_forwards"] == 0
    assert second["losses"] == recipe[0]["losses"]
    assert seconds["plain"] / seconds["recipe"] >= LEAST_SPEEDUP
    assert memory["recipe"] / memory["plain"] <= MOST_MEMORY
