"""What happens to a pod of a devcluster from outside of it: its network is cut, its processes are found.

A devcluster's pods are processes of this machine, found by the uid of their pod in the names of their cgroups.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any


def processes_of(pod: dict[str, Any], word: str) -> list[int]:
    """Process ids of a pod's commands that have `word` in them."""
    uid, found = pod["metadata"]["uid"], []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if uid in (entry / "cgroup").read_text() and word in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


def cut_off(pod: dict[str, Any], others: dict[str, Any]) -> None:
    """Lose all that comes from the other pod, and there all that comes from this one: nobody is told of it."""
    _change_rules("-A", pod, others)


def join(pod: dict[str, Any], others: dict[str, Any]) -> None:
    """Have the two pods that were cut off hear each other again."""
    _change_rules("-D", pod, others)


def _change_rules(how: str, pod: dict[str, Any], others: dict[str, Any]) -> None:
    for one, other in ((pod, others), (others, pod)):
        (process, *_) = processes_of(one, "llm_tuning.pod")
        rule = ["iptables", how, "INPUT", "-s", other["status"]["podIP"], "-j", "DROP"]
        subprocess.run(["nsenter", "-t", str(process), "-n", *rule], check=True, capture_output=True)
