"""Waits until a launcher has ended, however that came, and cleans up after its node."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from devcluster.cleaning import clean
from devcluster.parts import Plan


def main(state: str, cable: str) -> None:
    """Standard input is a pipe that only the launcher holds open."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    plan = Plan.read(Path(state))
    sys.stdin.buffer.read()
    init = plan.state / "init.pid"
    with suppress(OSError, ValueError):
        pid = int(init.read_text())
        while Path(f"/proc/{pid}/root").exists() and f"devcluster.node\0{state}" in _command(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
    clean(plan.cgroup, cable, plan.run)
    for name in ("ready", "init.pid", "launcher.pid"):
        (plan.state / name).unlink(missing_ok=True)


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
