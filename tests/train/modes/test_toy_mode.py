"""A mode from outside of the package (support/outside/toy_mode.py) goes through all that knows the package's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_tuning.errors import EXIT_INPUT, EXIT_OK

OUTSIDE = Path(__file__).parents[2] / "support/outside"
ROWS = [{"prompt": f"Is {n} even?", "good": "Yes." if n % 2 == 0 else "No.", "bad": "Perhaps."} for n in range(40)]


def python(*arguments: str, want: int = EXIT_OK, modules: str = "toy_mode") -> str:
    """What a process that has the mode prints, on both streams; the mode comes by the environment, as in a pod."""
    path = os.pathsep.join([str(OUTSIDE), *sys.path])
    found = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LLM_TUNING_MODES": modules, "PYTHONPATH": path, "COLUMNS": "200"},
    )
    assert found.returncode == want, found.stdout + found.stderr
    return found.stdout + found.stderr


def tune_llm(*arguments: str, want: int = EXIT_OK) -> str:
    return python("-m", "llm_tuning.codes.tune_llm", *arguments, want=want)


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A trained toy: its models folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "rows.json").write_text(json.dumps(ROWS))
    printed = tune_llm(
        *("--tuning_mode", "toy", "--llm_path", str(tiny_base), "--dataset_path", str(folder / "rows.json")),
        *("--devices", "cpu", "--output_dir", str(folder / "models"), "--model_id", "toy-1", "--toy_weight", "0.2"),
        *("--epochs", "2", "--eval_fraction", "0.2", "--tracking_uri", str(folder / "mlruns")),
    )
    return folder / "models", printed


def test_it_is_small_and_free_of_torch() -> None:
    assert len((OUTSIDE / "toy_mode.py").read_text().splitlines()) <= 80
    python("-c", "import llm_tuning.api, sys; assert 'toy_mode' in sys.modules; assert 'torch' not in sys.modules")


def test_a_program_of_one_s_own_registers_it_by_importing_it_first() -> None:
    code = (
        "import toy_mode; from llm_tuning.api import TuningConfig; print(TuningConfig.model_fields['toy'].description)"
    )
    assert "How much is unlearned; only for mode toy." in python("-c", code, modules="")


def test_flags_and_help() -> None:
    text = tune_llm("--help")
    assert "--toy_weight X" in text
    assert "--no-toy_both" in text
    assert "toy: learn the better of two answers." in " ".join(text.split())
    assert "3e-3 for toy" in text


def test_the_crd_has_its_group_choice_scores_and_rules(tmp_path: Path) -> None:
    python("-m", "llm_tuning.api.crd", "--root", str(tmp_path))
    crd = yaml.safe_load((tmp_path / "crds/tuningjobs.tuning.llmtuning.dev.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    spec, evaluation = schema["spec"], schema["status"]["properties"]["evaluation"]["properties"]
    assert "toy" in spec["properties"]["mode"]["enum"]
    assert spec["properties"]["toy"]["properties"]["weight"]["maximum"] == 1
    assert {"baseMargin", "startMargin", "tunedMargin"} <= evaluation.keys()
    rules = {rule["rule"]: rule for rule in spec["x-kubernetes-validations"]}
    assert rules["self.mode == 'toy' || self.toy.weight == 0.1"]["fieldPath"] == ".toy.weight"
    assert "self.mode == 'toy' || self.toy.both == true" in rules


def test_its_settings_are_refused_in_another_mode() -> None:
    text = tune_llm("--llm_path", "m", "--dataset_path", "d", "--toy_weight", "0.5", want=EXIT_INPUT)
    assert "toy.weight (--toy_weight): is set but mode is not toy; set mode: toy or remove it" in text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "p", "good": "g"}] * 3, "`bad` is missing"),
        ([{"text": "t"}] * 3, "rows are {prompt, good, bad}"),
        ([ROWS[0]] * 3, "has one row again and again; give others"),
    ],
)
def test_the_check_refuses_what_it_cannot_learn_from(tmp_path: Path, rows: list[Any], words: str) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    text = tune_llm("validate", "--tuning_mode", "toy", "--dataset_path", str(tmp_path / "rows.json"), want=EXIT_INPUT)
    assert words in text


def test_the_check_shows_both_sequences(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    arguments = ("--dataset_path", str(tmp_path / "rows.json"), "--llm_path", str(tiny_base), "--show_sample")
    text = tune_llm("validate", "--tuning_mode", "toy", *arguments)
    assert "rows are good/bad" in text
    assert ">>>Yes." in text
    assert ">>>Perhaps." in text


def test_the_plan(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    job = {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "TuningJob",
        "metadata": {"name": "toy"},
        "spec": {
            "mode": "toy",
            "model": {"path": "base"},
            "dataset": {"path": "rows.json"},
            "volume": {"claimName": "c"},
            "toy": {"weight": 0.3},
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    arguments = ("-f", str(tmp_path / "job.yaml"), "--base", str(tiny_base), "--dataset", str(tmp_path / "rows.json"))
    text = python("-m", "llm_tuning.kubectl.main", "plan", *arguments)
    assert "adapter" in text
    assert "steps" in text


def test_it_trains_and_its_manifest_card_curve_and_report_say_so(run: tuple[Path, str]) -> None:
    models, printed = run
    manifest = json.loads((models / "toy-1/model.json").read_text())
    card = (models / "toy-1/README.md").read_text()
    assert (manifest["mode"], manifest["configuration"]["toy"]) == ("toy", {"weight": 0.2, "both": True})
    base, tuned = manifest["metrics"]["base"], manifest["metrics"]["tuned"]
    assert tuned["margin"] > base["margin"] + 0.1, "it learned to prefer the good answers"
    assert "toy training (the better answer is learned)" in card
    assert "| Margin, nats a token |" in card
    assert "| toy.weight | `0.2` |" in card
    assert "| training.learningRate | `0.003` |" in card
    assert (models / "toy-1/loss_curve.png").stat().st_size > 0
    for text in (printed, tune_llm("report", "toy-1", "--output_dir", str(models))):
        assert "margin (nats a token)" in text
    assert "toy-1" in tune_llm("registry", "list", "--output_dir", str(models))


def test_the_status_of_a_tuning_job_has_its_scores(run: tuple[Path, str]) -> None:
    code = (
        "import json, sys; from llm_tuning.pod.outcome import evaluation_of\n"
        "found = evaluation_of(json.load(open(sys.argv[1]))['metrics'])\n"
        "print(json.dumps(found.model_dump(by_alias=True)))\n"
    )
    found = json.loads(python("-c", code, str(run[0] / "toy-1/model.json")))
    assert found["tunedMargin"] > found["baseMargin"]


def test_its_settings_decide_the_weights(run: tuple[Path, str], tiny_base: Path) -> None:
    """The same start again is done; one with another weight is another run."""
    models, _ = run
    again = (
        *("--tuning_mode", "toy", "--llm_path", str(tiny_base), "--dataset_path", str(models.parent / "rows.json")),
        *("--devices", "cpu", "--output_dir", str(models), "--model_id", "toy-1"),
        *("--epochs", "2", "--eval_fraction", "0.2"),
    )
    tune_llm(*again, "--toy_weight", "0.2")
    text = tune_llm(*again, "--toy_weight", "0.25", want=EXIT_INPUT)
    assert "toy.weight 0.2, now 0.25" in text
