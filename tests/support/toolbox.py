"""Pods of busybox alone, for what a cluster does with pods whatever is in them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from devcluster.cluster import Cluster
from devcluster.scratch_image import write_scratch_image
from tests.support.tuning_namespace import CLAIM, pod

TOOLBOX = "localhost/devcluster/toolbox:1"


def put_toolbox(cluster: Cluster) -> None:
    """Hand over the image; Debian's package is installed where busybox is missing."""
    busybox = shutil.which("busybox")
    if busybox is None:
        subprocess.run(["apt-get", "install", "-y", "-q", "busybox-static"], check=True, stdout=subprocess.DEVNULL)
        busybox = shutil.which("busybox")
    assert busybox is not None
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "toolbox.tar"
        write_scratch_image(archive, TOOLBOX, {"/bin/busybox": Path(busybox)}, entrypoint=["/bin/busybox"])
        cluster.import_archive(archive)


def box(name: str, script: str, *, limits: dict[str, str] | None = None, with_claim: bool = False) -> dict[str, Any]:
    """A pod that runs a shell script in the toolbox, under the restricted profile."""
    made = pod(name, TOOLBOX, ["/bin/busybox", "sh", "-c", script], claim=CLAIM if with_claim else None)
    if limits:
        made["spec"]["containers"][0]["resources"] = {"limits": limits}
    return made
