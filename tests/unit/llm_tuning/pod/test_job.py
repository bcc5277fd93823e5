from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llm_tuning.data.reading import check_readable
from llm_tuning.errors import InputError
from llm_tuning.pod.contract import PodReason
from llm_tuning.pod.job import OutsideVolume, PodJob
from llm_tuning.pod.wording import message_of, reason_of
from tests.support.pod_process import spec


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PodJob:
    monkeypatch.setenv("LLM_TUNING_ROOT", str(tmp_path))
    monkeypatch.setenv("LLM_TUNING_POD", json.dumps({"modelId": "m", "gpus": 2, "spec": spec()}))
    return PodJob.from_environment()


def test_a_run_is_on_all_gpus_of_the_pod(job: PodJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_TUNING_REQUIRE_GPU", "1")
    assert job.options().devices == "0,1"


def test_as_many_processes_stand_in_for_gpus_where_the_operator_allows_it(job: PodJob) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    assert job.options().devices == "cpu,cpu"


def test_paths_are_on_the_claim_and_the_store_is_the_runs_own(job: PodJob, tmp_path: Path) -> None:
    config = job.config()
    assert config.model.path == str(tmp_path / "base/tiny")
    assert config.dataset.path == str(tmp_path / "datasets/good.jsonl")
    assert config.tracking.uri == str(tmp_path / "models/.mlflow/m")
    assert job.options().output_dir == str(tmp_path / "models")


def with_dataset(monkeypatch: pytest.MonkeyPatch, path: str) -> PodJob:
    given = {"modelId": "m", "gpus": 0, "spec": spec(dataset={"path": path})}
    monkeypatch.setenv("LLM_TUNING_POD", json.dumps(given))
    return PodJob.from_environment()


@pytest.mark.parametrize(
    "path", ["datasets/chats", "datasets/chats/*.jsonl", "datasets/chats#train", "rows.json#train"]
)
def test_every_file_of_a_data_set_is_on_the_claim(
    job: PodJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    chats, rows = tmp_path / "datasets/chats", tmp_path / "rows.json"
    chats.mkdir(parents=True)
    for file in (rows, chats / "train-1.jsonl", chats / "train-2.jsonl"):
        file.write_text("{}")
    config = with_dataset(monkeypatch, path).config()
    assert config.dataset.path == f"{tmp_path}/{path}"
    for file in (rows, chats / "train-2.jsonl"):
        file.unlink()
        file.symlink_to("/etc/hostname")
    with pytest.raises(OutsideVolume, match="leads out of the volume by a symbolic link"):
        with_dataset(monkeypatch, path).config()


@pytest.mark.parametrize("path", ["out", "out/*", "out#train", "out/**/*.json"])
def test_a_folder_that_is_a_link_out_of_the_claim_is_not_even_listed(
    job: PodJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(OutsideVolume) as refused:
        with_dataset(monkeypatch, path).config()
    assert "passwd" not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("none.json", PodReason.DATASET_NOT_FOUND),
        ("none/*.json", PodReason.DATASET_NOT_FOUND),
        ("none.json#train", PodReason.DATASET_NOT_FOUND),
        ("datasets", PodReason.DATASET_INVALID),
        ("datasets/*.txt", PodReason.DATASET_INVALID),
        ("datasets/a.txt#train", PodReason.DATASET_INVALID),
    ],
)
def test_a_data_set_that_is_not_there_is_told_from_one_that_is_no_good(
    job: PodJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, reason: PodReason
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/a.txt").write_text("prose")
    given = with_dataset(monkeypatch, path)
    with pytest.raises(InputError) as refused:
        check_readable(Path(given.config().dataset.path))
    error = InputError([replace(problem, field="dataset.path") for problem in refused.value.problems])
    assert reason_of(error, given) is reason
    said = "datasets/a.txt" if "txt" in path else path
    assert message_of(error, given).startswith(f"spec.dataset.path: {said}")
