"""Checkpoints are whole or not there, whenever the process dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm_tuning.errors import InputError, TryAgain
from llm_tuning.run.checkpoints import FILES, latest_checkpoint, newest_whole, require_room_beside, save_checkpoint

Usage = namedtuple("Usage", "total used free")


def write_state(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "optimizer").write_bytes(b"o" * 1000)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_is_found_again_under_its_step(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "checkpoints", 12, write_state)
    assert latest_checkpoint(tmp_path / "checkpoints") == (12, saved)
    assert names(saved) == ["files.json", "optimizer", "weights"]


def test_nothing_saved_means_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "never") is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file is no checkpoint")
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_is_the_one_with_most_steps_not_the_last_by_name(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, write_state, keep=3)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest[0] == 100


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, write_state, keep=2)
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5"]


def test_a_failed_save_leaves_the_earlier_checkpoint_and_no_rest(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, write_state)

    def fails_half_way(folder: Path) -> None:
        (folder / "weights").write_bytes(b"w")
        raise OSError(28, "No space left on device")

    with pytest.raises(TryAgain, match="no space is left in"):
        save_checkpoint(tmp_path, 2, fails_half_way)
    assert names(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("says", [OSError(errno.EDQUOT, "Disk quota exceeded"), RuntimeError("unexpected pos 2 vs 1")])
def test_a_save_without_room_says_so_though_there_is_room_once_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Exception
) -> None:
    room = {True: 0, False: 1 << 30}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 31, 0, room[(tmp_path / ".saving-1").exists()]))

    def fails_half_way(folder: Path) -> None:
        (folder / "weights").write_bytes(b"w")
        raise says

    with pytest.raises(TryAgain, match=r"^output_dir: no space is left in .*; make room there") as caught:
        save_checkpoint(tmp_path, 1, fails_half_way)
    assert caught.value.reason == "VolumeFull"
    assert names(tmp_path) == []


def test_the_next_checkpoint_is_asked_room_for_once_what_a_killed_save_left_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = save_checkpoint(tmp_path, 1, write_state)
    size = sum(path.stat().st_size for path in newest.iterdir())
    left = tmp_path / ".saving-2"
    left.mkdir()
    free = {"total": size * 3, "left": size}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free["total"], 0, free["left"] - size * left.exists()))
    require_room_beside(newest)
    assert names(tmp_path) == ["checkpoint-1"]
    free["left"] = size - 1
    with pytest.raises(TryAgain, match=r"\(a checkpoint of this run takes 0.0 MiB, 0.0 MiB are free\)"):
        require_room_beside(newest)
    free["total"] = 0  # a file system that knows no sizes
    require_room_beside(newest)


def test_everything_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []

    def keep(path: Path) -> None:
        flushed.append((path.name, (tmp_path / "checkpoint-1").exists()))

    for room in ("core.files", "run.checkpoints"):
        monkeypatch.setattr(f"llm_tuning.{room}.flush", keep)
    save_checkpoint(tmp_path, 1, write_state)
    before = {name for name, named in flushed if not named}
    assert before == {"weights", "optimizer", FILES, ".saving-1"}
    assert flushed[-1] == (tmp_path.name, True), "then the folder, which holds the name"


def test_saving_a_step_again_keeps_the_whole_one_that_is_there(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, write_state)
    save_checkpoint(tmp_path, 3, lambda folder: (folder / "other").touch() or None)
    assert names(tmp_path / "checkpoint-3") == [FILES, "optimizer", "weights"]


def test_a_removal_killed_half_way_is_never_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, write_state)
    monkeypatch.setattr("shutil.rmtree", lambda *_args, **_options: None)  # as if killed before anything was removed
    save_checkpoint(tmp_path, 2, write_state, keep=1)
    monkeypatch.undo()
    assert names(tmp_path) == [".removed-checkpoint-1", "checkpoint-2"]
    save_checkpoint(tmp_path, 3, write_state, keep=2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]


# Damage that a disk or a network volume does to a checkpoint that was whole


def write_sft(folder: Path) -> None:
    """The files of an sft checkpoint, in their forms."""
    save_file({"lora": np.arange(64, dtype=np.float32)}, folder / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data", os.urandom(500))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1}))


def write_ppo(folder: Path) -> None:
    with zipfile.ZipFile(folder / "ppo_state.pt", "w") as archive:
        archive.writestr("archive/data", os.urandom(500))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _gone(path: Path) -> None:
    path.unlink()


def _shape(path: Path) -> None:
    """A header that speaks of more elements than there are."""
    path.write_bytes(path.read_bytes().replace(b'"shape":[64]', b'"shape":[99]'))


def _other_json(path: Path) -> None:
    path.write_text('{"global_step":')


NAMES = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
DAMAGE: list[tuple[Callable[[Path], None], Callable[[Path], object], str]] = [
    *((write_sft, spoil, name) for name in NAMES for spoil in (_cut, _emptied, _zeros, _gone)),
    *((write_ppo, spoil, "ppo_state.pt") for spoil in (_cut, _emptied, _zeros, _gone, _one_byte)),
    *((write_sft, _one_byte, name) for name in ("optimizer.pt", "rng_state.pth")),
    (write_sft, _shape, "adapter_model.safetensors"),
    (write_sft, _other_json, "trainer_state.json"),
]


@pytest.mark.parametrize("before", [False, True], ids=["with hashes", "of the version before"])
@pytest.mark.parametrize(
    ("write", "spoil", "name"), DAMAGE, ids=[f"{spoil.__name__[1:]} {name}" for _, spoil, name in DAMAGE]
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_older_one(  # noqa: PLR0917 - a table
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    write: Callable[[Path], None],
    spoil: Callable[[Path], object],
    name: str,
    before: bool,
) -> None:
    for step in (5, 10):
        saved = save_checkpoint(tmp_path, step, write)
        if before:
            (saved / FILES).unlink()
    assert newest_whole(tmp_path) == (10, tmp_path / "checkpoint-10")
    spoil(tmp_path / "checkpoint-10" / name)
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == (5, tmp_path / "checkpoint-5")
    (warning,) = caplog.messages
    assert f"checkpoint {tmp_path / 'checkpoint-10'} is damaged ({name} " in warning
    assert warning.endswith("resuming from checkpoint-5")
    assert latest_checkpoint(tmp_path) == (5, tmp_path / "checkpoint-5"), "what every rank finds"
    again = save_checkpoint(tmp_path, 10, write)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5"]
    assert newest_whole(tmp_path) == (10, again), "the damaged one is not taken for what is saved there"


@pytest.mark.parametrize("spoil", [_one_byte, _cut])
def test_damage_that_the_forms_do_not_show_is_found_by_the_hashes(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, write_state)
    spoil(tmp_path / "checkpoint-10/weights")
    assert newest_whole(tmp_path) == (5, tmp_path / "checkpoint-5")


def test_a_list_of_files_that_is_damaged_itself(tmp_path: Path) -> None:
    for step, spoil in ((5, None), (10, _emptied), (15, _cut), (20, _zeros)):
        saved = save_checkpoint(tmp_path, step, write_sft, keep=4)
        if spoil is not None:
            spoil(saved / FILES)
    assert newest_whole(tmp_path) == (5, tmp_path / "checkpoint-5")


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, write_sft)
    (tmp_path / "checkpoint-10").mkdir()
    assert newest_whole(tmp_path) == (5, tmp_path / "checkpoint-5")


def test_where_all_are_damaged_the_run_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    for step in (5, 10):
        _cut(save_checkpoint(tmp_path, step, write_sft) / "optimizer.pt")
    for _ in range(2):
        with pytest.raises(InputError) as refused:
            newest_whole(tmp_path)
        said = str(refused.value)
        assert said.startswith(f"{tmp_path}: holds no whole checkpoint (checkpoint-10: optimizer.pt is not as it was")
        assert said.endswith(f"remove {tmp_path} to train from the first step again")
        assert names(tmp_path) == ["checkpoint-10", "checkpoint-5"]


def test_no_checkpoint_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "none") is None
