"""A disk that fills up in the middle of a run: exit 64, one sentence, and the run goes on when there is room."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.small_disk import run_on_small_disk


def test_a_disk_that_fills_up_is_one_sentence(tiny_base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": f"Question {i}?", "output": f"Answer {i}."} for i in range(24)]))
    arguments = {
        "llm_path": tiny_base,
        "dataset_path": rows,
        "devices": "cpu",
        "model_id": "m",
        "save_steps": 1,
        "lora_rank": 16,
        "tracking_uri": tmp_path / "mlruns",
    }
    argv = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    # Room for the rows and the start of the training, not for a checkpoint of adapter and optimizer (0.5 MB).
    said = run_on_small_disk(
        tmp_path / "disk",
        "import contextlib, io\n"
        "from llm_tuning.codes.tune_llm import main\n"
        "said = io.StringIO()\n"
        "with contextlib.redirect_stderr(said):\n"
        f"    code = main({argv!r} + ['--output_dir', str(disk / 'models')])\n"
        "print(code)\n"
        "print([p.name for p in (disk / 'models').glob('[!.]*')])\n"
        "print(said.getvalue())\n",
        kibibytes=640,
        timeout_seconds=240,
    )
    code, models, *lines = said.splitlines()
    assert code == "64", said
    assert models == "[]"
    assert "Traceback" not in said
    assert [
        line for line in lines if "no space is left on the disk; make room and start the same model_id again" in line
    ]
