"""Run a program and get its output, or an error that says what it said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class ReleaseError(Exception):
    """The release cannot be made as things are; the message says what to do."""


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The standard output of a command; `env` comes on top of ours. Raises ReleaseError with what it said."""
    environment = {**os.environ, **(env or {})}
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ReleaseError(f"{error.filename} is not installed") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ReleaseError(f"{' '.join(map(str, command[:3]))} failed:\n" + "\n".join(said[-20:]))
    return done.stdout


def run_shown(*command: str | Path) -> None:
    """Run a command that takes long, with its output on standard error as it comes. Raises ReleaseError."""
    if code := subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise ReleaseError(f"{' '.join(map(str, command[:2]))} ended with {code}; its messages are above")


def git(root: Path, *arguments: str) -> str:
    """git in the repository at `root`; the output without its last newline."""
    return run("git", "-C", root, *arguments).rstrip("\n")


def commit_time(root: Path) -> int:
    """The time of the commit, in seconds since 1970: the one date in everything that is built from it."""
    return int(git(root, "log", "-1", "--format=%ct"))
