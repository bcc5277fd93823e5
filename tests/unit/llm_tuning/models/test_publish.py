"""Publishing: one rename, safe to repeat, killed at every step, on a full and on a read-only disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llm_tuning.errors import InputError, TryAgain
from llm_tuning.models.manifest import file_hashes, read_manifest
from llm_tuning.models.publish import is_whole, publish, storage_errors
from llm_tuning.run.checks import OUTPUT
from tests.support.models import make_manifest, make_stage, publish_model


def test_a_published_model_holds_its_files_and_a_manifest_of_them(models: Path) -> None:
    manifest = publish_model(models, "a", weights=b"abc")
    assert read_manifest(models / "a") == manifest
    assert manifest.files == file_hashes(models / "a")
    assert manifest.weight_hash == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest.size == len(b"abc") + len("{}")
    assert not (models / ".work" / "a" / "stage").exists()


def test_publishing_again_after_a_crash_gives_the_same_result(models: Path) -> None:
    first = publish_model(models, "a")
    again = publish(models / ".work" / "a" / "stage", models / "a", make_manifest("a", created_at="later"))
    assert again == first


def test_another_configuration_is_never_written_over_a_finished_model(models: Path) -> None:
    first = publish_model(models, "a")
    stage = make_stage(models, "a.other")
    with pytest.raises(InputError, match="finished model of another configuration"):
        publish(stage, models / "a", make_manifest("a", config_hash="f" * 64))
    assert read_manifest(models / "a") == first
    assert stage.is_dir()


@pytest.mark.parametrize("kind", ["directory", "empty directory", "file", "dangling link"])
def test_what_somebody_left_under_the_name_is_refused_and_kept(models: Path, kind: str) -> None:
    target = models / "a"
    if "directory" in kind:
        target.mkdir()
        if kind == "directory":
            (target / "notes.txt").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nowhere")
    stage = make_stage(models, "a")
    with pytest.raises(InputError, match=r"models/a: is there already and holds no model\.json"):
        publish(stage, target, make_manifest("a"))
    assert os.path.lexists(target)
    assert not is_whole(target)
    assert kind != "directory" or (target / "notes.txt").read_text() == "mine"


def test_a_name_taken_between_the_look_and_the_rename_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def somebody_is_quicker(stage: Path, target: Path) -> Path:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
        return rename(stage, target)

    monkeypatch.setattr(Path, "rename", somebody_is_quicker)
    with pytest.raises(InputError, match="is there already"):
        publish(make_stage(models, "a"), models / "a", make_manifest("a"))
    assert [path.name for path in (models / "a").iterdir()] == ["notes.txt"]


def test_a_half_written_manifest_of_a_killed_process_is_not_published(models: Path) -> None:
    stage = make_stage(models, "a")
    (stage / ".model.json.4711.tmp").write_text('{"model_id"')
    manifest = publish(stage, models / "a", make_manifest("a"))
    assert set(manifest.files) == {"adapter_model.safetensors", "adapter_config.json"}
    assert not list((models / "a").glob(".*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_may_have_room_again(tmp_path: Path, number: int) -> None:
    with pytest.raises(TryAgain) as caught, storage_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.reason == "VolumeFull"
    assert str(caught.value).startswith(
        f"output_dir: no space is left in {tmp_path} ({os.strerror(number)}); make room"
    )


def test_a_disk_that_takes_nothing_is_a_problem_of_the_output_folder(tmp_path: Path) -> None:
    """By that field a TuningJob tells VolumeReadOnly from other bad input."""
    with pytest.raises(InputError) as refused, storage_errors(tmp_path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    (problem,) = refused.value.problems
    assert problem.field == OUTPUT
