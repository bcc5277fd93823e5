from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.pod_process import Claim


def test_a_good_run_passes_with_counts_and_leaves_the_hash_of_the_base(claim: Claim) -> None:
    ended = claim.run("check")
    assert ended.code == 0, ended.log
    assert ended.result["ok"] is True
    assert ended.result["reason"] == "DatasetValid"
    assert ended.result["message"].startswith("40 of 40 rows are kept; tokens a row: p50 ")
    assert len(json.loads((claim.models / ".cache" / "base_hashes.json").read_text())) == 1
    assert not (claim.models / ".work").exists()


def test_rows_to_evaluate_on_are_counted_and_those_that_training_has_seen_are_said(claim: Claim) -> None:
    datasets = claim.root / "datasets"
    seen = (datasets / "good.jsonl").read_text().splitlines()[0]
    (datasets / "eval.jsonl").write_text(json.dumps({"prompt": "another one", "output": "yes"}) + f"\n{seen}\n")
    ended = claim.run("check", dataset={"path": "datasets/good.jsonl", "evaluation": "datasets/eval.jsonl"})
    assert ended.code == 0, ended.log
    assert "; evaluation: 1 of 2 rows is scored" in ended.result["message"]
    assert "Warning: evaluation: row 2 has its prompt among the training rows" in ended.result["message"]


def test_a_link_of_the_rows_to_evaluate_on_out_of_the_claim_is_refused(claim: Claim, tmp_path: Path) -> None:
    (tmp_path / "outside.jsonl").write_text("")
    (claim.root / "datasets" / "eval.jsonl").symlink_to(tmp_path / "outside.jsonl")
    ended = claim.run("check", dataset={"path": "datasets/good.jsonl", "evaluation": "datasets/eval.jsonl"})
    assert ended.result["reason"] == "PathOutsideVolume"
    assert "spec.dataset.evaluation" in ended.result["message"]


def test_skipped_rows_and_cut_ones_are_counted(claim: Claim) -> None:
    dataset = {"path": "datasets/bad.jsonl", "skipInvalidRows": True}
    ended = claim.run("check", dataset=dataset, training={"maxLength": 36})
    assert ended.code == 0, ended.log
    message = ended.result["message"]
    assert "40 of 43 rows are kept; 3 refused (" in message
    assert "EmptyField in row 6" in message
    assert "maxLength 36 cuts" in message


@pytest.mark.parametrize(
    ("given", "reason", "said"),
    [
        (
            {"dataset": {"path": "datasets/bad.jsonl"}},
            "DatasetInvalid",
            "spec.dataset.path: datasets/bad.jsonl, row 5:",
        ),
        ({"dataset": {"path": "datasets/none.jsonl"}}, "DatasetNotFound", "datasets/none.jsonl: does not exist"),
        (
            {"dataset": {"path": "datasets/good.jsonl", "evaluation": "datasets/none.jsonl"}},
            "DatasetNotFound",
            "spec.dataset.evaluation: datasets/none.jsonl: does not exist",
        ),
        (
            {"dataset": {"path": "datasets/good.jsonl", "evaluation": "datasets/bad.jsonl"}},
            "DatasetInvalid",
            "spec.dataset.evaluation: datasets/bad.jsonl, row 5:",
        ),
        ({"model": {"path": "base/none"}}, "BaseModelNotFound", "spec.model.path: base/none: does not exist"),
        (
            {"model": {"path": "Qwen/Qwen3-0.6B"}},
            "BaseModelNotFound",
            "does not exist; it looks like a name on the hub: set spec.model.uri to hf://Qwen/Qwen3-0.6B",
        ),
        ({"model": {"path": "datasets"}}, "BaseModelInvalid", "has no config.json"),
        ({"mode": "ppo"}, "DatasetInvalid", "MissingReward"),
        (
            {"model": {"path": "base/tiny", "adapter": {"modelId": "none"}}, "start_model_id": "none"},
            "AdapterNotFound",
            "spec.model.adapter.modelId: 'none' is no finished adapter in models; see models/registry.json",
        ),
        (
            {"tracking": {"uri": "./mlruns"}},
            "TrackingInvalid",
            "spec.tracking.uri: must be a server's URI, got './mlruns'",
        ),
        ({"tracking": {"uri": "tracking:5000"}}, "TrackingInvalid", "spec.tracking.uri: must be a folder or a URI"),
    ],
    ids=[
        "rows",
        "no dataset",
        "no evaluation",
        "rows to evaluate on",
        "no base",
        "a hub's name",
        "bad base",
        "no rewards",
        "no adapter",
        "local store",
        "no scheme",
    ],
)
def test_bad_input_ends_with_64_and_names_the_field(
    claim: Claim, given: dict[str, Any], reason: str, said: str
) -> None:
    ended = claim.run("check", **given)
    assert ended.code == 64
    assert ended.result["ok"] is False
    assert ended.result["reason"] == reason
    assert said in ended.result["message"]
    assert str(claim.root) not in ended.result["message"]


def test_all_that_is_wrong_is_said_at_once(claim: Claim) -> None:
    ended = claim.run("check", model={"path": "base/none"}, dataset={"path": "datasets/bad.jsonl"})
    assert ended.result["reason"] == "BaseModelNotFound"
    assert "spec.model.path: base/none" in ended.result["message"]
    assert "spec.dataset.path: datasets/bad.jsonl, row 5" in ended.result["message"]


def test_no_word_of_the_dataset_is_in_log_or_result(claim: Claim) -> None:
    word = "xylophone"
    rows = [{"prompt": word, "output": word}, {"prompt": word, "output": ""}, {"prompt": word, "output": [word]}]
    (claim.root / "datasets" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = claim.run("check", dataset={"path": "datasets/rows.jsonl"})
    assert ended.code == 64
    assert word not in ended.text + ended.log


@pytest.mark.parametrize(
    ("link", "field"),
    [
        ("datasets/good.jsonl", "spec.dataset.path"),
        ("base/tiny", "spec.model.path"),
        ("base/tiny/chat_template.jinja", "spec.model.path"),
        ("models", "models"),
    ],
)
def test_a_link_out_of_the_claim_is_refused(claim: Claim, tmp_path: Path, link: str, field: str) -> None:
    at, outside = claim.root / link, tmp_path / "outside"
    if at.exists():
        at.rename(outside)
    else:
        outside.mkdir()
    at.symlink_to(outside)
    ended = claim.run("check")
    assert ended.code == 64
    assert ended.result["reason"] == "PathOutsideVolume"
    assert field in ended.result["message"]


def test_a_link_inside_the_claim_is_followed(claim: Claim) -> None:
    (claim.root / "datasets" / "link.jsonl").symlink_to("good.jsonl")
    assert claim.run("check", dataset={"path": "datasets/link.jsonl"}).code == 0


def test_rows_of_a_config_map_are_read_through_the_links_that_the_kubelet_makes(claim: Claim, tmp_path: Path) -> None:
    mounted = tmp_path / "dataset"
    (mounted / "..v1").mkdir(parents=True)
    (claim.root / "datasets" / "bad.jsonl").rename(mounted / "..v1" / "rows.jsonl")
    (mounted / "..data").symlink_to("..v1")
    (mounted / "rows.jsonl").symlink_to("..data/rows.jsonl")
    dataset = {"configMap": {"name": "rows", "key": "rows.jsonl"}}
    ended = claim.run("check", dataset=dataset, environment={"LLM_TUNING_DATASET_DIR": str(mounted)})
    assert ended.result["reason"] == "DatasetInvalid"
    assert ended.result["message"].startswith("spec.dataset.configMap: rows.jsonl, row 5: ")


def test_a_list_in_a_config_map_is_refused_with_what_can_be_done(claim: Claim, tmp_path: Path) -> None:
    """A key has no `#train`: the API server refuses it."""
    (tmp_path / "rows.json").write_text('{"train": [{"prompt": "q", "output": "a"}], "test": []}')
    dataset = {"configMap": {"name": "rows", "key": "rows.json"}}
    ended = claim.run("check", dataset=dataset, environment={"LLM_TUNING_DATASET_DIR": str(tmp_path)})
    want = "is one JSON object that holds lists of rows; keep the rows alone in the key, or put the file on the claim"
    assert ended.result["message"] == f"spec.dataset.configMap: rows.json: {want}"


def test_a_claim_that_cannot_be_written_has_its_reason(claim: Claim) -> None:
    claim.models.write_text("a file where the folder belongs")
    ended = claim.run("check")
    assert ended.code == 64
    assert ended.result["reason"] == "VolumeNotWritable"
    assert ended.result["message"].startswith("spec.volume.claimName: models: cannot be written")


@pytest.mark.parametrize("text", ["", "{}", "[", '{"modelId":"../m","gpus":0,"spec":{}}'])
def test_broken_input_ends_with_64(claim: Claim, text: str) -> None:
    ended = claim.run("check", environment={"LLM_TUNING_POD": text})
    assert ended.code == 64
    assert ended.result["reason"] == "InvalidInput"


def test_an_unknown_subcommand_ends_with_64(claim: Claim) -> None:
    assert claim.run("chekc").code == 64


def test_sigterm_ends_a_check_with_75(claim: Claim) -> None:
    row = json.dumps({"prompt": "What is it?", "output": "It is so. " * 40}) + "\n"
    (claim.root / "datasets" / "long.jsonl").write_text(row * 60_000)
    process = claim.start("check", dataset={"path": "datasets/long.jsonl"})
    ended = claim.stop_when(process, (claim.models / ".cache" / "base_hashes.json").exists)
    assert ended.code == 75
    assert ended.result["reason"] == "Stopped"


def test_credentials_are_in_no_word_of_it(claim: Claim) -> None:
    secret = "canary-7f3a"
    ended = claim.run(
        "check",
        tracking={"uri": f"nonsense://user:{secret}@tracking:5000/x"},
        environment={"MLFLOW_TRACKING_PASSWORD": secret},
    )
    assert ended.code == 64
    assert secret not in ended.text + ended.log


def test_a_check_takes_less_than_a_second(claim: Claim) -> None:
    """CPU seconds of the process and its children, of the best of three: other work on the machine does not count."""
    spent = []
    for _ in range(3):
        before = os.times()
        assert claim.run("check").code == 0
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    print("check: CPU seconds", spent)
    assert min(spent) < 1.0
