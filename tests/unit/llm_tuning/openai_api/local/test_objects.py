"""TuningJobs as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api.tuning_job import PLURAL
from llm_tuning.client.errors import Conflict, NotFound
from llm_tuning.client.objects import TuningJobView
from llm_tuning.core import files
from llm_tuning.errors import InputError
from llm_tuning.openai_api.local.objects import Objects, merged
from llm_tuning.openai_api.local.runner import jobs_of, line_of

SPEC = {"model": {"path": "base/tiny"}, "dataset": {"path": "datasets/faq.json"}, "volume": {"claimName": "local"}}


def _job(name: str = "faq", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "TuningJob",
        "metadata": {"name": name, **metadata},
        "spec": SPEC,
    }


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    made = Objects(tmp_path / "api")
    yield made
    made.close()


def test_an_object_is_there_for_the_next_server(objects: Objects, tmp_path: Path) -> None:
    made = objects.create(PLURAL, _job(labels={"a": "b"}))
    objects.close()
    later = Objects(tmp_path / "api")
    assert later.read(PLURAL, "faq") == made
    assert TuningJobView.of(made).uid
    assert [raw["metadata"]["name"] for raw in later.list(PLURAL, {"a": "b"})] == ["faq"]
    assert later.list(PLURAL, {"a": "c"}) == []
    later.close()


def test_a_name_is_taken_once_and_a_wrong_object_leaves_nothing(objects: Objects, tmp_path: Path) -> None:
    objects.create(PLURAL, _job())
    with pytest.raises(Conflict):
        objects.create(PLURAL, _job())
    with pytest.raises(InputError, match=r"spec\.model"):
        objects.create(PLURAL, {**_job("other"), "spec": {**SPEC, "model": {}}})
    with pytest.raises(NotFound):
        objects.read(PLURAL, "other")
    assert [path.name for path in (tmp_path / "api" / PLURAL).iterdir()] == ["faq.json"]


def test_a_change_is_merged_and_counted(objects: Objects) -> None:
    objects.create(PLURAL, _job(annotations={"a": "b"}))
    changed = objects.change(
        PLURAL, "faq", {"metadata": {"annotations": {"a": None, "c": "d"}}, "spec": {"suspend": True}}
    )
    assert changed["metadata"]["annotations"] == {"c": "d"}
    assert (changed["metadata"]["generation"], changed["metadata"]["resourceVersion"]) == (2, "2")
    assert objects.change(PLURAL, "faq", {"spec": {"suspend": True}}) == changed
    with pytest.raises(InputError, match=r"spec\.suspend"):
        objects.change(PLURAL, "faq", {"spec": {"suspend": "perhaps"}})
    with pytest.raises(Conflict):
        objects.change(PLURAL, "faq", {"metadata": {"resourceVersion": "1"}, "spec": {"suspend": False}})
    objects.set_status(PLURAL, "faq", {"phase": "Queued", "conditions": []})
    assert objects.read(PLURAL, "faq")["spec"]["suspend"] is True


def test_a_kill_in_the_middle_of_a_write_leaves_the_object_of_before(
    objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = objects.create(PLURAL, _job())

    def killed(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(files.os, "fsync", killed)
    for write in (
        lambda: objects.change(PLURAL, "faq", {"spec": {"suspend": True}}),
        lambda: objects.set_status(PLURAL, "faq", {"phase": "Failed"}),
        lambda: objects.create(PLURAL, _job("other")),
    ):
        with pytest.raises(SystemExit):
            write()
    monkeypatch.undo()
    assert objects.list(PLURAL) == [before]
    assert objects.create(PLURAL, _job("other"))["metadata"]["name"] == "other"


def test_one_server_has_the_folder(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in use by another"):
        Objects(tmp_path / "api")
    objects.close()
    Objects(tmp_path / "api").close()


@pytest.mark.parametrize(
    ("target", "patch", "want"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        (None, {"a": None}, {}),
    ],
)
def test_patches_merge_as_rfc_7386_says(target: Any, patch: Any, want: Any) -> None:
    kept = json.dumps(target)
    assert merged(target, patch) == want
    assert json.dumps(target) == kept


def test_jobs_of_one_second_stand_in_line_as_they_came(objects: Objects) -> None:
    names = [f"job-{number}" for number in (3, 1, 2, 5, 4)]
    for name in names:
        made = objects.create(PLURAL, _job(name))
        made["metadata"]["creationTimestamp"] = "2026-12-01T08:00:00Z"
        files.write_json(objects.folder / PLURAL / f"{name}.json", made)
    assert [job.name for job in line_of(jobs_of(objects))] == names
