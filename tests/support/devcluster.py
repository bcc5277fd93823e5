"""The cluster of the end-to-end tests: a devcluster that all test processes share, or that of $KUBECONFIG_E2E.

The first test that asks for it starts it; the process that pytest was called in stops it at the end.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devcluster import launcher
from devcluster.cluster import Clients, Cluster
from devcluster.paths import clusters_dir, state_dir

NAME = "test"
GPUS = 2
SESSION = "DEVCLUSTER_TEST_SESSION"
"""Environment variable: the process that pytest was called in, which stops the cluster if it or a worker started it."""
OWNER = "test-session"


def shared_cluster() -> Clients:
    """The cluster, started if it is not up."""
    if given := os.environ.get("KUBECONFIG_E2E"):
        return Clients(Path(given))
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("a devcluster needs root; set KUBECONFIG_E2E to the kubeconfig of another cluster")
    with _locked("test.lock"):
        if not launcher.is_up(NAME):
            launcher.up(NAME, gpus=GPUS)
            (state_dir(NAME) / OWNER).write_text(os.environ.get(SESSION, ""))
        cluster = Cluster(NAME)
        cluster.kubectl("apply", "--server-side", "-f", str(Path(__file__).resolve().parents[2] / "crds"))
        return cluster


def load(cluster: Clients, *names: str) -> None:
    """Build images and hand them to the cluster, once for all test processes; another cluster has to have them."""
    from devcluster import images

    if isinstance(cluster, Cluster):
        with _locked("images.lock"):
            for name in names:
                cluster.load(images.build(name))


def stop_shared_cluster() -> None:
    """What pytest's own process does at its end."""
    owner = state_dir(NAME) / OWNER
    if launcher.is_up(NAME) and owner.exists() and owner.read_text() == os.environ.get(SESSION):
        launcher.down(NAME)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    clusters_dir().mkdir(parents=True, exist_ok=True)
    with (clusters_dir() / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
