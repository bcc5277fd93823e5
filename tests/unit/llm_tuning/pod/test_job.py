from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_tuning.pod.job import PodJob
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
