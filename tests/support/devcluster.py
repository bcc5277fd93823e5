"""The cluster of the end-to-end tests: a devcluster that all test processes share, or that of $KUBECONFIG_E2E.

The first test that asks for it starts it; the process that pytest was called in stops it at the end.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devcluster import launcher
from devcluster.cluster import Clients, Cluster
from devcluster.paths import clusters_dir, state_dir
from tests.support.missing import skip_or_fail

NO_ROOT = os.geteuid() != 0 and not os.environ.get("CI")
"""Nobody can start a node here. CI has to be root, and fails where it is not instead of testing less."""
GPUS = 2
CRDS = Path(__file__).resolve().parents[2] / "crds"
SESSION = "DEVCLUSTER_TEST_SESSION"
"""Environment variable: the process that pytest was called in. It names the clusters, so that two sessions on one
machine do not share any, and it stops the shared one."""


def cluster_name(purpose: str) -> str:
    """The name of this session's cluster for a purpose."""
    return f"{purpose}-{os.environ.get(SESSION) or os.getpid()}"


@contextmanager
def own_cluster(purpose: str, *, crds: bool = True, **options: Any) -> Iterator[Cluster]:
    """A cluster for one test file alone, with the CRDs: for tests that stop its parts, or change all of it."""
    name = cluster_name(purpose)
    launcher.up(name, **options)
    try:
        cluster = Cluster(name)
        if crds:
            cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
        yield cluster
    finally:
        remove(name)


def remove(name: str) -> None:
    """Stop a cluster and forget its logs."""
    launcher.down(name)
    shutil.rmtree(state_dir(name), ignore_errors=True)


def shared_cluster() -> Clients:
    """The cluster, started if it is not up."""
    if given := os.environ.get("KUBECONFIG_E2E"):
        return Clients(Path(given))
    if NO_ROOT:
        skip_or_fail("a devcluster needs root; set KUBECONFIG_E2E to the kubeconfig of another cluster")
    with _locked("test.lock"):
        name = cluster_name("test")
        launcher.up(name, gpus=GPUS, network_policies=True)
        cluster = Cluster(name)
        cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
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
    name = cluster_name("test")
    if launcher.is_up(name):
        remove(name)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    clusters_dir().mkdir(parents=True, exist_ok=True)
    with (clusters_dir() / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
