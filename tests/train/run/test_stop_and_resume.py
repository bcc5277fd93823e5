"""Stopped or killed at any moment, a later start of the same model_id ends with the same adapter, bit for bit.

Real runs with real signals; see `tests/support/forked_run.py` for how a moment is hit exactly.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_tuning.errors import InputError
from tests.support.forked_run import Ended, Moment, forked_run

SAVE_STEPS = 4
STEPS = 20
"""48 rows of which 2 are held out, 5 a step, 2 epochs; the last step of an epoch is a small one."""

PREFERENCES = ("dpo", "kto")
RUN, LOOP = "llm_tuning.trainers.fine_tune", "llm_tuning.trainers.loop:Loop"

SFT_MOMENTS = {
    "in a later step": Moment(f"{LOOP}.training_step", 7),
    "in an evaluation between steps": Moment("llm_tuning.trainers.recipe:evaluate_policy", 2),
    "while a checkpoint is written": Moment(f"{LOOP}._write", 2, after=True),
    "while the adapter is saved": Moment(f"{RUN}:save_adapter"),
    "just before the rename": Moment("llm_tuning.models.publish:flush_tree", after=True),
    "just after the rename": Moment("llm_tuning.run.finish:_after_rename"),
}
"""Those between them are in tests/full."""
PUBLISHED = {"just before the rename", "just after the rename"}
"""Moments after the last look at the stop flag: SIGTERM changes nothing any more, the run ends with 0."""

PPO_MOMENTS = {
    "in the second epoch": Moment(f"{LOOP}.training_step", 14),
    "while a checkpoint is written": Moment("llm_tuning.run.checkpoints:flush_tree", 2, after=True),
}


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    """Loaded once, and left alone by the garbage collection of each run: the runs below are forked from here."""
    for mode in ("sft", "ppo", *PREFERENCES):
        importlib.import_module(f"llm_tuning.trainers.{mode}")
    for name in (
        "llm_tuning.run.rank",
        "llm_tuning.run.finish",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ):
        importlib.import_module(name)
    gc.freeze()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    made = [
        {"prompt": f"What is {i} plus {i}?", "output": f"It is {2 * i}{'!' * (i % 7)}.", "reward": (i % 5) - 2.0}
        for i in range(48)
    ]
    path.write_text(json.dumps(made))
    pairs = [{"prompt": row["prompt"], "chosen": row["output"], "rejected": "No idea."} for row in made]
    path.with_name("dpo.json").write_text(json.dumps(pairs))
    labels = [{"prompt": row["prompt"], "completion": row["output"], "label": i % 3 == 0} for i, row in enumerate(made)]
    path.with_name("kto.json").write_text(json.dumps(labels))
    return path


def arguments(base: Path, rows: Path, mode: str) -> list[object]:
    flags = {
        "llm_path": base,
        "dataset_path": rows.with_name(f"{mode}.json") if mode in PREFERENCES else rows,
        "tuning_mode": mode,
        "model_id": "m",
        "devices": "cpu",
        "epochs": 2,
        "batch_size": 5,
        "save_steps": SAVE_STEPS,
        "eval_steps": 3,
        "learning_rate": 0.003,
        "precision": "fp32",
        "lora_rank": 4,
    }
    return [part for name, value in flags.items() for part in (f"--{name}", value)]


def adapter_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "models/m/adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hash of the adapter of a run that nobody disturbs, by mode."""
    hashes = {}
    here = Path.cwd()
    for mode in ("sft", "ppo", *PREFERENCES):
        folder = tmp_path_factory.mktemp(mode)
        os.chdir(folder)
        ended = forked_run(arguments(tiny_base, rows, mode))
        assert ended.code == 0, ended.output
        hashes[mode] = adapter_hash(folder)
        print(f"{mode} undisturbed: adapter {hashes[mode]}")
    os.chdir(here)
    return hashes


def steps_taken() -> list[int]:
    path = Path("models/.work/m/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["step"] for line in lines if "train/tokens" in line]


def assert_finishes_the_same(argv: list[object], want: str) -> Ended:
    again = forked_run(argv)
    assert again.code == 0, again.output
    assert adapter_hash(Path()) == want
    assert not Path("models/.work/m").exists()
    registry = json.loads(Path("models/registry.json").read_text())
    assert [entry["model_id"] for entry in registry["models"] if entry["model_type"] == "fine_tuned"] == ["m"]
    return again


def assert_no_half_model() -> None:
    for folder in Path("models").glob("[!.]*/"):
        assert (folder / "model.json").is_file(), f"{folder} is not whole"


@pytest.mark.parametrize("moment", SFT_MOMENTS)
def test_sigterm_ends_with_75_and_the_next_start_finishes_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], moment: str
) -> None:
    argv = arguments(tiny_base, rows, "sft")
    terminated_finishes_the_same(argv, undisturbed["sft"], SFT_MOMENTS[moment], published=moment in PUBLISHED)


def terminated_finishes_the_same(argv: list[object], want: str, at: Moment, *, published: bool) -> None:
    ended = forked_run(argv, at=at, send=signal.SIGTERM)
    assert ended.code == (0 if published else 75), ended.output
    assert "Traceback" not in ended.output
    assert_no_half_model()
    assert_finishes_the_same(argv, want)


@pytest.mark.parametrize("moment", SFT_MOMENTS)
def test_kill_9_loses_at_most_one_interval_and_the_next_start_finishes_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], moment: str
) -> None:
    argv = arguments(tiny_base, rows, "sft")
    killed_finishes_the_same(argv, undisturbed["sft"], SFT_MOMENTS[moment], published=moment in PUBLISHED)


def killed_finishes_the_same(argv: list[object], want: str, at: Moment, *, published: bool) -> None:
    ended = forked_run(argv, at=at, send=signal.SIGKILL)
    assert ended.code == -signal.SIGKILL, ended.output
    assert_no_half_model()
    taken = steps_taken()
    if taken:
        assert taken[-1] - newest_checkpoint() <= SAVE_STEPS
    step = newest_checkpoint()
    again = assert_finishes_the_same(argv, want)
    if not published:
        assert (f"resumed from step {step} (checkpoint-{step})" in again.output) == (step > 0)


def newest_checkpoint() -> int:
    names = [path.name for path in Path("models/.work/m/checkpoints").glob("checkpoint-*")]
    return max((int(name.removeprefix("checkpoint-")) for name in names), default=0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", PPO_MOMENTS)
def test_ppo_stopped_or_killed_finishes_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], moment: str, number: signal.Signals
) -> None:
    ended_finishes_the_same(arguments(tiny_base, rows, "ppo"), undisturbed["ppo"], PPO_MOMENTS[moment], number)


def ended_finishes_the_same(argv: list[object], want: str, at: Moment, number: signal.Signals) -> None:
    ended = forked_run(argv, at=at, send=number)
    assert ended.code == (75 if number == signal.SIGTERM else -signal.SIGKILL), ended.output
    assert_no_half_model()
    assert_finishes_the_same(argv, want)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("mode", PREFERENCES)
def test_preferences_stopped_or_killed_in_the_second_epoch_finish_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], mode: str, number: signal.Signals
) -> None:
    at = Moment(f"{LOOP}.training_step", 14)
    ended_finishes_the_same(arguments(tiny_base, rows, mode), undisturbed[mode], at, number)


def test_a_run_stopped_again_and_again_finishes_the_same(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str]
) -> None:
    argv = arguments(tiny_base, rows, "sft")
    ends: list[Ended] = []
    while not ends or ends[-1].code == 75:
        ends.append(forked_run(argv, at=Moment(f"{LOOP}.training_step", 3)))
        assert len(ends) < STEPS, "a run that is stopped at its third step must still get on"
    assert ends[-1].code == 0, ends[-1].output
    assert len(ends) > 3
    assert adapter_hash(Path()) == undisturbed["sft"]


def test_sigterm_before_the_heavy_imports_ends_with_75(tiny_base: Path, rows: Path) -> None:
    """As PID 1 in a pod it is: the handler is there before torch is."""
    code = (
        "import os, signal, sys\n"
        "import llm_tuning.codes.tune_llm as t\n"
        "run = t._run\n"
        "def stopped(arguments):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return run(arguments)\n"
        "t._run = stopped\n"
        "code = t.main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    argv = [str(argument) for argument in arguments(tiny_base, rows, "sft")]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75, done.stderr
    assert "try again (Stopped)" in done.stderr
    assert time.monotonic() - began < 10


def test_a_finished_model_id_is_returned_at_once_and_another_configuration_is_refused(
    tiny_base: Path, rows: Path, undisturbed: dict[str, str]
) -> None:
    argv = arguments(tiny_base, rows, "sft")
    assert forked_run(argv).code == 0
    again = forked_run([*argv, "--save_steps", 9])  # decides nothing about the weights
    assert again.code == 0, again.output
    assert "finished already" in again.output
    other = forked_run([*argv, "--seed", 7, "--save_steps", 9])
    assert other.code == 64, other.output
    said = (
        r"model_id \(--model_id\): m is finished with another configuration: training\.seed \d+, now 7; choose another"
    )
    assert re.search(said, other.output), other.output
    assert adapter_hash(Path()) == undisturbed["sft"]


def test_two_starts_of_one_model_id_at_once(tiny_base: Path, rows: Path, undisturbed: dict[str, str]) -> None:
    """The second one is told to try again while the first one, here a child stopped for the purpose, holds the run."""
    argv = arguments(tiny_base, rows, "sft")
    import fcntl

    work = Path("models/.work/m")
    work.mkdir(parents=True)
    with (work / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = forked_run(argv)
        assert ended.code == 75, ended.output
        assert "try again (Busy): another process is running m" in ended.output
    assert_finishes_the_same(argv, undisturbed["sft"])


def test_a_start_adapter_that_is_not_as_published_is_refused(tiny_base: Path, rows: Path) -> None:
    argv = arguments(tiny_base, rows, "sft")
    assert forked_run(argv).code == 0
    weights = Path("models/m/adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes() + b"x")
    ended = forked_run([*argv, "--model_id", "n", "--init_adapter", "m"])
    assert ended.code == 64, ended.output
    assert "adapter_model.safetensors is not the file that m was published with" in ended.output
    assert not Path("models/.work/n").exists()


def test_paths_and_numbers_as_python_has_them(tiny_base: Path, rows: Path) -> None:
    from llm_tuning.codes.tune_llm import run_tuning

    with pytest.raises(InputError, match=r"training.epochs \(--epochs\): must be at least 1"):
        run_tuning(tiny_base, rows, devices=0, output_dir=Path("models"), epochs=0)


def test_a_late_loss_that_is_no_number_leaves_the_checkpoints_of_a_first_run(tiny_base: Path, tmp_path: Path) -> None:
    """One embedding is NaN, and one row of the data has its token: the step that meets it ends the run."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    base = tmp_path / "broken"
    shutil.copytree(tiny_base, base)
    (token,) = Tokenizer.from_file(str(base / "tokenizer.json")).encode("~").ids
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    rows = tmp_path / "broken.json"
    made = [{"prompt": f"What is {i}?", "output": f"It is {i}.", "reward": i % 3} for i in range(19)]
    made[13]["prompt"] += " ~"
    rows.write_text(json.dumps(made))
    flags = {"batch_size": 1, "gradient_accumulation_steps": 1, "save_steps": 2, "epochs": 1, "seed": 1}
    argv = [*arguments(base, rows, "sft"), *(part for name, value in flags.items() for part in (f"--{name}", value))]
    ended = forked_run(argv)
    assert ended.code == 64, ended.output
    gives = r"gives numbers that are not finite in float32 for rows .* without any adapter \(at step \d+\)"
    said = rf"model\.path \(--llm_path\): {gives}"
    assert re.search(said, ended.output), "the base is to blame, and not the learning rate"
    assert steps_taken(), "the row came first: choose another seed"
    left = sorted(path.name for path in Path("models/.work/m/checkpoints").iterdir())
    assert left, "the checkpoints are gone"
    assert Path("models/.work/m/rows/rows.json").exists()


@pytest.mark.parametrize(
    ("mode", "moment", "name"),
    [
        ("sft", Moment(f"{LOOP}.training_step", STEPS), "adapter_model.safetensors"),
        ("ppo", PPO_MOMENTS["in the second epoch"], "recipe.pt"),
    ],
)
def test_a_damaged_newest_checkpoint_gives_way_and_the_run_finishes_the_same(  # noqa: PLR0917 - a table
    tiny_base: Path, rows: Path, undisturbed: dict[str, str], mode: str, moment: Moment, name: str
) -> None:
    argv = arguments(tiny_base, rows, mode)
    assert forked_run(argv, at=moment, send=signal.SIGKILL).code == -signal.SIGKILL
    newest = Path(f"models/.work/m/checkpoints/checkpoint-{newest_checkpoint()}")
    os.truncate(newest / name, 1000)
    again = forked_run(argv)
    assert again.code == 0, again.output
    assert f"{newest} is damaged ({name} is not as it was written): resuming from checkpoint-" in again.output
    assert adapter_hash(Path()) == undisturbed[mode]


def test_damaged_checkpoints_alone_end_with_64_and_stay(tiny_base: Path, rows: Path) -> None:
    argv = arguments(tiny_base, rows, "sft")
    forked_run(argv, at=SFT_MOMENTS["in a later step"], send=signal.SIGKILL)
    checkpoints = Path("models/.work/m/checkpoints")
    for folder in checkpoints.iterdir():
        (folder / "optimizer.pt").unlink()
    for _ in range(2):
        again = forked_run(argv)
        assert again.code == 64, again.output
        assert "holds no whole checkpoint" in again.output
        assert "remove models/.work/m/checkpoints to train from the first step again" in again.output
