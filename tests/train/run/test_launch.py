"""Several devices: real worker processes under the real command, and exit codes that survive them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORKER = "llm_tuning.run.rank"


@pytest.fixture
def rows() -> Path:
    path = Path("rows.json").absolute()
    made = [
        {"prompt": f"What is {i}?", "output": f"It is {i}{'!' * (i % 5)}.", "reward": float(i % 4)} for i in range(60)
    ]
    path.write_text(json.dumps(made))
    return path


def command(base: Path, rows: Path, **flags: object) -> list[str]:
    fixed: dict[str, object] = {
        "llm_path": base,
        "dataset_path": rows,
        "model_id": "m",
        "devices": "cpu,cpu",
        "batch_size": 4,
        "lora_rank": 4,
        "lora_dropout": 0,
        "learning_rate": 0.003,
        "tracking_uri": "mlruns",
    }
    parts = [str(part) for name, value in (fixed | flags).items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "llm_tuning.codes.tune_llm", *parts]


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture
def started() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Starts commands, and ends what is left of them."""
    processes: list[subprocess.Popen[str]] = []

    def start(argv: list[str]) -> subprocess.Popen[str]:
        processes.append(subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def workers_in(folder: Path) -> list[int]:
    """Worker processes whose current folder is `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if WORKER in (entry / "cmdline").read_text() and (entry / "cwd").resolve() == folder.resolve():
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def rank_one() -> int:
    (pid,) = [pid for pid in workers_in(Path()) if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2] == "1"]
    return pid


def wait_for(what: str, done: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def steps_logged() -> int:
    path = Path("models/.work/m/metrics.jsonl")
    return path.read_text().count("train/loss") if path.exists() else 0


def losses(model_id: str) -> list[float]:
    lines = map(json.loads, Path(f"models/{model_id}/metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("mode", ["sft", "ppo"])
def test_two_processes_give_the_curve_of_one_with_the_double_batch(tiny_base: Path, rows: Path, mode: str) -> None:
    two = run(command(tiny_base, rows, tuning_mode=mode))
    assert two.returncode == 0, two.stderr
    one = run(command(tiny_base, rows, tuning_mode=mode, devices="cpu", batch_size=8, model_id="one"))
    assert one.returncode == 0, one.stderr
    assert len(losses("m")) == 8
    assert losses("m") == pytest.approx(losses("one"), abs=1e-5)
    assert json.loads(Path("models/m/model.json").read_text())["devices"] == ["cpu", "cpu"]
    assert not workers_in(Path())


def test_sigterm_ends_all_with_75_and_the_next_start_goes_on(
    tiny_base: Path, rows: Path, started: Callable[[list[str]], subprocess.Popen[str]]
) -> None:
    argv = command(tiny_base, rows, epochs=30, save_steps=2)
    process = started(argv)
    wait_for("five steps", lambda: steps_logged() >= 5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "try again (Stopped)" in said
    assert "Traceback" not in said
    assert not workers_in(Path())
    older, newest = sorted(Path("models/.work/m/checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    os.truncate(newest / "optimizer.pt", 1000)  # every rank must go on from the older one
    again = run(argv)
    assert again.returncode == 0, again.stderr
    assert f"{newest} is damaged" in again.stderr
    assert f"going on from {older.name}" in again.stderr
    assert len(losses("m")) == 240  # no step twice, none left out


def test_bad_input_that_only_the_workers_see_ends_with_64(tiny_base: Path, rows: Path) -> None:
    done = run(command(tiny_base, rows, lora_target_modules="no_such_module"))
    assert done.returncode == 64, done.stderr
    assert done.stderr.count("lora.targetModules") == 1
    assert "Traceback" not in done.stderr
    assert not Path("models").exists()


def test_a_worker_that_is_killed_takes_the_others_along_and_is_named(
    tiny_base: Path, rows: Path, started: Callable[[list[str]], subprocess.Popen[str]]
) -> None:
    process = started(command(tiny_base, rows, epochs=500))
    wait_for("three steps", lambda: steps_logged() >= 3)
    os.kill(rank_one(), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "worker 1 of 2 was ended by signal 9" in said
    assert "Traceback" not in said
    assert not workers_in(Path())
    assert not list(Path("models").glob("[!.]*/"))


def test_workers_do_not_outlive_a_killed_parent(
    tiny_base: Path, rows: Path, started: Callable[[list[str]], subprocess.Popen[str]]
) -> None:
    process = started(command(tiny_base, rows, epochs=500))
    wait_for("two workers", lambda: len(workers_in(Path())) == 2)
    process.kill()
    process.wait()
    wait_for("the end of the workers", lambda: not workers_in(Path()), seconds=30)


def test_run_tuning_does_not_import_the_callers_main_again(tiny_base: Path, rows: Path) -> None:
    Path("script.py").write_text(
        "from pathlib import Path\n"
        "from llm_tuning.codes.tune_llm import run_tuning\n"
        "with Path('imported').open('a') as log:\n"
        "    log.write('once\\n')\n"
        f"print(run_tuning({str(tiny_base)!r}, {str(rows)!r}, devices='cpu,cpu', max_steps=1, model_id='m'))\n"
    )
    done = run([sys.executable, "script.py"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["m"]
    assert Path("imported").read_text() == "once\n"
