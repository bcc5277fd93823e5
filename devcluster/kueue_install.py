"""The real Kueue on a devcluster: compiled from its Go module, installed from the manifests that the module carries."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from devcluster.build import bin_dir, go_build
from devcluster.cluster import Cluster, KubectlError
from devcluster.paths import SOURCE, clusters_dir
from devcluster.scratch_image import write_scratch_image

MODULE = SOURCE / "kueue"
IMAGE = "localhost/devcluster/kueue:1"
NAMESPACE = "kueue-system"
READY_SECONDS = 120.0
PROBE = """apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata:
  name: probe
"""


def build_kueue() -> Path:
    """The controller's binary, compiled once for each version."""
    digest = hashlib.sha256((MODULE / "go.sum").read_bytes()).hexdigest()[:16]
    folder = clusters_dir() / "bin" / f"kueue-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "kueue").exists():
        go_build(MODULE, ["sigs.k8s.io/kueue/cmd/kueue"], folder / "kueue")
    return folder / "kueue"


def install_kueue(cluster: Cluster) -> None:
    """Install it and wait until its webhooks answer. Raises KubectlError with the last refusal if they never do."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "kueue.tar"
        write_scratch_image(archive, IMAGE, {"/manager": build_kueue()}, entrypoint=["/manager"])
        cluster.import_archive(archive)
    cluster.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(manifests()))
    cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment", "--timeout=120s")
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            cluster.kubectl("apply", "-f", "-", input=PROBE)
            return
        except KubectlError:  # the webhooks' certificates take a moment to be known
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def manifests() -> list[dict[str, Any]]:
    """What the module's own `config/default` renders to, with our image and without its visibility API."""
    module = subprocess.check_output(["go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kueue"], cwd=MODULE, text=True)
    config = Path(module.strip()) / "config" / "default"
    rendered = subprocess.check_output([bin_dir() / "kubectl", "kustomize", str(config)], text=True)
    objects = [made for made in yaml.safe_load_all(rendered) if made["kind"] != "APIService"]
    for made in objects:
        if made["kind"] == "Deployment":
            [container] = made["spec"]["template"]["spec"]["containers"]
            container |= {"image": IMAGE, "imagePullPolicy": "IfNotPresent"}
            container["resources"] = {"requests": {"cpu": "50m", "memory": "128Mi"}}
    return objects
