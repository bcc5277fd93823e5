"""Ids and names."""

from __future__ import annotations

import re
import time

import pytest

from llm_tuning.api.inference_service import MODEL_NAME
from llm_tuning.api.kube import SUBDOMAIN
from llm_tuning.openai_api import names
from llm_tuning.openai_api.errors import ApiError


def test_a_jobs_id_is_the_name_of_a_tuning_job_and_follows_from_the_idempotency_key() -> None:
    first = names.new_job_id("alice", "a")
    assert re.fullmatch(SUBDOMAIN, first)
    assert len(first) == 26
    assert names.new_job_id("alice", "a") == first
    others = {names.new_job_id("bob", "a"), names.new_job_id("alice", "b"), names.new_job_id("alice", None)}
    assert len(others | {first, names.new_job_id("alice", None)}) == 5


def test_ids_of_files_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for moment in (1, 31, 32, 1_795_939_200_000, 1_795_939_200_001, 2_500_000_000_000):
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000_000)
        made.append(names.new_file_id())
    assert made == sorted(made)
    assert all(names.FILE_ID.fullmatch(each) for each in made)


def test_the_path_of_an_upload_leads_back_to_its_id() -> None:
    file_id = names.new_file_id()
    assert names.file_id_of(names.upload_path(file_id)) == file_id
    for other in (None, "", "datasets/faq.json", f"datasets/uploads/{file_id}", "datasets/uploads/x/data.jsonl"):
        assert names.file_id_of(other) is None


def test_the_longest_name_of_a_model_is_still_one_of_a_route() -> None:
    base, organization = "b" * names.NAME_CHARACTERS, "o" * 4
    name = names.fine_tuned_model(base, organization, names.check_suffix("S" * 64), "ftjob-1")
    assert len(name) == 128
    assert re.fullmatch(MODEL_NAME, name)
    assert re.fullmatch(MODEL_NAME, names.fine_tuned_model("gpt-4.1-mini", "acme", "", "ftjob-1"))


@pytest.mark.parametrize("suffix", ["a b", "ä", "a:b", "a/b", "a" * 65])
def test_a_suffix_that_is_none_is_refused(suffix: str) -> None:
    with pytest.raises(ApiError) as caught:
        names.check_suffix(suffix)
    assert caught.value.param == "suffix"
