"""The registry on a full and on a read-only disk."""

from __future__ import annotations

from pathlib import Path

from tests.support.small_disk import run_on_small_disk

READ_ONLY = """
from llm_tuning.errors import InputError
from llm_tuning.models.registry import Registry
from tests.support.models import publish_model
publish_model(disk, "a")
Registry(disk).heal()
publish_model(disk, "b")
remount("ro")
result = Registry(disk).heal()
print([entry["model_id"] for entry in result.entries], result.messages)
try:
    Registry(disk).rebuild()
except InputError as error:
    print(error)
"""


def test_a_read_only_volume_is_read_whole(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    result, refusal = run_on_small_disk(disk, READ_ONLY).splitlines()
    complaint = f"{disk}/registry.json is out of date and cannot be written (Read-only file system)"
    assert result == f"{['base_tiny_ba5eba5e', 'a', 'b']} {(complaint,)}"
    assert refusal.startswith(f"{disk}/registry.json: cannot be written (Read-only file system")


FULL_DISK = """
from llm_tuning.models.registry import Registry
from tests.support.models import publish_model
(disk / "registry.json").write_text('{"models":[{"model_id":"x","text":"%s"}]}' % ("x" * 200_000))
publish_model(disk, "a")
filler = fill()
before = (disk / "registry.json").read_bytes()
result = Registry(disk).heal()
print([entry["model_id"] for entry in result.entries], result.messages)
print(before == (disk / "registry.json").read_bytes(), list(disk.glob(".registry*")))
filler.unlink()
print(Registry(disk).heal().added)
"""


def test_a_full_disk_loses_nothing_and_the_next_command_heals(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    result, unharmed, added = run_on_small_disk(disk, FULL_DISK, kibibytes=600).splitlines()
    complaint = f"{disk}/registry.json is out of date and cannot be written (No space left on device)"
    assert result == f"{['x', 'base_tiny_ba5eba5e', 'a']} {(complaint,)}"
    assert unharmed == "True []"
    assert added == "('base_tiny_ba5eba5e', 'a')"
