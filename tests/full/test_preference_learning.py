"""Dpo and kto are seen to learn: from preferences and labels that tell good answers from bad ones, and only then.

A small base is first taught both answers to each question, so that it gives either with equal chances. What counts is
the margin on questions that it never saw: the log-likelihood of the good answer minus that of the bad one, in nats,
against the same margin of the base.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.ppo_rows import answers_loglik, examples, train_base
from tests.support.preference_rows import Pair, pairs, write_labels, write_pairs
from tests.support.recipe_runs import train
from tests.support.train_run import make_run

SIGNAL_SEEDS = (10, 11, 12)
NOISE_SEEDS = (10, 11, 12, 13, 14)
TRAINING = {
    "dpo": {"learning_rate": 1e-3, "epochs": 3, "batch_size": 8, "eval_fraction": 0.1},
    "kto": {"learning_rate": 1e-3, "epochs": 2, "batch_size": 16, "eval_fraction": 0.1},
}

COLLAPSING_RATE = 4e-2
LEAST_GAIN = 1.5
"""Nats that the margin must gain: good against bad becomes exp(1.5) = 4.5 times as likely."""


@pytest.fixture(scope="module")
def taught_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_base(tiny_base, tmp_path_factory.mktemp("taught") / "base")


def margin(base: Path, adapter: Path | None) -> float:
    """Mean log-likelihood of the good answers to the unseen questions, minus that of the bad ones."""
    good, bad = answers_loglik(base, adapter)
    return good - bad


def write(mode: str, folder: Path, base: Path, *, seed: int, noise: bool) -> None:
    """Rows of the mode; with noise which answer is better, or whether one is good, is a throw of a coin."""
    random = np.random.default_rng(seed)
    if mode == "dpo":
        given = pairs(held_out=False)
        flipped = random.random(len(given)) < 0.5 if noise else np.zeros(len(given), dtype=bool)
        turned = [Pair(p.rejected, p.chosen) if flip else p for p, flip in zip(given, flipped, strict=True)]
        write_pairs(folder, base, turned)
        return
    chosen = examples(held_out=False)
    labels = random.random(len(chosen)) < 0.5 if noise else np.array([example.good for example in chosen])
    write_labels(folder, base, chosen, [bool(label) for label in labels])


def gain(mode: str, base: Path, work: Path, *, seed: int, noise: bool, before: float) -> float:
    """What the margin has gained in a whole run."""
    write(mode, work / "rows", base, seed=seed, noise=noise)
    run = make_run(work, base, mode=mode, training=TRAINING[mode] | {"seed": seed}, lora={"rank": 8, "alpha": 16})
    train(run)
    gained = margin(base, run.stage) - before
    evaluation = json.loads((work / "evaluation.json").read_text())
    assert "warnings" not in evaluation
    tuned = evaluation["tuned"]
    accuracy = tuned["reward_accuracy" if mode == "dpo" else "label_accuracy"]
    print(f"{mode} {'noise' if noise else 'true'} {seed}: margin {gained:+.2f}, held-out accuracy {accuracy:.2f}")
    if not noise:
        assert accuracy > 0.9
    return gained


@pytest.mark.parametrize("mode", ["dpo", "kto"])
def test_true_preferences_move_likelihood_to_good_answers_and_noise_moves_nothing(
    mode: str, taught_base: Path, tmp_path: Path
) -> None:
    before = margin(taught_base, None)
    gains = {
        noise: np.array(
            [
                gain(mode, taught_base, tmp_path / f"{noise}-{seed}", seed=seed, noise=noise, before=before)
                for seed in (NOISE_SEEDS if noise else SIGNAL_SEEDS)
            ]
        )
        for noise in (False, True)
    }
    true, noise = gains[False], gains[True]
    error = noise.std(ddof=1) / len(noise) ** 0.5
    print(f"true: {true.mean():+.2f} (least {true.min():+.2f}); noise: {noise.mean():+.3f} +- {error:.3f} (one s.e.)")
    assert true.min() > LEAST_GAIN
    assert abs(noise.mean()) < 3 * error, "noise has no direction"
    assert np.abs(noise).max() < true.min() / 2, "and no size"


@pytest.mark.parametrize("mode", ["dpo", "kto"])
def test_a_rate_far_too_high_ends_with_good_answers_that_are_unlikely_and_it_is_said(
    mode: str, taught_base: Path, tmp_path: Path
) -> None:
    good_before, _ = answers_loglik(taught_base, None)
    write(mode, tmp_path / "rows", taught_base, seed=10, noise=False)
    training = TRAINING[mode] | {"seed": 10, "learning_rate": COLLAPSING_RATE}
    run = make_run(tmp_path, taught_base, mode=mode, training=training, lora={"rank": 8, "alpha": 16})
    train(run)
    good, bad = answers_loglik(taught_base, run.stage)
    (said,) = json.loads((tmp_path / "evaluation.json").read_text())["warnings"]
    print(f"{mode}: good answers {good_before:.1f} -> {good:.1f}, bad ones {bad:.1f}; {said}")
    assert good < good_before - 50, "both are lost"
    assert f"{'chosen' if mode == 'dpo' else 'good'} answers have become" in said
