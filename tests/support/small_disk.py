"""A real small file system for a test: a tmpfs in a mount namespace of its own, gone with the process."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.support.missing import skip_or_fail

ROOT = Path(__file__).resolve().parents[2]


def run_on_small_disk(folder: Path, code: str, *, kibibytes: int = 512, timeout_seconds: int = 60) -> str:
    """Run Python `code` with `folder` on a file system of that size and return its standard output.

    In `code`, `disk` is the Path of the folder, `remount("ro")` makes it read-only, and `fill()` leaves no byte of it
    free and returns the file that has them. Skips where the system allows no namespaces, and fails there in CI.
    """
    if not _namespaces_allowed():
        skip_or_fail("needs mount namespaces (unshare --mount --map-root-user)")
    folder.mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o size="$3" small "$1" && exec "$0" -c "$2" "$1"'
    prelude = (
        "import subprocess, sys; from pathlib import Path; disk = Path(sys.argv[1])\n"
        "def remount(how): subprocess.run(['mount', '-o', 'remount,' + how, str(disk)], check=True)\n"
        "def fill():\n"
        "    filler = disk / 'filler'\n"
        "    try:\n"
        "        with filler.open('wb', buffering=0) as stream:\n"
        "            while True:\n"
        "                stream.write(b'x' * 4096)\n"
        "    except OSError:\n"
        "        return filler\n"
    )
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    command += [sys.executable, str(folder), prelude + code, f"{kibibytes}k"]  # $0, $1, $2, $3 of the script
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def _namespaces_allowed() -> bool:
    probe = ["unshare", "--mount", "--map-root-user", "sh", "-c", "mount -t tmpfs probe /mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
