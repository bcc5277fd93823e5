"""The real trainer on the CPU, as a process, on the tiny base that `fill_volume.py` writes without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_tuning.models.metrics_file import read_metrics
from llm_tuning.models.registry import Registry
from tests.support.pod_process import Claim

SHORT = {"maxSteps": 2, "batchSize": 4}


def test_a_run_is_published_registered_and_told_and_told_again(claim: Claim) -> None:
    ended = claim.run("train", training=SHORT, model_id="m1")
    assert ended.code == 0, ended.log
    result = ended.result
    manifest = json.loads((claim.models / "m1" / "model.json").read_text())
    assert (result["ok"], result["reason"], result["modelId"]) == (True, "Trained", "m1")
    assert result["adapterPath"] == "models/m1"
    assert result["registered"] is True
    assert result["heldOutRows"] == 2
    assert result["evaluation"]["heldOutRows"] == 2
    assert result["evaluation"]["tunedLoss"] == pytest.approx(manifest["metrics"]["tuned"]["loss"], rel=1e-5)
    assert result["mlflowRunId"] == manifest["mlflow"]["run_id"]
    assert Registry(claim.models).verify("m1") == []
    assert (claim.models / ".mlflow" / "m1" / "mlflow.db").is_file()  # the private store outlives the publication
    assert not (claim.models / ".work" / "m1").exists()

    assert claim.run("report", model_id="m1").result == result
    again = claim.run("train", training=SHORT, model_id="m1")
    assert (again.code, again.result) == (0, result)


def test_sigterm_ends_with_75_and_the_next_start_goes_on(claim: Claim) -> None:
    training = {"maxSteps": 400, "batchSize": 4, "epochs": 50}
    metrics = claim.models / ".work" / "m" / "metrics.jsonl"
    process = claim.start("train", training=training)
    stopped = claim.stop_when(process, lambda: metrics.exists() and metrics.stat().st_size > 0)
    assert stopped.code == 75, stopped.log
    assert stopped.result["reason"] == "Stopped"
    assert not (claim.models / "m").exists()
    steps = max(line["step"] for line in read_metrics(metrics))
    assert steps < 400

    unfinished = claim.run("report")
    assert (unfinished.code, unfinished.result["reason"]) == (75, "Unfinished")
    assert f"step {steps} of 400" in unfinished.result["message"]

    process = claim.start("train", training=training)
    again = claim.stop_when(process, lambda: max(line["step"] for line in read_metrics(metrics)) > steps)
    assert again.code == 75, again.log
    assert min(line["step"] for line in read_metrics(metrics)) == 1


def test_sigterm_before_anything_is_loaded_ends_with_75(claim: Claim) -> None:
    process = claim.start("train", training=SHORT)
    ended = claim.stop_when(process, (claim.models / ".work" / "m" / "run.json").exists)
    assert ended.code == 75
    assert ended.result["reason"] == "Stopped"


def test_missing_cuda_ends_with_75_where_a_gpu_is_required(claim: Claim) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    ended = claim.run("train", training=SHORT, gpus=1, environment={"LLM_TUNING_REQUIRE_GPU": "1"})
    assert ended.code == 75, ended.log
    assert ended.result["reason"] == "GPUUnavailable"
    said = ended.result["message"]
    assert said.startswith("GPU 0 was asked for, but torch sees none: ")
    assert said.endswith("mend that, or set spec.resources.gpus to 0")
    assert "cuda:0" not in said


A_FULL_CARD = """
import torch
def backward(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
torch.Tensor.backward = backward
torch.cuda.mem_get_info = lambda _: (1 << 30, 24 << 30)
torch.cuda.memory_reserved = lambda _: OWN << 30
"""
"""Run as the interpreter starts: torch's error stands in for a card, which this machine does not have."""


@pytest.mark.parametrize(
    ("own", "outcome", "said"),
    [
        (22, (64, "InvalidInput"), "spec.training.maxTokensPerPass: is 512, with which GPU "),
        (9, (75, "GPUUnavailable"), "of which this run held 10.0 GiB and other processes 13.0 GiB"),
    ],
    ids=["this run", "others"],
)
def test_gpu_memory_that_ran_out_is_final_unless_others_hold_it(
    claim: Claim, tmp_path: Path, own: int, outcome: tuple[int, str], said: str
) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "card/sitecustomize.py").write_text(A_FULL_CARD.replace("OWN", str(own)))
    training = SHORT | {"maxTokensPerPass": 512}
    ended = claim.run("train", training=training, environment={"PYTHONPATH": str(tmp_path / "card")})
    assert (ended.code, ended.result["reason"]) == outcome, ended.log
    assert said in ended.result["message"]
    assert " ran out of memory in training (24.0 GiB, " in ended.result["message"]


def test_credentials_are_in_no_file_log_or_result(claim: Claim) -> None:
    secret = "canary-7f3a"
    ended = claim.run(
        "train",
        training=SHORT,
        tracking={"uri": f"http://someone:{secret}@127.0.0.1:9/mlflow?token={secret}"},
        environment={"MLFLOW_TRACKING_PASSWORD": secret, "MLFLOW_TRACKING_USERNAME": "someone"},
    )
    assert ended.code == 0, ended.log
    assert secret not in ended.text + ended.log
    assert (claim.models / "m" / "model.json").exists()
    assert files_with(claim.root, secret) == []


def test_nothing_is_trained_for_bad_input(claim: Claim) -> None:
    ended = claim.run("train", dataset={"path": "datasets/bad.jsonl"})
    assert (ended.code, ended.result["reason"]) == (64, "DatasetInvalid")
    assert ended.result["modelId"] == "m"
    assert not (claim.models / ".work" / "m").exists()


def test_a_start_adapter_that_nobody_resolved_is_refused(claim: Claim) -> None:
    ended = claim.run("train", model={"path": "base/tiny", "adapter": {"tuningJob": "earlier"}})
    assert (ended.code, ended.result["reason"]) == (64, "InvalidInput")


def test_what_nobody_expected_ends_with_1_and_its_type(claim: Claim) -> None:
    (claim.models / ".work").mkdir(parents=True)
    (claim.models / ".work" / "m").write_text("a file where a folder belongs")
    ended = claim.run("train")
    assert ended.code == 1
    assert ended.result["reason"] == "UnexpectedError"
    assert ended.result["message"].startswith(("FileExistsError: ", "NotADirectoryError: "))
    assert "Traceback" not in ended.text
    assert "Traceback" in ended.log


def test_a_report_of_nothing_ends_with_64(claim: Claim) -> None:
    ended = claim.run("report")
    assert (ended.code, ended.result["reason"]) == (64, "ModelNotFound")


def files_with(root: Path, word: str) -> list[Path]:
    """Files that hold `word`."""
    return [path for path in root.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
