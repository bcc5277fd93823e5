"""What a cluster needs beside its programs, kept by small loops: DNS, a default StorageClass with volumes, GPUs."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from devcluster.kube_api import KubeApi
from devcluster.parts import DNS_SERVICE, NODE, Plan

log = logging.getLogger(__name__)

VOLUME_SIZE = "10Gi"
"""Only a number to match claims by: the volumes are folders on one disk."""

GPU = "nvidia.com/gpu"
LOOK_SECONDS = 2.0


def create_objects(api: KubeApi, plan: Plan) -> None:
    """Apply the DNS Service, the StorageClass and the pool of volumes."""
    system = "/api/v1/namespaces/kube-system"
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns"}},
        "spec": {"clusterIP": DNS_SERVICE, "ports": ports},
    }
    api.apply(f"{system}/services/kube-dns", service)
    # CoreDNS runs beside the kubelet, not in a pod: its address is the node's.
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [plan.node_address], "conditions": {"ready": True}}],
        "ports": ports,
    }
    api.apply("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns", endpoints)
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Retain",
    }
    api.apply("/apis/storage.k8s.io/v1/storageclasses/standard", storage_class)
    for number in range(plan.volumes):
        folder = plan.state / "volumes" / f"pool-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        api.apply(f"/api/v1/persistentvolumes/pool-{number}", _volume(f"pool-{number}", folder))


def _volume(name: str, folder: Path) -> dict[str, Any]:
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"devcluster/pool": "true"}},
        "spec": {
            "capacity": {"storage": VOLUME_SIZE},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "storageClassName": "standard",
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
        },
    }


def start_loops(api: KubeApi, plan: Plan) -> None:
    """Keep volumes and GPUs as they should be, for as long as the node lives."""
    threading.Thread(target=_keep, args=(api, plan), daemon=True).start()


def _keep(api: KubeApi, plan: Plan) -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            offer_released_volumes(api, plan)
            pretend_gpus(api, plan)
        except (OSError, ValueError) as error:  # the API server may be down, on purpose
            log.info("looking again: %s", error)


def offer_released_volumes(api: KubeApi, plan: Plan) -> None:
    """Wipe every volume whose claim has gone, and offer it again."""
    for volume in api.get("/api/v1/persistentvolumes?labelSelector=devcluster/pool")["items"]:
        if volume["status"].get("phase") != "Released":
            continue
        name = volume["metadata"]["name"]
        folder = plan.state / "volumes" / name
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        folder.chmod(0o777)
        api.patch(f"/api/v1/persistentvolumes/{name}", {"spec": {"claimRef": None}})


def pretend_gpus(api: KubeApi, plan: Plan) -> None:
    """Give the node its GPUs in the status, again where the kubelet has registered anew. For scheduling only."""
    if not plan.gpus:
        return
    node = api.get(f"/api/v1/nodes/{NODE}")["status"]
    if all(node.get(kind, {}).get(GPU) == str(plan.gpus) for kind in ("capacity", "allocatable")):
        return
    gpus = {GPU: str(plan.gpus)}
    api.patch(f"/api/v1/nodes/{NODE}/status", {"status": {"capacity": gpus, "allocatable": gpus}})
