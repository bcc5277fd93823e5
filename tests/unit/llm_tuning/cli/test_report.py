"""`tune-llm report`: a finished run's result, and how far an unfinished one is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.codes.tune_llm import main
from llm_tuning.models.manifest import DatasetRecord, HardwareRecord, MlflowRecord, StartAdapterRecord, TrainingRecord
from llm_tuning.models.registry import Registry
from llm_tuning.pod.outcome import result_of
from tests.support.models import publish_model, start_run

SCORES: dict[str, Any] = {
    "source": "held_out",
    "held_out_rows": 5,
    "base": {"loss": 2.5, "perplexity": 12.1825, "token_accuracy": 0.25, "reward_weighted_loglik": -0.5},
    "start": {"loss": 2.0, "perplexity": 7.3891, "token_accuracy": 0.5, "reward_weighted_loglik": 0.0},
    "tuned": {"loss": 1.25, "perplexity": 3.4903, "token_accuracy": 0.75, "reward_weighted_loglik": 0.5},
}


@pytest.fixture
def models() -> Path:
    folder = Path("models")
    folder.mkdir()
    return folder


def report(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """Standard output and error of `tune-llm report ARGUMENTS`, which must end with `code`."""
    assert main(["report", *arguments]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_report_of_a_finished_run_says_all_that_counts(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_model(
        models,
        "done",
        mode="ppo",
        metrics=SCORES,
        start_adapter=StartAdapterRecord(model_id="earlier", weight_hash="ab" * 32),
        training=TrainingRecord(steps=120, epochs=2, seconds=43.2, tokens=51200, stopped_early="target_kl reached"),
        dataset=DatasetRecord(path="faq.json", hash="cd" * 32, rows=1000, kept=998, refused=2),
        mlflow=MlflowRecord(run_id="4711", uri="sqlite:///mlruns/mlflow.db", experiment="llm_tuning"),
        devices=["cuda:0", "cuda:1"],
        hardware=HardwareRecord(
            device="NVIDIA H200", driver="580.65.06", precision="bf16", peak_memory=2**34, teraflops=310.0, mfu=0.313
        ),
    )
    (models / "done" / "README.md").write_text("# done\n")
    out, _ = report(capsys, "done")
    assert out == (
        "model_id       done\n"
        "adapter        models/done\n"
        "card           models/done/README.md\n"
        "mode           ppo\n"
        "base           base/tiny (weights ba5eba5eba5e)\n"
        "start adapter  earlier (weights abababababab)\n"
        "created        2026-11-24T20:00:00Z\n"
        "training       120 steps, 2 epochs, 51,200 tokens in 43 s on cuda:0, cuda:1\n"
        "hardware       NVIDIA H200 (driver 580.65.06), bf16, peak memory 16.0 GiB, 310 TFLOP/s, MFU 31.3%\n"
        "stopped early  target_kl reached\n"
        "data           faq.json: 1,000 rows read, 998 kept, 2 refused (hash cdcdcdcdcdcd)\n"
        "mlflow         run 4711 of llm_tuning in sqlite:///mlruns/mlflow.db\n"
        "\n"
        "held out (5 rows)               base     start   tuned\n"
        "loss (nats a token)             2.5000   2.0000  1.2500\n"
        "perplexity                      12.1825  7.3891  3.4903\n"
        "token accuracy                  0.2500   0.5000  0.7500\n"
        "reward-weighted log-likelihood  -0.5000  0.0000  0.5000\n"
    )


def test_a_run_that_mlflow_did_not_have_in_time_says_why(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_model(models, "slow", mlflow_fault="database is locked")
    said = "not known when the adapter was published (database is locked); a run of its name may have come later\n"
    assert said in report(capsys, "slow")[0]
    publish_model(models, "untracked")
    assert "not tracked\n" in report(capsys, "untracked")[0]


def test_rows_to_evaluate_on_that_training_has_seen_are_counted(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_model(models, "done", metrics=SCORES | {"left_out_rows": 3})
    assert "held out (5 rows, without 3 whose prompt a training row has)" in report(capsys, "done")[0]


def test_scores_of_tool_calls_are_in_the_table_with_what_they_are_of(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {**SCORES, "calls": {"with_calls": 12, "without_calls": 3}}
    metrics |= {policy: SCORES[policy] | {"calls_equal": share} for policy, share in (("base", 0.0), ("tuned", 0.75))}
    publish_model(models, "done", metrics=metrics)
    lines = report(capsys, "done")[0].splitlines()
    assert "tool calls answers generated to 12 held-out prompts with a call, 3 with words" in [
        " ".join(line.split()) for line in lines
    ]
    assert ["calls as recorded", "0.0000", "-", "0.7500"] in [re.split(r"  +", line) for line in lines]
    why = {"with_calls": 0, "without_calls": 0, "reason": "the chat template of the base: it writes no calls"}
    publish_model(models, "without", metrics=SCORES | {"calls": why})
    assert "not scored: the chat template of the base: it writes no calls" in report(capsys, "without")[0]
    publish_model(models, "plain", metrics=SCORES)
    assert "tool calls" not in report(capsys, "plain")[0]


def test_what_the_scores_warn_of_is_said(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = TrainingRecord(steps=1, epochs=1, seconds=1, tokens=1)
    publish_model(models, "fallen", metrics=SCORES | {"warnings": ["answers fall apart"]}, training=trained)
    assert re.search(r"^warning +answers fall apart$", report(capsys, "fallen")[0], re.MULTILINE)
    assert result_of(Registry(models), "fallen").message.endswith(". Warning: answers fall apart")
    publish_model(models, "sound", metrics=SCORES)
    assert "warning" not in report(capsys, "sound")[0]


def test_a_base_in_4_bits_is_called_so(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_model(models, "done", configuration={"model": {"path": "base/tiny", "quantization": "4bit"}})
    assert "base/tiny (weights ba5eba5eba5e), in 4 bits\n" in report(capsys, "done")[0]


def test_without_held_out_rows_the_report_says_why(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"source": "none", "held_out_rows": 0, "reason": "NoHeldOutRows", "base": None, "tuned": None}
    publish_model(models, "done", metrics=metrics)
    out, _ = report(capsys, "done")
    assert out.endswith("\nheld out  no rows (NoHeldOutRows): nothing was compared\n")


def test_the_data_check_of_the_run_is_shown_where_this_version_can_read_it(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"path": "faq.json", "hash": "00", "rows": 9, "kept": 8, "refused": 1}
    told = {"path": "faq.json", "mode": "sft", "rows": 9, "kept": 8, "refused": 1, "warnings": ["short answers"]}
    publish_model(models, "now", dataset=DatasetRecord(**record, report=told))
    publish_model(models, "later", dataset=DatasetRecord(**record, report=told | {"new_field": 1}))
    publish_model(models, "other", dataset=DatasetRecord(**record, report=told | {"rows": "many"}))
    assert "warning   short answers\n" in report(capsys, "now")[0]
    assert "warning   short answers\n" in report(capsys, "later")[0]
    assert "data      faq.json: 9 rows read, 8 kept, 1 refused (hash 00)\n" in report(capsys, "other")[0]


def test_json_is_the_whole_manifest(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_model(models, "done", metrics=SCORES)
    out, _ = report(capsys, "done", "--json")
    result = json.loads(out)
    on_disk = json.loads((models / "done" / "model.json").read_text())
    assert result == {"finished": True, "path": "models/done", **on_disk}


def test_an_unknown_run_is_bad_input_and_names_folder_and_likely_ones(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_model(models, "faq-v1")
    out, err = report(capsys, "faq-v2", code=64)
    assert out == ""
    assert f"error: model_id: 'faq-v2' is not in {models.resolve()}; did you mean faq-v1?\n" in err


def test_what_is_no_model_id_is_bad_input(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_run(models, "going")
    _, err = report(capsys, "../.work/going", code=64)
    assert err.count("\n") == 1
    assert "must be 1 to 128" in err


def test_a_run_that_has_just_begun_is_unfinished(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_run(models, "going", epochs=3)
    out, err = report(capsys, "going", code=75)
    assert out == ""
    assert err.startswith("try again (Unfinished): going is not finished: step 0, epoch 0 of 3, no checkpoint yet, ")


def test_an_unfinished_run_says_how_far_it_is(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = start_run(models, "going", epochs=3, max_steps=400)
    line = {"step": 160, "time": 1.0, "train/loss": 2.0, "train/tokens": 10, "train/epoch": 1.5}
    (work / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (work / "checkpoints" / "checkpoint-150").mkdir(parents=True)
    _, err = report(capsys, "going", code=75)
    assert "going is not finished: step 160 of 400, last checkpoint at step 150, last sign " in err
    progress = json.loads(report(capsys, "going", "--json", code=75)[0])
    assert (progress["finished"], progress["step"], progress["epoch"], progress["max_steps"]) == (False, 160, 1.5, 400)
    assert progress["checkpoint_step"] == 150
    assert progress["seconds_since_last_sign"] >= 0


def test_a_run_killed_after_publishing_is_finished(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_run(models, "done")
    publish_model(models, "done")
    assert report(capsys, "done")[0].startswith("model_id  done\n")
