"""The loss-curve picture: made from metrics.jsonl, small, and there for every mode."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_tuning.models import loss_curve
from llm_tuning.models.loss_curve import HELD_OUT_COLOR, TRAINING_COLOR, draw_loss_curve
from llm_tuning.models.metrics_file import read_metrics
from llm_tuning.tracking import MetricsFile

LARGEST_BYTES = 60_000


def write_run(path: Path, steps: int) -> Path:
    metrics = MetricsFile(path)
    noise = np.random.default_rng(0).normal(size=steps + 1)
    for step in range(1, steps + 1):
        done = step / steps
        values = {
            "train/loss": 1 + math.exp(-3 * done) + 0.1 * noise[step],
            "train/policy_loss": -0.01 * done + 0.01 * noise[step],
            "train/value_loss": math.exp(-done) + 0.1 * noise[step],
            "train/kl_penalty": 0.05 * done,
        }
        metrics.log(step, values)
        if step % max(1, steps // 10) == 0:
            metrics.log(step, {"eval/loss": 1.1 + math.exp(-3 * done), "eval/kl": 0.06 * done})
    metrics.close()
    return path


def colours(picture: Path) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3).tolist()}


def has_colour(picture: Path, colour: str) -> bool:
    """Whether a pixel is within 8 of `colour` in every channel (the palette may move it a little)."""
    want = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return any(all(abs(a - b) <= 8 for a, b in zip(pixel, want, strict=True)) for pixel in colours(picture))


@pytest.mark.parametrize("steps", [1, 12, 300, 5000])
@pytest.mark.parametrize(("mode", "height"), [("sft", 320), ("ppo", 840)])
def test_a_run_of_any_length_gives_a_small_picture(tmp_path: Path, mode: str, height: int, steps: int) -> None:
    picture = tmp_path / "loss_curve.png"
    assert draw_loss_curve(read_metrics(write_run(tmp_path / "metrics.jsonl", steps)), picture, mode=mode)
    assert picture.stat().st_size < LARGEST_BYTES
    assert Image.open(picture).size == (640, height)
    assert has_colour(picture, TRAINING_COLOR)
    assert has_colour(picture, HELD_OUT_COLOR)


def test_no_held_out_line_without_held_out_rows(tmp_path: Path) -> None:
    metrics, picture = MetricsFile(tmp_path / "metrics.jsonl"), tmp_path / "loss_curve.png"
    for step in (1, 2, 3):
        metrics.log(step, {"train/loss": 1 / step})
    assert draw_loss_curve(read_metrics(metrics.path), picture, mode="sft")
    assert has_colour(picture, TRAINING_COLOR)
    assert not has_colour(picture, HELD_OUT_COLOR)


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    metrics, picture = MetricsFile(tmp_path / "metrics.jsonl"), tmp_path / "loss_curve.png"
    for step, loss in enumerate([3.0, math.nan, math.inf, 2.0], start=1):
        metrics.log(step, {"train/loss": loss})
    assert draw_loss_curve(read_metrics(metrics.path), picture, mode="sft")


def test_smoothing_neither_lags_nor_leads() -> None:
    line = [(step, 5.0 - 0.01 * step) for step in range(1, 201)]
    assert loss_curve._running_mean(line) == [(step, pytest.approx(value)) for step, value in line[2:-2]]
    noisy = [(step, value + (-1) ** step) for step, value in line]
    middle = loss_curve._running_mean(noisy)[5:-5]
    assert max(abs(value - (5.0 - 0.01 * step)) for step, value in middle) < 0.15


def test_without_a_step_there_is_no_picture(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl").log(0, {"train/reference_forwards": 3})
    for name in ("metrics.jsonl", "missing.jsonl"):
        assert not draw_loss_curve(read_metrics(tmp_path / name), tmp_path / "loss_curve.png", mode="ppo")
    assert not (tmp_path / "loss_curve.png").exists()


def test_a_caller_s_own_matplotlib_is_left_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "metrics.jsonl", 3)
    code = (
        "import sys; from pathlib import Path; from llm_tuning.models.loss_curve import draw_loss_curve\n"
        "from llm_tuning.models.metrics_file import read_metrics\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"metrics = read_metrics(Path({str(tmp_path / 'metrics.jsonl')!r}))\n"
        f"draw_loss_curve(metrics, Path({str(tmp_path / 'a.png')!r}), mode='sft')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
