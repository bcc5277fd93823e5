"""What bad input gets from the command: exit 64, one sentence that says where, no traceback, nothing left behind,
and no training library loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.codes.tune_llm import main, run_tuning
from llm_tuning.errors import InputError

GOOD_ROWS = [{"prompt": f"Question {i}?", "output": f"Answer {i}."} for i in range(8)]
EXAMPLE_JOB = Path(__file__).resolve().parents[3] / "examples" / "tuningjob-ppo.yaml"
HEAVY = {"torch", "transformers", "peft", "trl", "mlflow", "datasets"}

# Runs command lines (a JSON array of them on standard input) one after the other in one process: a new
# interpreter for each of fifty refusals would be most of the test's time.
RUNNER = f"""
import contextlib, io, json, sys, time
from llm_tuning.codes.tune_llm import main
results = []
for arguments in json.load(sys.stdin):
    said, began = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(arguments)
    results.append({{"code": code, "said": said.getvalue(), "seconds": time.monotonic() - began}})
print(json.dumps({{"results": results, "loaded": sorted({HEAVY!r} & set(sys.modules))}}))
"""


def run_commands(commands: list[list[str]], folder: Path) -> list[dict[str, Any]]:
    """Run the command lines in `folder` and see that none of them loaded a training library or left a model folder."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=folder,
    )
    answer = json.loads(done.stdout)
    assert answer["loaded"] == [], "a refusal must not wait for the training libraries"
    assert not (folder / "models").exists()
    return list(answer["results"])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(GOOD_ROWS))
    return path


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def assert_refused(done: dict[str, Any], *want: str) -> None:
    assert done["code"] == 64, done["said"]
    assert "Traceback" not in done["said"]
    assert done["seconds"] < 10
    for text in want:
        assert text in done["said"]


def tune(*arguments: object) -> dict[str, Any]:
    (result,) = run_commands([[str(argument) for argument in arguments]], Path.cwd())
    return result


BAD_FLAGS = [
    (["--learning_rate", "0"], "training.learning_rate (--learning_rate): must be at least"),
    (["--learning_rate=-1"], "must be at least 1e-10, got -1.0"),
    (["--learning_rate", "nan"], "must be a finite number, got nan"),
    (["--learning_rate", "1e9"], "must be at most 0.1"),
    (["--lora_rank", "0"], "lora.rank (--lora_rank): must be at least 1, got 0"),
    (["--tuning_mode", "dream"], "mode (--tuning_mode): must be 'sft', 'ppo', 'dpo' or 'kto', got 'dream'"),
    (["--config", "text.yaml"], "model: must be a mapping of fields, got 'base'"),
    (["--lora_target_modules", "q_prj"], "lora.targetModules (--lora_target_modules): q_prj is no module of this mod"),
    (["--columns", "prompt=a,output=a"], "dataset.columns (--columns): must name each column for one field only"),
    (["--devices", "tpu"], "devices (--devices): must be GPU numbers"),
    (["--model_id", "a/b"], "model_id (--model_id): must be 1 to 128"),
    (["--model_id", ".."], "model_id (--model_id): must be 1 to 128"),
    (["--model_id=-x"], "model_id (--model_id): must be 1 to 128"),
    (["--model_id", "a\n"], "model_id (--model_id): must be 1 to 128"),
    (["--model_id", "x" * 300], "model_id (--model_id): must"),
    (["--init_adapter", "nothing"], "'nothing' is no finished adapter in models"),
    (["--llm_path", "nowhere"], "model nowhere: does not exist"),
    (["--dataset_path", "nothing.json"], "nothing.json"),
    (["--no_such_flag", "1"], "--no_such_flag: is not a known flag; see tune-llm --help"),
    (["--learing-rate", "-1"], "--learing_rate: is not a known flag; did you mean --learning_rate?"),
    (["--lora_rnk=8"], "--lora_rnk: is not a known flag; did you mean --lora_rank?"),
    (["extra"], "extra: is too much; see tune-llm --help"),
    (
        ["--config", "job.yaml"],
        "job.yaml: is an object for a cluster (TuningJob), and a run takes the fields of a conf",
    ),
    (["--config", "none.yaml"], "none.yaml: cannot be read"),
    (["--output_dir", "/proc/models"], "output_dir /proc/models: cannot be written"),
]


@pytest.fixture(scope="module")
def refused_flags(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("flags")
    (folder / "rows.json").write_text(json.dumps(GOOD_ROWS))
    (folder / "text.yaml").write_text("model: base\n")
    shutil.copy(EXAMPLE_JOB, folder / "job.yaml")
    valid = ["--llm_path", str(tiny_base), "--dataset_path", "rows.json"]
    return run_commands([[*([] if "text.yaml" in flags else valid), *flags] for flags, _ in BAD_FLAGS], folder)


@pytest.mark.parametrize("number", range(len(BAD_FLAGS)), ids=[" ".join(flags)[:40].strip() for flags, _ in BAD_FLAGS])
def test_a_bad_flag(refused_flags: list[dict[str, Any]], number: int) -> None:
    assert_refused(refused_flags[number], BAD_FLAGS[number][1])


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        (["validte", "--json"], "validte: is not a command; did you mean validate?"),
        (["faq.json"], "faq.json: is not a command; a run takes flags only, and the commands are validate, registry"),
        (["validate", "--dataset_path", "x", "--shw_sample"], "did you mean --show_sample?"),
        (["registry", "lst"], "tune-llm registry: must be one of list, show, verify, rebuild, got 'lst'; did you mean"),
        (["registry", "list", "--jsn"], "--jsn: is not a known flag; did you mean --json?"),
    ],
)
def test_a_mistyped_command(arguments: list[str], want: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 64
    assert want in capsys.readouterr().err


def test_a_mistyped_argument_of_run_tuning() -> None:
    with pytest.raises(InputError, match=r"^learing_rate: is not a known argument; did you mean learning_rate\?$"):
        run_tuning(learing_rate=1)


def bad_rows(*more: object, **fields: object) -> bytes:
    """Eight good rows and one like them but for `fields`."""
    return json.dumps([*GOOD_ROWS, *more, *([GOOD_ROWS[0] | fields] if fields else [])]).encode()


def rewarded(reward: object) -> bytes:
    good = [row | {"reward": float(i)} for i, row in enumerate(GOOD_ROWS)]
    return json.dumps([*good, GOOD_ROWS[0] | {"reward": reward}]).encode()


BAD_FILES: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "empty": ("sft", b"", ("empty",)),
    "not JSON": ("sft", b'[{"prompt": "a", "output": "b"}, {"prompt": "c" "output": "d"}]', ("line 1",)),
    "an object": ("sft", b'{"prompt": "a", "output": "b"}', ("row",)),
    "not UTF-8": ("sft", b'[{"prompt": "\xff", "output": "b"}]', ("UTF-8",)),
    "truncated last line": ("sft", b'{"prompt": "a", "output": "b"}\n{"prompt": "c", "out', ("row 2",)),
    "mixed shapes": ("sft", bad_rows({"text": "a b c"}), ("row 9",)),
    "null output": ("sft", bad_rows(output=None), ("row 9", "output")),
    "output is no text": ("sft", bad_rows(output=3), ("row 9", "output")),
    "empty prompt": ("sft", bad_rows(prompt=" "), ("row 9", "prompt")),
    "a single row": ("sft", json.dumps(GOOD_ROWS[:1]).encode(), ("row",)),
    "no assistant turn": (
        "sft",
        json.dumps([{"messages": [{"role": "user", "content": "a"}]}] * 3).encode(),
        ("assistant",),
    ),
    "NaN reward": ("ppo", rewarded(float("nan")), ("row 9", "reward")),
    "infinite reward": ("ppo", rewarded(float("inf")), ("row 9", "reward")),
    "textual reward": ("ppo", rewarded("high"), ("row 9", "reward")),
    "null reward": ("ppo", rewarded(None), ("row 9", "reward")),
    "boolean reward": ("ppo", rewarded(True), ("row 9", "reward")),
    "missing reward": ("ppo", bad_rows(), ("reward",)),
    "constant reward": ("ppo", json.dumps([row | {"reward": 1.0} for row in GOOD_ROWS]).encode(), ("reward",)),
    "every row too long": (
        "sft",
        json.dumps([{"prompt": "a " * 3000, "output": "b"}] * 4).encode(),
        ("nothing is left to learn", "max_length"),
    ),
}


@pytest.fixture(scope="module")
def refused_files(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("files")
    commands = []
    for number, (mode, content, _) in enumerate(BAD_FILES.values()):
        (folder / f"rows{number}.json").write_bytes(content)
        commands.append(["--llm_path", str(tiny_base), "--dataset_path", f"rows{number}.json", "--tuning_mode", mode])
    return dict(zip(BAD_FILES, run_commands(commands, folder), strict=True))


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file(refused_files: dict[str, dict[str, Any]], name: str) -> None:
    assert_refused(refused_files[name], f"rows{list(BAD_FILES).index(name)}.json", *BAD_FILES[name][2])


def test_a_base_with_pickled_weights(rows: Path, base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert_refused(tune("--llm_path", base, "--dataset_path", rows), "has only pickled weights (pytorch_model.bin)")


def test_a_base_with_code_of_its_own(rows: Path, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "m.M"}}))
    assert_refused(tune("--llm_path", base, "--dataset_path", rows), "asks for code of its own (auto_map)")


def test_everything_that_is_wrong_is_said_at_once(base: Path) -> None:
    (base / "config.json").unlink()
    done = tune("--llm_path", base, "--dataset_path", "nothing.json", "--init_adapter", "nothing")
    assert_refused(done, "has no config.json", "nothing.json", "'nothing' is no finished adapter")


def test_help_is_light() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_tuning.codes.tune_llm", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "--llm_path" in done.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, llm_tuning.codes.tune_llm as t\nt._run_parser()\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not (HEAVY | {"numpy", "jinja2", "rich"}) & set(loaded)
    of_no_use = (
        "llm_tuning.sources",
        "llm_tuning.api.tuning_job",
        "llm_tuning.api.inference_service",
        "llm_tuning.data.files",
    )
    assert [name for name in loaded if name.startswith(of_no_use)] == []
