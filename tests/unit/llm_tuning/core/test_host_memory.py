"""Free memory of the host, and of a container by the files that its cgroup has."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.core.host_memory import free_host_bytes

MIB = 2**20


def cgroup(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


V2 = {"memory.max": f"{9 * MIB}\n", "memory.current": f"{6 * MIB}\n"}
STAT = f"anon {3 * MIB}\ninactive_file {2 * MIB}\n"
V1 = {
    "memory/memory.limit_in_bytes": f"{9 * MIB}\n",
    "memory/memory.usage_in_bytes": f"{6 * MIB}\n",
    "memory/memory.stat": f"cache 1\ntotal_inactive_file {2 * MIB}\n",
}


@pytest.mark.parametrize("files", [V2 | {"memory.stat": STAT}, V1], ids=["version 2", "version 1"])
def test_a_container_has_what_its_limit_leaves_and_the_pages_of_files(tmp_path: Path, files: dict[str, str]) -> None:
    assert free_host_bytes(cgroup(tmp_path, files)) == 5 * MIB


@pytest.mark.parametrize(
    "files", [{}, V2 | {"memory.max": "max\n", "memory.stat": STAT}], ids=["no cgroup", "no limit"]
)
def test_without_a_limit_it_is_what_the_host_has(tmp_path: Path, files: dict[str, str]) -> None:
    assert free_host_bytes(cgroup(tmp_path, files)) > 100 * MIB


def test_use_above_the_limit_is_nothing_free(tmp_path: Path) -> None:
    assert free_host_bytes(cgroup(tmp_path, V2 | {"memory.current": f"{99 * MIB}", "memory.stat": STAT})) == 0
