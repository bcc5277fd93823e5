"""Publishing killed at every step, on a full and on a read-only disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from llm_tuning.models.manifest import file_hashes, read_manifest
from llm_tuning.models.publish import is_whole, publish
from llm_tuning.models.registry import Registry
from tests.support.models import make_manifest, make_stage, publish_model
from tests.support.small_disk import run_on_small_disk


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def test_killed_at_any_call_a_model_is_whole_or_absent_and_the_next_start_finishes(models: Path) -> None:
    """The process kills itself before and after each call that changes the disk, one further each time."""
    publish_model(models, "earlier")
    Registry(models).heal()
    calls = 0
    while _publish_killed_at(models, f"m{calls}", calls):
        model_id = f"m{calls}"
        target = models / model_id
        if target.exists():
            manifest = read_manifest(target)
            assert manifest is not None
            assert manifest.files == file_hashes(target)
        on_disk = {path.name for path in models.iterdir() if is_whole(path)}
        assert {e["model_id"] for e in Registry(models).entries() if e["model_type"] != "base"} == on_disk
        publish(models / ".work" / model_id / "stage", target, make_manifest(model_id))
        assert Registry(models).get(model_id) is not None
        calls += 1
    assert calls > 20  # both of publishing and of the index, before and after


def _publish_killed_at(models: Path, model_id: str, call: int) -> bool:
    """Publish and register in a child that is killed at its `call`th point; False when it came to its end first."""
    stage = make_stage(models, model_id)
    child = os.fork()
    if child == 0:
        try:
            _die_at(call)
            publish(stage, models / model_id, make_manifest(model_id))
            Registry(models).heal()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _die_at(call: int) -> None:
    points = iter(range(10_000))

    def point() -> None:
        if next(points) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("open", "fsync", "rename", "replace", "unlink", "fchmod"):
        real = getattr(os, name)

        def wrapped(*args: object, real: object = real, **kwargs: object) -> object:
            point()
            result = real(*args, **kwargs)  # type: ignore[operator]
            point()
            return result

        setattr(os, name, wrapped)


FULL_DISK = """
from llm_tuning.errors import TryAgain
from llm_tuning.models.publish import publish
from llm_tuning.models.registry import Registry
from tests.support.models import make_manifest, make_stage, publish_model
stage = make_stage(disk, "a", b"w" * 100_000)
filler = fill()
try:
    publish(stage, disk / "a", make_manifest("a"))
except TryAgain as error:
    print(error)
print((disk / "a").exists(), stage.is_dir())
filler.unlink()
publish(stage, disk / "a", make_manifest("a"))
print(Registry(disk).get("a")["size"])
"""


def test_a_full_disk_is_one_sentence_and_the_next_start_publishes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    said, kept, size = run_on_small_disk(disk, FULL_DISK).splitlines()
    assert said.startswith(f"output_dir: no space is left in {disk} (No space left on device); make room")
    assert kept == "False True"
    assert size == "100002"


READ_ONLY = """
from llm_tuning.errors import InputError
from llm_tuning.models.publish import publish
from tests.support.models import make_manifest, make_stage
stage = make_stage(disk, "a")
remount("ro")
try:
    publish(stage, disk / "a", make_manifest("a"))
except InputError as error:
    print(error)
"""


def test_a_read_only_disk_is_one_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    said = run_on_small_disk(disk, READ_ONLY)
    assert said.startswith(f"{disk}: cannot be written (Read-only file system")
    assert said.endswith("give another with output_dir\n")
    assert said.count("\n") == 1
