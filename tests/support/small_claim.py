"""A claim of a devcluster on a real small file system, which can be filled up: a tmpfs of its node alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.cluster import Cluster
from devcluster.parts import NODE
from tests.support.tuning_namespace import STAND_IN_IMAGE, TuningNamespace, claim

STORAGE_CLASS = "standard"


@dataclass(frozen=True)
class SmallClaim:
    """A claim that has no more room than its file system; the node has a mount namespace of its own."""

    node: int
    """The process id of its first process, on this machine."""
    folder: Path

    def fill_up(self) -> None:
        """Leave no byte of it free."""
        self.on_node("dd", "if=/dev/zero", f"of={self._filler}", "bs=4k", check=False)

    def make_room(self) -> None:
        """Take back what fills it."""
        self.on_node("rm", str(self._filler))

    def on_node(self, *command: str, check: bool = True) -> str:
        """Output of a command that sees the node's mounts."""
        enter = ["nsenter", "-t", str(self.node), "--mount", "--pid"]  # its /proc is of its own processes
        return subprocess.run([*enter, *command], check=check, capture_output=True, text=True).stdout

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"


@contextmanager
def small_claim(space: TuningNamespace, name: str, *, mebibytes: int) -> Iterator[SmallClaim]:
    """A claim of that size with the tiny base and the data sets on it; its volume goes at the end."""
    assert isinstance(space.cluster, Cluster)
    plan, volume = space.cluster.plan, f"{name}-{space.name}"
    made = SmallClaim(int((plan.state / "init.pid").read_text()), plan.state / "volumes" / volume)
    made.folder.mkdir()
    made.on_node("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0777", volume, str(made.folder))
    try:
        bound = claim(name, storage_class=STORAGE_CLASS)
        bound["spec"]["volumeName"] = volume
        space.cluster.kubectl("apply", "-f", "-", input=json.dumps(_volume(volume, made.folder)))
        space.apply(bound)
        fill = ("python", "/opt/stand-in/fill_volume.py", "/workspace")
        space.run(f"fill-{name}", STAND_IN_IMAGE, *fill, claim=name)
        yield made
    finally:
        space.cluster.kubectl("delete", "pv", volume, "--ignore-not-found", "--wait=false")
        made.on_node("umount", "--lazy", str(made.folder))


def _volume(name: str, folder: Path) -> dict[str, Any]:
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},  # only a number to match the claim by
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": STORAGE_CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
        },
    }
