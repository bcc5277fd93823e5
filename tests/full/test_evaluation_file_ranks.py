"""A file of rows to evaluate on with several ranks, and over a stop: the scores of one that nothing disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {"prompt": f"What is {i} plus {i}?", "output": f"It is {2 * i}{'!' * (i % 7)}.", "reward": (i % 5) - 2.0}
    for i in range(40)
]
HELD_OUT = [{"prompt": f"What is {i} times {i}?", "output": f"It is {i * i}.", "reward": i / 4} for i in range(7)]


def rows_of(mode: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the mode takes them; those of kto have both labels."""
    if mode == "dpo":
        return [{"prompt": row["prompt"], "chosen": row["output"], "rejected": "I do not know."} for row in rows]
    if mode == "kto":
        return [{**row, "label": at % 2 == 0} for at, row in enumerate(rows)]
    return rows


def run(base: Path, model_id: str, mode: str, **flags: object) -> dict[str, Any]:
    places = {"llm_path": base, "dataset_path": "rows.json", "eval_dataset_path": "eval.json", "tuning_mode": mode}
    settings = {"precision": "fp32", "lora_rank": 4, "lora_dropout": 0, "learning_rate": 3e-3, "epochs": 2}
    flags = {**places, **settings, "model_id": model_id, "tracking_uri": "mlruns", **flags}
    command = [sys.executable, "-m", "llm_tuning.codes.tune_llm"]
    ended = subprocess.run(
        [*command, *(str(part) for name, value in flags.items() for part in (f"--{name}", value))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    metrics: dict[str, Any] = json.loads((Path("models") / model_id / "model.json").read_text())["metrics"]
    return metrics


@pytest.mark.parametrize("mode", ["sft", "ppo", "dpo", "kto"])
def test_two_ranks_hold_out_the_same_rows(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text(json.dumps(rows_of(mode, ROWS)))
    Path("eval.json").write_text(json.dumps(rows_of(mode, [ROWS[5], *HELD_OUT])))
    one = run(tiny_base, "one", mode, devices="cpu", batch_size=8)
    two = run(tiny_base, "two", mode, devices="cpu,cpu", batch_size=4)
    assert (one["held_out_rows"], one["left_out_rows"]) == (two["held_out_rows"], two["left_out_rows"]) == (7, 1)
    for policy in ("base", "tuned"):
        assert two[policy] == pytest.approx(one[policy], rel=1e-4, abs=1e-5)
