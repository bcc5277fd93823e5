"""Ppo is seen to learn: with a reward that tells good from bad, and only then.

A small base is first taught both answers to each question, so that it gives either with equal chances. Then ppo runs
on recorded answers, and what counts is the margin on questions that it never saw: the log-likelihood of the good
answer minus that of the bad one, in nats, against the same margin of the base.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm_tuning.trainers import ppo
from tests.support.ppo_rows import answers_loglik, examples, train_base, write_ppo_rows
from tests.support.train_run import make_run

SIGNAL_SEEDS = (0, 1, 2)
NOISE_SEEDS = (0, 1, 2, 3, 4)
TARGET_KL = 0.2
TRAINING = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 16, "eval_fraction": 0.1, "eval_steps": 11}

LEAST_GAIN = 2.0
"""Nats that the margin must gain with a true reward: good against bad becomes exp(2) = 7 times as likely."""


@pytest.fixture(scope="module")
def taught_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_base(tiny_base, tmp_path_factory.mktemp("taught") / "base")


def tuned(base: Path, work: Path, *, seed: int, noise: bool) -> tuple[float, float, float]:
    """(good, bad) log-likelihoods after a whole run, and its KL. Noise: the reward does not depend on the answer."""
    chosen, random = examples(held_out=False), np.random.default_rng(seed)
    true = [0.0 if noise else (1.0 if example.good else -1.0) for example in chosen]
    rewards = np.array(true) + random.normal(size=len(chosen)) * (1.0 if noise else 0.3)
    write_ppo_rows(work / "rows", base, chosen, list(rewards))
    run = make_run(
        work,
        base,
        mode="ppo",
        training=TRAINING | {"seed": seed},
        lora={"rank": 8, "alpha": 16},
        ppo={"target_kl": TARGET_KL},
    )
    ppo.train(run)
    summary = json.loads((work / "training.json").read_text())
    assert summary["stopped_early"] is None
    return *answers_loglik(base, run.stage), summary["kl"]


def test_a_true_reward_moves_likelihood_from_bad_to_good_answers_and_noise_moves_nothing(
    taught_base: Path, tmp_path: Path
):
    good_before, bad_before = answers_loglik(taught_base, None)
    before = good_before - bad_before
    print(f"\nbase: good {good_before:.2f}, bad {bad_before:.2f}, margin {before:+.2f} nats an answer")

    gains = {}
    for kind, seeds in (("true", SIGNAL_SEEDS), ("noise", NOISE_SEEDS)):
        gains[kind] = []
        for seed in seeds:
            good, bad, kl = tuned(taught_base, tmp_path / f"{kind}-{seed}", seed=seed, noise=kind == "noise")
            gains[kind].append(good - bad - before)
            print(f"{kind} {seed}: good {good:.2f}, bad {bad:.2f}, margin {gains[kind][-1]:+.2f}, exact KL {kl:.4f}")
            assert kl < TARGET_KL
            if kind == "true":
                assert good > bad

    true, noise = np.array(gains["true"]), np.array(gains["noise"])
    error = noise.std(ddof=1) / len(noise) ** 0.5
    print(f"true: {true.mean():+.2f} (least {true.min():+.2f}); noise: {noise.mean():+.3f} +- {error:.3f} (one s.e.)")
    assert true.min() > LEAST_GAIN
    assert abs(noise.mean()) < 3 * error, "noise has no direction"
    assert np.abs(noise).max() < true.min() / 4, "and no size"
