"""What is left on the host when a node's processes have gone: its cgroups, its cable and its sockets."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CLEAN_SECONDS = 20.0


def cgroup_folders(cgroup: str) -> list[Path]:
    """The folder of `cgroup` in each hierarchy that has it."""
    return [folder for root in hierarchies() if (folder := root / cgroup.lstrip("/")).is_dir()]


def hierarchies() -> list[Path]:
    """The roots of all cgroup hierarchies: one for each controller of v1, or the one of v2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [folder for folder in CGROUPS.iterdir() if (folder / "cgroup.procs").exists() and not folder.is_symlink()]


def make_cgroups(cgroup: str) -> None:
    """The parent of the pods' cgroups; in cpuset it has to be given its processors and memory nodes."""
    for root in hierarchies():
        folder = root / cgroup.lstrip("/")
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (root / name).exists() and not (folder / name).read_text().strip():
                (folder / name).write_text((root / name).read_text())


def clean(cgroup: str, cable: str, run: Path) -> None:
    """Remove all of it; what does not go in time is left for the next start to remove."""
    deadline = time.monotonic() + CLEAN_SECONDS
    while (folders := cgroup_folders(cgroup)) and time.monotonic() < deadline:
        for folder in folders:
            _remove_cgroup(folder)
        if cgroup_folders(cgroup):
            time.sleep(0.1)
    subprocess.run(["ip", "link", "del", cable], capture_output=True, check=False)
    shutil.rmtree(run, ignore_errors=True)


def _remove_cgroup(folder: Path) -> None:
    """End what still runs in it, then remove it from the leaves up."""
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            for pid in (Path(path) / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            Path(path).rmdir()
