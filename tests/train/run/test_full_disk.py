"""A disk that fills up in the middle of a run: exit 75, one sentence, and the run goes on when there is room."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.small_disk import run_on_small_disk


@pytest.mark.parametrize(
    ("kibibytes", "devices", "detail"),
    [
        # Asked before the first step.
        (1024, "cpu", " (a checkpoint of this run takes 1.6 MiB, 0."),
        # The second checkpoint; once its half is removed, there is room again, and torch says "unexpected pos".
        (3400, "cpu", "; make room there"),
        (3400, "cpu,cpu", "; make room there"),
    ],
)
def test_a_disk_that_fills_up_is_one_sentence(
    tiny_base: Path, tmp_path: Path, kibibytes: int, devices: str, detail: str
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": f"Question {i}?", "output": f"Answer {i}."} for i in range(24)]))
    arguments = {
        "llm_path": tiny_base,
        "dataset_path": rows,
        "devices": devices,
        "model_id": "m",
        "save_steps": 1,
        "lora_rank": 64,
        "tracking_uri": tmp_path / "mlruns",
    }
    argv = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
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
        kibibytes=kibibytes,
        timeout_seconds=240,
    )
    code, models, *lines = said.splitlines()
    assert code == "75", said
    assert models == "[]"
    assert "Traceback" not in said
    last = lines[-1] or lines[-2]
    assert "no space is left in " in last
    assert detail in last
    assert last.endswith("make room there: the next start goes on from the last checkpoint")


RUN_TWICE = """
import importlib, json, shutil
from llm_tuning.codes import tune_llm
from llm_tuning.errors import TryAgain
from llm_tuning.run.reporter import RunReporter

starts, start = [], RunReporter.start
RunReporter.start = lambda self, total, done: (starts.append(done), start(self, total, done))

def run_twice(module, name, call, fresh, flags):
    models, calls = disk / "models", 0
    if not fresh:
        (models / "other").mkdir(parents=True)
    owner = importlib.import_module(module)
    original = getattr(owner, name)

    def on_a_full_disk(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            fill()
        return original(*args, **kwargs)

    setattr(owner, name, on_a_full_disk)
    try:
        tune_llm.run_tuning(**flags, output_dir=models, tracking_uri=None)
        refused = "it was not refused"
    except TryAgain as error:
        refused = str(error)
    setattr(owner, name, original)
    left = sorted(found.name for found in models.glob(".work/m/checkpoints/*"))
    (disk / "filler").unlink()
    starts.clear()
    made = tune_llm.run_tuning(**flags, output_dir=models, tracking_uri=None)
    work = (models / ".work/m").exists()
    shutil.rmtree(models)
    return dict(refused=refused, left=left, starts=[*starts], made=made, work=work)

print(json.dumps([run_twice(*case) for case in {cases!r}]))
"""

CHECKPOINT = ("llm_tuning.run.checkpoints", "_remove_leftovers", 3)
MODEL_CARD = ("llm_tuning.run.finish", "write_model_card", 1)
PUBLISHING = ("llm_tuning.models.publish", "write_manifest", 1)
FULL_AT = [("sft", CHECKPOINT, True), ("ppo", CHECKPOINT, False), ("sft", MODEL_CARD, False), ("ppo", PUBLISHING, True)]
"""(mode, what is written when the disk is full, whether output_dir is made by the run)."""


def test_a_first_run_on_a_full_disk_goes_on_from_its_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    made = [{"prompt": f"Question {i}?", "output": f"Answer {i}.", "reward": i % 3} for i in range(24)]
    rows.write_text(json.dumps(made))
    flags = {"llm_path": str(tiny_base), "dataset_path": str(rows), "devices": "cpu", "model_id": "m"}
    flags |= {"save_steps": 1, "max_steps": 4, "lora_rank": 4}
    cases = [(*moment, fresh, flags | {"tuning_mode": mode}) for mode, moment, fresh in FULL_AT]
    said = run_on_small_disk(tmp_path / "disk", RUN_TWICE.format(cases=cases), kibibytes=8192, timeout_seconds=300)
    for case, ended in zip(FULL_AT, json.loads(said.splitlines()[-1]), strict=True):
        assert "make room" in ended["refused"], (case, ended)
        assert ended["left"], f"{case}: the checkpoints are gone"
        newest = max(int(name.removeprefix("checkpoint-")) for name in ended["left"])
        assert ended["starts"] == [newest], (case, ended)
        assert ended["made"] == "m"
        assert not ended["work"]
